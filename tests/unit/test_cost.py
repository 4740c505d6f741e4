"""What a call costs, counted and not timed: bytecode instructions of ours, and memory in flight.

The limits are what was counted when this was written, and a twelfth. Where one is exceeded, a call
got dearer: find out why, and raise the limit only if it is worth it. ``scripts/bench`` says what
it is in microseconds.
"""

from __future__ import annotations

import asyncio
import gc
import socket
import sys
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import FrameType, SimpleNamespace
from typing import Any

import pytest

import pevensie
from pevensie import cache
from pevensie.cache import AsyncCache, Cache
from pevensie.redis import RedisConfig, new_cache_driver
from pevensie.redis._async.connection import Connection as AsyncConnection
from pevensie.redis._session import Tokens
from pevensie.redis._sync.connection import Connection

OURS = str(Path(pevensie.__file__).parent)
VALUE = "x" * 100
GET = b"$100\r\n" + VALUE.encode() + b"\r\n"
SET = b"+OK\r\n+QUEUED\r\n+QUEUED\r\n*2\r\n+OK\r\n:1\r\n"


def answers(written: bytes) -> bytes:
    """What a server says to commands of this test, whose keys all have the same value."""
    said = b""
    for part in written.split(b"*2\r\n$4\r\nECHO\r\n")[1:]:
        said += part[: len(b"$26\r\n") + 28]
    gets, sets = written.count(b"\r\nGET\r\n"), written.count(b"\r\nMULTI\r\n")
    return gets * GET + sets * SET + said


class Socket:
    """A server in memory, for one blocking connection."""

    def send(self, data: bytes) -> int:
        self.said = answers(data)
        return len(data)

    def recv(self, size: int) -> bytes:
        return self.said

    def fileno(self) -> int:
        return 0

    def close(self) -> None:
        pass


class Transport:
    """A server in memory, for one async connection."""

    def __init__(self) -> None:
        self.connection: Any = None

    def set_write_buffer_limits(self, high: int) -> None:
        pass

    def write(self, data: bytes) -> None:
        if self.connection is not None:
            loop = asyncio.get_running_loop()
            loop.call_soon(self.connection.data_received, answers(data))

    def abort(self) -> None:
        pass


@pytest.fixture
def c(monkeypatch: pytest.MonkeyPatch) -> Cache:
    def readiness(sock: Socket) -> Any:
        return SimpleNamespace(poll=lambda milliseconds: True)

    monkeypatch.setattr("pevensie.redis._sync.connection.Readiness", readiness)
    c = cache.new(new_cache_driver(RedisConfig())).lazy()
    connection = Connection(Socket(), 5.0)  # type: ignore[arg-type]
    connection.check_with(Tokens(b"0123456789abcdef"))
    pool: Any = c._store._pool  # type: ignore[attr-defined]
    pool._open.add(connection)
    pool._idle.append(connection)
    return c


def opened(*, mute: bool = False) -> AsyncCache:
    """A cache in the running loop, on a server that answers, or is *mute*."""
    loop = asyncio.get_running_loop()
    c = cache.new(new_cache_driver(RedisConfig())).lazy_async()
    line = c._store._lines(loop).main  # type: ignore[attr-defined]
    sock: Any = SimpleNamespace(family=socket.AF_UNIX, fileno=lambda: -1)
    connection = AsyncConnection(
        loop,
        sock,
        timeout=5.0,
        tokens=Tokens(b"0123456789abcdef"),
        on_room=line._on_room,
        on_failure=line._failed,
    )
    transport: Any = Transport()
    connection.connection_made(transport)
    connection.greeted(echoes=True, integrity_checks=True)
    transport.connection = None if mute else connection
    line._keep(connection)
    return c


def instructions(work: Callable[[], object]) -> int:
    """Bytecode instructions that run in this package while *work* does."""
    count = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal count
        if event == "call":
            if not frame.f_code.co_filename.startswith(OURS):
                return None
            frame.f_trace_opcodes = True
            frame.f_trace_lines = False
        elif event == "opcode":
            count += 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)
    return count


CALLS = 100


@pytest.mark.parametrize(("verb", "limit"), [("get", 545), ("set", 710)])
def test_a_blocking_call(c: Cache, verb: str, limit: int) -> None:
    def work() -> None:
        for number in range(CALLS):
            if verb == "get":
                assert c.get("ship", str(number)) == VALUE
            else:
                c.set("ship", str(number), VALUE, ttl_seconds=60)

    instructions(work)  # 3.12 counts nothing the first time
    each = instructions(work) / CALLS
    assert 0.75 * limit < each < limit


@pytest.mark.parametrize(
    ("verb", "tasks", "limit"), [("get", 1, 730), ("get", CALLS, 350), ("set", CALLS, 450)]
)
def test_an_async_call(verb: str, tasks: int, limit: int) -> None:
    async def call(c: AsyncCache, number: int) -> None:
        if verb == "get":
            assert await c.get("ship", str(number)) == VALUE
        else:
            await c.set("ship", str(number), VALUE, ttl_seconds=60)

    async def work(c: AsyncCache) -> None:
        for start in range(0, CALLS, tasks):
            await asyncio.gather(*(call(c, start + n) for n in range(tasks)))

    with asyncio.Runner() as runner:
        c = runner.run(given(opened))
        instructions(lambda: runner.run(work(c)))
        each = instructions(lambda: runner.run(work(c))) / CALLS
    assert 0.75 * limit < each < limit


async def given(make: Callable[[], AsyncCache]) -> AsyncCache:
    return make()


def test_memory_of_a_call_in_flight() -> None:
    """Of 10,000 calls that a frozen server does not answer, their tasks included."""
    count = 10_000

    async def run() -> int:
        c = opened(mute=True)
        gc.collect()
        tracemalloc.start()
        tasks = [asyncio.ensure_future(c.get("ship", n)) for n in range(count)]
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        used, _ = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        return used

    assert 500 < asyncio.run(run()) / count < 3000
