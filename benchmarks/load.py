"""What runs in a contestant's process: one workload at a time, connected, warmed up, then timed."""

from __future__ import annotations

import asyncio
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from benchmarks.peers import PEERS, Calls

KEYS: Final = [str(number) for number in range(1000)]
VALUE_SIZE: Final = 100


class WrongValue(Exception):
    """A contestant was given, or stored, what is not right: the whole run is void."""


@dataclass(frozen=True)
class Workload:
    colour: Literal["sync", "async"]
    verb: Literal["GET", "SET"]
    width: int  # threads, or tasks

    def __str__(self) -> str:
        unit = "thread" if self.colour == "sync" else "task"
        return f"{self.colour} {self.verb}, {self.width} {unit}{'s' if self.width > 1 else ''}"


@dataclass(frozen=True)
class Turn:
    """One measurement to make."""

    peer: str
    workload: Workload
    port: int
    salt: str  # makes the values of this turn differ from all others
    warm_up: float
    seconds: float
    uvloop: bool

    def value_of(self, key: str) -> str:
        return f"{self.salt}/{key}/".ljust(VALUE_SIZE, "x")


class Sample(NamedTuple):
    per_second: float
    cpu_us: float  # of the client, user and system, per call


Share: TypeAlias = list[tuple[tuple[str, ...], object]]
"""What one thread or task calls with, in order, and what each call must return."""


def measure(turn: Turn) -> Sample:
    if turn.workload.colour == "sync":
        return _measure_threads(turn)
    loop_factory: Any = None
    if turn.uvloop:
        import uvloop

        loop_factory = uvloop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(_measure_tasks(turn))


def _shares(turn: Turn) -> list[Share]:
    """All keys for each thread or task, each from a different beginning."""
    peer, width = PEERS[turn.peer], turn.workload.width
    work: Share = []
    for key in random.Random(7).sample(KEYS, len(KEYS)):
        name, value = peer.prefix + key, turn.value_of(key)
        get = turn.workload.verb == "GET"
        work.append(((name,), value) if get else ((name, value), peer.stored))
    starts = [len(work) * number // width for number in range(width)]
    return [work[start:] + work[:start] for start in starts]


def _call(calls: Calls, turn: Turn) -> Callable[..., Any]:
    return calls.get if turn.workload.verb == "GET" else calls.set


class _Clock:
    def __init__(self, seconds: float) -> None:
        self._cpu, self._start = time.process_time(), time.perf_counter()
        self.stop = self._start + seconds

    def sample(self, calls: int) -> Sample:
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        return Sample(calls / seconds, cpu / calls * 1e6)


def _measure_threads(turn: Turn) -> Sample:
    width, shares = turn.workload.width, _shares(turn)
    with PEERS[turn.peer].open(turn.port, width) as calls, ThreadPoolExecutor(width) as threads:
        for seconds in (turn.warm_up, turn.seconds):
            clock = _Clock(seconds)
            work = [threads.submit(_work, _call(calls, turn), s, clock.stop) for s in shares]
            sample = clock.sample(sum(each.result() for each in work))
        return sample


def _work(call: Callable[..., Any], share: Share, stop: float) -> int:
    count, now = 0, time.perf_counter
    for arguments, expected in cycle(share):
        if call(*arguments) != expected:
            raise WrongValue(f"a call with {arguments} did not return {expected!r}")
        count += 1
        if now() >= stop:
            break
    return count


async def _measure_tasks(turn: Turn) -> Sample:
    width, shares = turn.workload.width, _shares(turn)
    async with PEERS[turn.peer].open_async(turn.port, width) as calls:
        for seconds in (turn.warm_up, turn.seconds):
            clock = _Clock(seconds)
            work = (_work_async(_call(calls, turn), share, clock.stop) for share in shares)
            sample = clock.sample(sum(await asyncio.gather(*work)))
        return sample


async def _work_async(call: Callable[..., Any], share: Share, stop: float) -> int:
    """The same, but awaited."""
    count, now = 0, time.perf_counter
    for arguments, expected in cycle(share):
        if await call(*arguments) != expected:
            raise WrongValue(f"a call with {arguments} did not return {expected!r}")
        count += 1
        if now() >= stop:
            break
    return count
