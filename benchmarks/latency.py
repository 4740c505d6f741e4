"""Latency under a fixed load that does not wait for the replies: an open loop.

Calls arrive at random moments (exponential gaps, the same for every contestant), at a rate that
does not depend on how fast they are answered. The latency of a call counts from the moment at which
it was to start, not from when the client found the time to start it, so a stall counts for every
call that it held up, not for one ("coordinated omission").

The arrivals come through a pipe from a process of its own, the *pacer*, which writes a byte for
each: as in a server, where work arrives on sockets. A timer of the event loop would not do, as it
is rounded up to a millisecond; nor a busy loop, which leaves libraries with threads no processor.
"""

from __future__ import annotations

import asyncio
import os
import random
import subprocess
import sys
import time
from typing import Any, Final, NamedTuple

from benchmarks.figures import percentile
from benchmarks.load import Turn, WrongValue, ends_in, run_async, seeds, steps
from benchmarks.peers import PEERS
from benchmarks.peers.peer import QUEUE, QUEUED

HEAD_START: Final = 0.6
"""Seconds for the pacer's interpreter to start."""

PATIENCE: Final = 10.0
"""Seconds to wait for the replies after the last arrival."""

PACER: Final = """
import os, random, sys, time
start, rate, seconds = map(float, sys.argv[1:])
chance, due = random.Random(11), 0.0
while True:
    due += chance.expovariate(rate)
    if due > seconds:
        break
    wait = start + due - time.perf_counter()
    if wait > 0:
        time.sleep(wait)
    os.write(1, b".")
"""


class Latency(NamedTuple):
    """Milliseconds."""

    p50: float
    p99: float
    p999: float


def measure_latency(turn: Turn, rate: float) -> Latency:
    with ends_in(int(turn.seconds + PATIENCE) + 20):
        latencies: list[float] = run_async(_offer(turn, rate), uvloop=turn.workload.uvloop)
    return Latency(*(percentile(latencies, part) * 1000 for part in (0.5, 0.99, 0.999)))


def schedule(rate: float, seconds: float) -> list[float]:
    """When calls arrive, in seconds from the start; the pacer draws the same."""
    chance, due, found = random.Random(11), 0.0, []
    while (due := due + chance.expovariate(rate)) <= seconds:
        found.append(due)
    return found


async def _offer(turn: Turn, rate: float) -> list[float]:
    peer, now, loop = PEERS[turn.peer], time.perf_counter, asyncio.get_running_loop()
    assert peer.open_async is not None
    async with peer.open_async(turn.port, QUEUE) as calls:
        for name, value in seeds(peer, turn):
            await calls.set(name, value)
        work = steps(peer, turn, calls)
        # So that the connections are open.
        for part in (work[:QUEUED], work[QUEUED : 2 * QUEUED]):
            await asyncio.gather(*(call(*arguments) for call, arguments, _ in part))
        seconds = turn.warm_up + turn.seconds
        dues = schedule(rate, seconds)
        start = now() + HEAD_START
        latencies: list[float] = []
        running: set[asyncio.Task[None]] = set()
        wrong: list[BaseException] = []
        started = 0
        everything = loop.create_future()

        async def one(number: int) -> None:
            call, arguments, expected = work[number % len(work)]
            try:
                reply = await call(*arguments)
            except Exception as error:  # noqa: BLE001 - the first one is raised below
                wrong.append(error)
                return
            latencies.append(now() - start - dues[number])
            if reply != expected:
                wrong.append(WrongValue(f"{reply!r:.60} instead of {expected!r:.60}"))

        def arrive(reader: int) -> None:
            nonlocal started
            for _ in os.read(reader, 65536):
                task = loop.create_task(one(started))
                running.add(task)
                task.add_done_callback(running.discard)
                started += 1
            if started == len(dues) and not everything.done():
                everything.set_result(None)

        with _pacer(start, rate, seconds) as pacer:
            reader = pacer.stdout.fileno()
            loop.add_reader(reader, arrive, reader)
            try:
                await asyncio.wait_for(everything, HEAD_START + seconds + PATIENCE)
            finally:
                loop.remove_reader(reader)
        if running:
            _, late = await asyncio.wait(set(running), timeout=PATIENCE)
            if late:
                raise RuntimeError(f"{len(late)} calls unanswered {PATIENCE:g} s after the last")
        if wrong:
            raise wrong[0]
        return latencies[int(len(latencies) * turn.warm_up / seconds) :]


def _pacer(start: float, rate: float, seconds: float) -> Any:
    arguments = [str(each) for each in (start, rate, seconds)]
    command = [sys.executable, "-I", "-S", "-c", PACER, *arguments]
    return subprocess.Popen(command, stdout=subprocess.PIPE, bufsize=0)
