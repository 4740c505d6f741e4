"""What runs in a contestant's process: one workload at a time, connected, warmed up, then timed."""

from __future__ import annotations

import asyncio
import logging
import os
import random
import re
import signal
import subprocess
import time
import zlib
from collections.abc import Callable, Coroutine, Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from benchmarks.peers import PEERS
from benchmarks.peers.peer import HOST, QUEUE, TTL, Calls, Peer

MOST_KEYS: Final = 1000
MOST_BYTES: Final = 8_000_000
"""Of all values together: large ones are fewer, or filling the server would take the time."""

READS_PER_WRITE: Final = 19
"""In MIX: 95 to 5."""

HANGING_SECONDS: Final = 40
"""A turn that takes longer is killed, with its process. The longest of those that end take 5 s."""


class WrongValue(Exception):
    """A contestant was given, or stored, what is not right."""


class Failure(NamedTuple):
    why: str
    wrong: bool = False


Colour: TypeAlias = Literal["sync", "async"]
Verb: TypeAlias = Literal["GET", "SET", "MIX"]


@dataclass(frozen=True)
class Workload:
    colour: Colour
    verb: Verb
    width: int  # threads, or tasks
    size: int = 100  # bytes of a value
    batch: int = 1  # keys per call
    uvloop: bool = False

    @property
    def keys(self) -> list[str]:
        return [str(number) for number in range(min(MOST_KEYS, max(MOST_BYTES // self.size, 2)))]

    def __str__(self) -> str:
        unit = "thread" if self.colour == "sync" else "task"
        many = f" of {self.batch} keys" if self.batch > 1 else ""
        parts = [
            f"{self.colour} {self.verb}{many}",
            f"{self.width} {unit}{'s' if self.width > 1 else ''}",
        ]
        if self.size != 100:
            parts.append(size_name(self.size))
        return ", ".join([*parts, "uvloop"] if self.uvloop else parts)


def size_name(size: int) -> str:
    for unit, divisor in (("MB", 1_000_000), ("KB", 1000)):
        if size >= divisor:
            return f"{size // divisor} {unit}"
    return f"{size} B"


@dataclass(frozen=True)
class Turn:
    """One measurement to make."""

    peer: str
    workload: Workload
    port: int
    salt: str  # makes the values of this turn differ from all others
    warm_up: float
    seconds: float

    def value_of(self, key: str) -> str:
        text = f"{self.salt}/{key}/"
        size = self.workload.size
        return f"{zlib.crc32(text.encode()):08x}/{text}".ljust(size, "x")[:size]


class Sample(NamedTuple):
    per_second: float  # values, so with many keys per call there are fewer calls
    cpu_us: float  # of the client, user and system, per value


Step: TypeAlias = tuple[Callable[..., Any], tuple[Any, ...], object]
"""A call, its arguments, and what it must return."""


def attempt(function: Callable[..., Any], *arguments: Any) -> Any:
    """What it returns, or a Failure: not every exception can be sent to another process."""
    logging.disable()  # one of them writes a traceback for each failed call
    try:
        return function(*arguments)
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the finding
        leaf: BaseException = error
        while isinstance(leaf, BaseExceptionGroup):
            leaf = leaf.exceptions[0]
        return Failure(reason(leaf), isinstance(leaf, WrongValue))


def reason(error: BaseException) -> str:
    """An exception in a line, for a table."""
    first = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {first}"[:160].removesuffix(": ")


def measure(turn: Turn) -> Sample:
    with ends_in(HANGING_SECONDS):
        if PEERS[turn.peer].command:
            return _measure_command(turn)
        if turn.workload.colour == "sync":
            return _measure_threads(turn)
        sample: Sample = run_async(_measure_tasks(turn), uvloop=turn.workload.uvloop)
        return sample


@contextmanager
def ends_in(seconds: int) -> Generator[None]:
    """Or the process is killed, which works on code that is stuck anywhere, Rust included."""
    signal.alarm(seconds)
    try:
        yield
    finally:
        signal.alarm(0)


def run_async(work: Coroutine[Any, Any, Any], *, uvloop: bool) -> Any:
    loop_factory: Any = None
    if uvloop:
        import uvloop as fast_loop

        loop_factory = fast_loop.new_event_loop
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        return runner.run(work)


def seeds(peer: Peer, turn: Turn) -> list[tuple[Any, Any]]:
    """What a peer writes by itself before it reads: nothing, if the referee can write it."""
    if peer.plain or turn.workload.verb == "SET":
        return []
    return [(peer.prefix + key, peer.given(turn.value_of(key))) for key in turn.workload.keys]


def steps(peer: Peer, turn: Turn, calls: Calls) -> list[Step]:
    """All keys, in a shuffled order that is the same for all."""
    workload, chance = turn.workload, random.Random(7)
    keys = chance.sample(workload.keys, len(workload.keys))
    names = [peer.prefix + key for key in keys]
    values = [turn.value_of(key) for key in keys]
    got = [peer.got(value) for value in values]
    if workload.batch > 1:
        assert calls.get_many is not None
        found: list[Step] = []
        for start in range(0, len(keys), workload.batch):
            part = slice(start, start + workload.batch)
            expected = peer.many(names[part], got[part])
            found.append((calls.get_many, (names[part],), expected))
        return found
    reads: list[Step] = [(calls.get, (n,), v) for n, v in zip(names, got, strict=True)]
    writes: list[Step] = [
        (calls.set, (n, peer.given(v)), peer.stored) for n, v in zip(names, values, strict=True)
    ]
    if workload.verb == "MIX":
        pairs = zip(writes, reads, strict=True)
        return [
            write if number % (READS_PER_WRITE + 1) == 0 else read
            for number, (write, read) in enumerate(pairs)
        ]
    return reads if workload.verb == "GET" else writes


def _shares(turn: Turn, calls: Calls) -> list[list[Step]]:
    """All keys for each thread or task, each from a different beginning."""
    work, width = steps(PEERS[turn.peer], turn, calls), turn.workload.width
    starts = [len(work) * number // width for number in range(width)]
    return [work[start:] + work[:start] for start in starts]


class _Clock:
    def __init__(self, seconds: float) -> None:
        self._cpu, self._start = time.process_time(), time.perf_counter()
        self.stop = self._start + seconds

    def sample(self, values: int) -> Sample:
        seconds, cpu = time.perf_counter() - self._start, time.process_time() - self._cpu
        return Sample(values / seconds, cpu / values * 1e6)


def _measure_threads(turn: Turn) -> Sample:
    peer, width = PEERS[turn.peer], turn.workload.width
    assert peer.open is not None
    with peer.open(turn.port, width) as calls, ThreadPoolExecutor(width) as threads:
        for name, value in seeds(peer, turn):
            calls.set(name, value)
        shares = _shares(turn, calls)
        for seconds in (turn.warm_up, turn.seconds):
            clock = _Clock(seconds)
            work = [threads.submit(_work, share, clock.stop) for share in shares]
            count = sum(each.result() for each in work)
            sample = clock.sample(count * turn.workload.batch)
        return sample


def _work(share: list[Step], stop: float) -> int:
    count, now = 0, time.perf_counter
    for call, arguments, expected in cycle(share):
        reply = call(*arguments)
        if reply != expected:
            raise _wrong(arguments, reply, expected)
        count += 1
        if now() >= stop:
            break
    return count


async def _measure_tasks(turn: Turn) -> Sample:
    peer = PEERS[turn.peer]
    assert peer.open_async is not None
    # MIX is what the load of the open loop is derived from, so it has the same pool.
    width = QUEUE if turn.workload.verb == "MIX" else turn.workload.width
    async with peer.open_async(turn.port, width) as calls:
        for name, value in seeds(peer, turn):
            await calls.set(name, value)
        shares = _shares(turn, calls)
        for seconds in (turn.warm_up, turn.seconds):
            clock = _Clock(seconds)
            count = sum(await asyncio.gather(*(_work_async(each, clock.stop) for each in shares)))
            sample = clock.sample(count * turn.workload.batch)
        return sample


async def _work_async(share: list[Step], stop: float) -> int:
    """The same, but awaited."""
    count, now = 0, time.perf_counter
    for call, arguments, expected in cycle(share):
        reply = await call(*arguments)
        if reply != expected:
            raise _wrong(arguments, reply, expected)
        count += 1
        if now() >= stop:
            break
    return count


def _wrong(arguments: object, reply: object, expected: object) -> WrongValue:
    texts = (f"{each!r:.60}" for each in (arguments, reply, expected))
    return WrongValue("a call with {} returned {} instead of {}".format(*texts))


# -- redis-benchmark -----------------------------------------------------------------------------


def command_flags(workload: Workload) -> list[str]:
    if workload.colour == "async" and workload.width >= 200:
        return ["-c", "50", "-P", "16"]
    return ["-c", str(workload.width)]


def _measure_command(turn: Turn) -> Sample:
    peer, workload = PEERS[turn.peer], turn.workload
    names = [peer.stored_prefix + key for key in workload.keys]
    command = {
        "GET": ["GET", names[0]] if workload.batch == 1 else ["MGET", *names[: workload.batch]],
        "SET": ["-x", "SETEX", names[0], str(TTL)],  # -x: the value comes from the standard input
    }[workload.verb]
    flags = [peer.command, "-h", HOST, "-p", str(turn.port), "-q", *command_flags(workload)]
    rate, least = 0.0, 1000 if workload.size * workload.batch <= 10_000 else 100
    for seconds in (turn.warm_up, turn.seconds):
        count = max(int(rate * seconds), least)
        before, clock = os.times(), _Clock(0)
        done = subprocess.run(
            [*flags, "-n", str(count), *command],
            input=turn.value_of(workload.keys[0]),
            capture_output=True,
            text=True,
        )
        found = re.findall(r"([\d.]+) requests per second", done.stdout)
        if done.returncode or not found:
            raise RuntimeError((done.stderr or done.stdout).strip()[:200])
        rate, after = float(found[-1]), os.times()
        del clock
        cpu = sum(after[2:4]) - sum(before[2:4])
    return Sample(rate * workload.batch, cpu / count / workload.batch * 1e6)
