"""The contestants: an adapter each, which connects and hands out its two methods, ``get`` and
``set`` with a TTL, adding no Python frame to a call.

Libraries are imported on connecting, so that a contestant's process holds that library alone.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
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
    get: Callable[[str], Any]
    set: Callable[[str, str], Any]


@dataclass(frozen=True)
class Peer:
    name: str
    open: Callable[[int, int], AbstractContextManager[Calls]]  # port, threads
    open_async: Callable[[int, int], AbstractAsyncContextManager[Calls]]  # port, tasks
    module: str  # what a program imports
    packages: tuple[str, ...]  # whose versions matter
    prefix: str  # what the caller puts before a key himself; he gets such keys ready-made
    stored: object  # what ``set`` returns


# -- Pevensie, at its defaults -------------------------------------------------------------------


@contextmanager
def _pevensie(port: int, _threads: int) -> Generator[Calls]:
    import pevensie

    with pevensie.from_url(f"redis://{HOST}:{port}").connect() as c:
        yield Calls(partial(c.get, RESOURCE), partial(c.set, RESOURCE, ttl_seconds=TTL))


@asynccontextmanager
async def _pevensie_async(port: int, _tasks: int) -> AsyncGenerator[Calls]:
    import pevensie

    async with pevensie.from_url(f"redis://{HOST}:{port}").connect_async() as c:
        yield Calls(partial(c.get, RESOURCE), partial(c.set, RESOURCE, ttl_seconds=TTL))


# -- redis-py with hiredis -----------------------------------------------------------------------
#
# The fastest of its configurations that were tried (8.1, CPython 3.11): the default ConnectionPool
# with a connection for each task (its limit of 100 makes 200 tasks fail). asyncio, thousand calls
# a second with 1 / 50 / 200 tasks: ConnectionPool 6.8 / 10.7 / 10.1; BlockingConnectionPool of 50
# connections 5.8 / 8.1 / 9.0, of 10 connections 5.8 / 7.2 / 7.9. 32 threads: the default pool is
# first too, 1 thread: no difference beyond the noise; RESP 2 or 3, retries or none: neither.
#
# By default redis-py, like Pevensie, waits 5 s for a reply at most. That costs its asyncio client a
# good deal, so it also runs without: a dead server then blocks a call for ever, but you will ask.


def _options(port: int, width: int, *, timed: bool) -> dict[str, Any]:
    # decode_responses: our get returns a str too.
    options = {"host": HOST, "port": port, "decode_responses": True, "max_connections": width}
    return options if timed else options | {"socket_timeout": None}


@contextmanager
def _redis(port: int, threads: int, *, timed: bool = True) -> Generator[Calls]:
    import redis

    with redis.Redis(**_options(port, threads, timed=timed)) as r:
        yield Calls(r.get, partial(r.set, ex=TTL))


@asynccontextmanager
async def _redis_async(port: int, tasks: int, *, timed: bool = True) -> AsyncGenerator[Calls]:
    from redis.asyncio import Redis

    async with Redis(**_options(port, tasks, timed=timed)) as r:
        yield Calls(r.get, partial(r.set, ex=TTL))


OURS: Final = Peer(
    name="pevensie",
    open=_pevensie,
    open_async=_pevensie_async,
    module="pevensie.cache, pevensie.redis",
    packages=("pevensie", "hiredis"),
    prefix="",
    stored=None,
)
REDIS_PY: Final = Peer(
    name="redis-py",
    open=_redis,
    open_async=_redis_async,
    module="redis",
    packages=("redis", "hiredis"),
    prefix=f"{RESOURCE}:",
    stored=True,
)
UNTIMED: Final = Peer(
    name="redis-py-untimed",
    open=partial(_redis, timed=False),
    open_async=partial(_redis_async, timed=False),
    module=REDIS_PY.module,
    packages=REDIS_PY.packages,
    prefix=REDIS_PY.prefix,
    stored=REDIS_PY.stored,
)

PEERS: Final = {peer.name: peer for peer in (OURS, REDIS_PY, UNTIMED)}
