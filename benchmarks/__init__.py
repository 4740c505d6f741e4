"""How fast Pevensie Cache is, beside its peers: ``scripts/bench``, or ``python -m benchmarks``.

What a sceptic should know
--------------------------

- **One run, one server.** Everybody asks the same private Valkey (``pevensie.redis.embedded``)
  over TCP on loopback. Client and server share the machine's cores, so the ratios say more than
  the rates. Nothing is pinned, and every number is wall-clock time; CPU seconds are in the JSON.
- **Taking turns.** Each round starts one fresh process per contestant, which imports that library
  alone: no heap, garbage or specialised bytecode is shared, and the luck of memory layout and hash
  seed is drawn anew. For each workload the contestants then measure one after the other, a fraction
  of a second each, in an order that is reversed every round; who waits is blocked in a read. So
  what disturbs the machine for seconds disturbs all alike. Shown: medians over rounds (min-max),
  the ratio of the medians, and in brackets the least and greatest ratio within one round.
- **The public API at its defaults**, ours included: integrity checks, ``set_mode="expire"`` (a
  transaction of two commands), ``pool_size=10``, a deadline of 5 s per call. Peers: see ``peers``
  for what was chosen and why.
- **The same work.** 1000 keys in the same shuffled order, values of 100 ASCII characters, ``str``
  in and ``str`` out. The loop around the calls is the same; what it costs (about 0.2 µs) counts
  against whoever is faster. gc stays on. Each client connects and warms up before it is timed.
- **Right or void.** Every ``get`` is compared with what must be there. The referee is redis-py:
  it writes what all read, and after each SET reads back every key with its TTL. Anything wrong
  ends the run with exit code 2.
- **Import time** is CPU time, user and system, of a whole fresh process, interpreter included.

Files: ``peers`` the contestants, ``load`` what runs in their processes, ``bench`` the referee and
the command line, ``report`` the table.
"""
