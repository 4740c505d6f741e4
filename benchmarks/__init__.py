"""How fast Pevensie Cache is, beside its peers: ``scripts/bench``, or ``python -m benchmarks``.

What a sceptic should know
--------------------------

- **One run, one server.** All ask the same private Valkey over TCP on loopback. Client and server
  share the machine's cores, so the ratios say more than the rates. Nothing is pinned; figures are
  wall-clock time, and the client's CPU time per call is in the JSON.
- **Taking turns.** Each round starts one fresh process per contestant, which imports that library
  alone: no heap, garbage or specialised bytecode is shared, and the luck of memory layout and hash
  seed is drawn anew. For each workload, in an order that is shuffled every round, the contestants
  then measure one after the other, a fraction of a second each, in an order that is reversed every
  round; who waits is blocked in a read. So what disturbs the machine for seconds disturbs all
  alike. Shown: the median of the rounds (min-max), the ratio of the medians, and (the least and the
  greatest ratio within one round). On a busy machine ratios wander by a fifth: run it again.
- **The public API at its defaults**, ours included: integrity checks, ``set_mode="expire"`` (a
  transaction of two commands), 10 connections, 5 s per call. The others are in the fast
  configuration that their documentation describes; ``peers`` says which, and what was tried.
- **The same work.** 1000 keys in the same shuffled order, values of 100 ASCII characters, ``str``
  in and ``str`` out, but for the peers whose API has bytes: they are spared the decoding. The loop
  around the calls is the same; what it costs (0.3 us a call) counts against whoever is faster. gc
  stays on. Clients connect and warm up before the clock starts.
- **Right or void.** Every reply is compared with what it must be. The referee is redis-py: it
  writes what all read (a library with a format of its own writes that itself), and after each SET
  reads back every key and its TTL. Anything wrong on our side ends the run with exit code 2; a peer
  that gets one wrong fails that workload.
- **Failing is a result.** A peer that raises, crashes or hangs in a workload is reported with its
  reason, and so is one that cannot be installed here.
- **Import time** is CPU time, user and system, of a whole fresh process, interpreter included.

``peers``: the contestants; ``load``, ``latency``, ``footprint``: what runs in their processes;
``bench``: the referee; ``targets``: what is measured, and the figures to reach; ``figures``: what
was found, and its file; ``report``, ``charts``, ``method.md``: what is shown of it.
"""
