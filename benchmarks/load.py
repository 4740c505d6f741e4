"""What runs in a contestant's process: one workload at a time, warmed up, then timed."""

from __future__ import annotations

import asyncio
import random
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final, Literal, NamedTuple

from benchmarks.peers import PEERS, AsyncCalls, Calls

KEYS: Final = [str(number) for number in range(1000)]
VALUE_SIZE: Final = 100


class WrongValue(Exception):
    """A contestant was given, or stored, what is not right: the whole run is void."""


class Sample(NamedTuple):
    calls: int
    seconds: float
    cpu: float  # seconds of CPU, user and system, of the client alone

    @property
    def rate(self) -> float:
        return self.calls / self.seconds


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
    salt: str  # makes this turn's values differ from all others'
    warm_up: float
    seconds: float
    uvloop: bool


def value_of(key: str, salt: str) -> str:
    return f"{salt}/{key}/".ljust(VALUE_SIZE, "x")


def measure(turn: Turn) -> Sample:
    """Connect, warm up, measure, close."""
    if turn.workload.colour == "sync":
        return _measure_threads(turn)
    with asyncio.Runner(loop_factory=_loop_factory(turn)) as runner:
        return runner.run(_measure_tasks(turn))


def _loop_factory(turn: Turn) -> Any:
    if not turn.uvloop:
        return None
    import uvloop

    return uvloop.new_event_loop


def _shares(turn: Turn) -> list[list[tuple[str, str]]]:
    """For each thread or task all keys and their values, each from a different beginning."""
    keys = random.Random(7).sample(KEYS, len(KEYS))
    prefix = PEERS[turn.peer].prefix
    items = [(prefix + key, value_of(key, turn.salt)) for key in keys]
    width = turn.workload.width
    starts = [len(items) * number // width for number in range(width)]
    return [items[start:] + items[:start] for start in starts]


# -- threads -------------------------------------------------------------------------------------


def _measure_threads(turn: Turn) -> Sample:
    work = _get if turn.workload.verb == "GET" else _set
    width, shares = turn.workload.width, _shares(turn)
    with (
        PEERS[turn.peer].open(turn.port, width) as calls,
        ThreadPoolExecutor(width) as threads,
    ):

        def run(seconds: float) -> Sample:
            cpu, start = time.process_time(), time.perf_counter()
            stop = start + seconds
            counts = threads.map(lambda share: work(calls, share, stop), shares)
            return Sample(sum(counts), time.perf_counter() - start, time.process_time() - cpu)

        run(turn.warm_up)
        return run(turn.seconds)


def _get(calls: Calls, items: list[tuple[str, str]], stop: float) -> int:
    get, clock, count = calls.get, time.perf_counter, 0
    for key, value in cycle(items):
        if get(key) != value:
            raise WrongValue(f"get({key!r})")
        count += 1
        if clock() >= stop:
            break
    return count


def _set(calls: Calls, items: list[tuple[str, str]], stop: float) -> int:
    set_, clock, count = calls.set, time.perf_counter, 0
    for key, value in cycle(items):
        set_(key, value)
        count += 1
        if clock() >= stop:
            break
    return count


# -- tasks: the same, but awaited ----------------------------------------------------------------


async def _measure_tasks(turn: Turn) -> Sample:
    work = _get_async if turn.workload.verb == "GET" else _set_async
    width, shares = turn.workload.width, _shares(turn)
    async with PEERS[turn.peer].open_async(turn.port, width) as calls:

        async def run(seconds: float) -> Sample:
            cpu, start = time.process_time(), time.perf_counter()
            stop = start + seconds
            counts = await asyncio.gather(*(work(calls, share, stop) for share in shares))
            return Sample(sum(counts), time.perf_counter() - start, time.process_time() - cpu)

        await run(turn.warm_up)
        return await run(turn.seconds)


async def _get_async(calls: AsyncCalls, items: list[tuple[str, str]], stop: float) -> int:
    get, clock, count = calls.get, time.perf_counter, 0
    for key, value in cycle(items):
        if await get(key) != value:
            raise WrongValue(f"await get({key!r})")
        count += 1
        if clock() >= stop:
            break
    return count


async def _set_async(calls: AsyncCalls, items: list[tuple[str, str]], stop: float) -> int:
    set_, clock, count = calls.set, time.perf_counter, 0
    for key, value in cycle(items):
        await set_(key, value)
        count += 1
        if clock() >= stop:
            break
    return count
