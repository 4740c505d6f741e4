"""The contestants: one adapter each, which connects and hands out two bound methods to call.

An adapter adds no Python frame to a call. It imports its library when it connects, so that a
contestant's process holds that library alone. ``prefix`` is what the caller himself puts before a
key to reach ``ship:<key>``; peers get such keys ready-made.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Awaitable, Callable, Generator
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    asynccontextmanager,
    contextmanager,
)
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, NamedTuple

HOST: Final = "127.0.0.1"
RESOURCE: Final = "ship"
TTL: Final = 3600


class Calls(NamedTuple):
    get: Callable[[str], str | None]
    set: Callable[[str, str], object]


class AsyncCalls(NamedTuple):
    get: Callable[[str], Awaitable[str | None]]
    set: Callable[[str, str], Awaitable[object]]


@dataclass(frozen=True)
class Peer:
    name: str
    packages: tuple[str, ...]  # whose versions are printed
    module: str  # what a program imports to use it
    prefix: str
    open: Callable[[int, int], AbstractContextManager[Calls]]  # port, threads
    open_async: Callable[[int, int], AbstractAsyncContextManager[AsyncCalls]]  # port, tasks


# -- Pevensie, at its defaults -------------------------------------------------------------------


@contextmanager
def _pevensie(port: int, _threads: int) -> Generator[Calls]:
    import pevensie

    with pevensie.from_url(f"redis://{HOST}:{port}").connect() as c:
        yield Calls(partial(c.get, RESOURCE), partial(c.set, RESOURCE, ttl_seconds=TTL))


@asynccontextmanager
async def _pevensie_async(port: int, _tasks: int) -> AsyncGenerator[AsyncCalls]:
    import pevensie

    async with pevensie.from_url(f"redis://{HOST}:{port}").connect_async() as c:
        yield AsyncCalls(partial(c.get, RESOURCE), partial(c.set, RESOURCE, ttl_seconds=TTL))


# -- redis-py with hiredis -----------------------------------------------------------------------
#
# Its fastest configuration of those tried (redis-py 8.1, CPython 3.11, asyncio; calls per second):
# the default ConnectionPool, with as many connections as there are tasks (its limit of 100 makes
# 200 tasks fail). 1 / 50 / 200 tasks: ConnectionPool 6.8k / 10.7k / 10.1k; BlockingConnectionPool
# with 50 connections 5.8k / 8.1k / 9.0k, with 10 connections 5.8k / 7.2k / 7.9k. With threads the
# default pool is first too. RESP 2 or 3, and retries or none, make no difference.
#
# Both libraries wait at most 5 s for a reply by default. redis-py's asyncio client pays much for
# that, so it also runs without: nobody is advised to (a dead server then blocks a call for ever),
# but it is what a sceptic would ask for.


def _redis_options(port: int, width: int, *, timed: bool) -> dict[str, Any]:
    # decode_responses: our get returns a str as well.
    options = {"host": HOST, "port": port, "decode_responses": True, "max_connections": width}
    return options if timed else {**options, "socket_timeout": None}


@contextmanager
def _redis_py(port: int, threads: int, *, timed: bool = True) -> Generator[Calls]:
    import redis

    with redis.Redis(**_redis_options(port, threads, timed=timed)) as r:
        client: Any = r
        yield Calls(client.get, partial(client.set, ex=TTL))


@asynccontextmanager
async def _redis_py_async(
    port: int, tasks: int, *, timed: bool = True
) -> AsyncGenerator[AsyncCalls]:
    import redis.asyncio

    async with redis.asyncio.Redis(**_redis_options(port, tasks, timed=timed)) as r:
        client: Any = r
        yield AsyncCalls(client.get, partial(client.set, ex=TTL))


OURS: Final = Peer(
    "pevensie",
    ("pevensie", "hiredis"),
    "pevensie.cache, pevensie.redis",
    "",
    _pevensie,
    _pevensie_async,
)

REDIS_PY: Final = Peer(
    "redis-py", ("redis", "hiredis"), "redis", f"{RESOURCE}:", _redis_py, _redis_py_async
)

UNTIMED: Final = Peer(
    "redis-py, no timeout",
    ("redis", "hiredis"),
    "redis",
    f"{RESOURCE}:",
    partial(_redis_py, timed=False),
    partial(_redis_py_async, timed=False),
)

PEERS: Final = {peer.name: peer for peer in (OURS, REDIS_PY, UNTIMED)}
