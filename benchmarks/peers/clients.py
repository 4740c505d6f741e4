"""The clients: redis-py, valkey-py, coredis, valkey-glide, and django-vcache's own driver.

redis-py with hiredis
---------------------

The fastest of its configurations that were tried (8.1, CPython 3.11): the default ConnectionPool
with a connection for each task (its limit of 100 makes 200 tasks fail). asyncio, thousand calls
a second with 1 / 50 / 200 tasks: ConnectionPool 6.8 / 10.7 / 10.1; BlockingConnectionPool of 50
connections 5.8 / 8.1 / 9.0, of 10 connections 5.8 / 7.2 / 7.9. 32 threads: the default pool is
first too, 1 thread: no difference beyond the noise; RESP 2 or 3, retries or none: neither.

By default redis-py, like Pevensie, waits 5 s for a reply at most. That costs its asyncio client a
good deal, so it also runs without: a dead server then blocks a call for ever, but you will ask.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

from benchmarks.peers.peer import HOST, QUEUE, QUEUED, TTL, Calls, Peer


def _options(port: int, width: int, *, timed: bool = True) -> dict[str, Any]:
    # decode_responses: our get returns a str too.
    options = {"host": HOST, "port": port, "decode_responses": True, "max_connections": width}
    return options if timed else options | {"socket_timeout": None}


@contextmanager
def _redis(port: int, threads: int, *, timed: bool = True) -> Generator[Calls]:
    import redis

    with redis.Redis(**_options(port, threads, timed=timed)) as r:
        yield Calls(r.get, partial(r.set, ex=TTL), r.mget)


@asynccontextmanager
async def _redis_async(port: int, tasks: int, *, timed: bool = True) -> AsyncGenerator[Calls]:
    from redis.asyncio import BlockingConnectionPool, Redis

    options = _options(port, tasks or QUEUED, timed=timed)
    pool = BlockingConnectionPool(**options, timeout=None) if tasks == QUEUE else None
    async with Redis(connection_pool=pool) if pool else Redis(**options) as r:
        yield Calls(r.get, partial(r.set, ex=TTL), r.mget)


REDIS_PY: Final = Peer(
    name="redis-py",
    open=_redis,
    open_async=_redis_async,
    module="redis",
    packages=("redis", "hiredis"),
    note="hiredis; a connection per task or thread; 5 s timeout (its default)",
)
UNTIMED: Final = Peer(
    name="redis-py-untimed",
    open=partial(_redis, timed=False),
    open_async=partial(_redis_async, timed=False),
    packages=("redis", "hiredis"),
    note="the same with `socket_timeout=None`: a dead server blocks a call for ever",
)


# -- valkey-py: a fork of redis-py 5, with libvalkey, a fork of hiredis ----------------------------
#
# Configured as redis-py is. It has no timeout by default.


@contextmanager
def _valkey(port: int, threads: int) -> Generator[Calls]:
    import valkey

    with valkey.Valkey(**_options(port, threads)) as v:
        yield Calls(v.get, partial(v.set, ex=TTL), v.mget)


@asynccontextmanager
async def _valkey_async(port: int, tasks: int) -> AsyncGenerator[Calls]:
    from valkey.asyncio import BlockingConnectionPool, Valkey

    options = _options(port, tasks or QUEUED)
    pool = BlockingConnectionPool(**options, timeout=None) if tasks == QUEUE else None
    async with Valkey(connection_pool=pool) if pool else Valkey(**options) as v:
        yield Calls(v.get, partial(v.set, ex=TTL), v.mget)


VALKEY_PY: Final = Peer(
    name="valkey-py",
    open=_valkey,
    open_async=_valkey_async,
    module="valkey",
    packages=("valkey", "libvalkey"),
    note="libvalkey; a connection per task or thread; no timeout (its default)",
)


# -- coredis: its pool shares connections between tasks by itself ----------------------------------
#
# Its default number of connections; 1, 4, 10 or 50 made no difference beyond the noise.


@asynccontextmanager
async def _coredis(port: int, _tasks: int) -> AsyncGenerator[Calls]:
    import coredis

    async with coredis.Redis(host=HOST, port=port, decode_responses=True) as r:
        yield Calls(r.get, partial(r.set, ex=TTL), r.mget)


COREDIS: Final = Peer(
    name="coredis",
    open_async=_coredis,
    module="coredis",
    packages=("coredis",),
    many=lambda _names, values: tuple(values),
    note="its defaults; it shares connections between tasks by itself",
)


# -- valkey-glide: a Rust core; two packages, one for asyncio and one for threads -----------------
#
# A client is one multiplexed connection, to be shared by all. Two of its defaults make it fail at
# these widths: 250 ms per call, here 5 s as for the others, and 1000 requests in flight.


def _glide_options(module: Any, port: int) -> Any:
    return module.GlideClientConfiguration(
        [module.NodeAddress(HOST, port)],
        request_timeout=5000,
        inflight_requests_limit=20_000,
    )


@contextmanager
def _glide_sync(port: int, _threads: int) -> Generator[Calls]:
    import glide_sync

    client = glide_sync.GlideClient.create(_glide_options(glide_sync, port))
    expiry = glide_sync.ExpirySet(glide_sync.ExpiryType.SEC, TTL)
    try:
        yield Calls(client.get, partial(client.set, expiry=expiry), client.mget)
    finally:
        client.close()


@asynccontextmanager
async def _glide(port: int, _tasks: int) -> AsyncGenerator[Calls]:
    import glide

    client = await glide.GlideClient.create(_glide_options(glide, port))
    expiry = glide.ExpirySet(glide.ExpiryType.SEC, TTL)
    try:
        yield Calls(client.get, partial(client.set, expiry=expiry), client.mget)
    finally:
        await client.close()


GLIDE: Final = Peer(
    name="glide",
    open_async=_glide,
    module="glide",
    packages=("valkey-glide",),
    got=str.encode,
    stored="OK",
    note="one client for all tasks; 5 s timeout; it returns bytes",
)
GLIDE_SYNC: Final = Peer(
    name="glide-sync",
    open=_glide_sync,
    module="glide_sync",
    packages=("valkey-glide-sync",),
    got=str.encode,
    stored="OK",
    note="one client for all threads; 5 s timeout; it returns bytes",
)


# -- django-vcache's driver: Rust, one multiplexed connection --------------------------------------
#
# What ``cache.get_raw_client()`` returns: without Django's key functions and its serializer.


@contextmanager
def _vcache(port: int, _threads: int) -> Generator[Calls]:
    from django_vcache._driver import RustValkeyDriver

    driver = RustValkeyDriver.connect(f"redis://{HOST}:{port}/0")
    yield Calls(driver.get_sync, partial(driver.set_sync, ttl=TTL), driver.mget_sync)


@asynccontextmanager
async def _vcache_async(port: int, _tasks: int) -> AsyncGenerator[Calls]:
    from django_vcache._driver import RustValkeyDriver

    driver = RustValkeyDriver.connect(f"redis://{HOST}:{port}/0")
    yield Calls(driver.get, partial(driver.set, ttl=TTL), driver.mget)


VCACHE: Final = Peer(
    name="vcache-driver",
    open=_vcache,
    open_async=_vcache_async,
    module="django_vcache._driver",
    packages=("django-vcache",),
    given=str.encode,
    got=str.encode,
    needs=(3, 12),
    note="django-vcache's Rust driver alone, without Django's keys and serializer; bytes",
)

PEERS: Final = (REDIS_PY, UNTIMED, VALKEY_PY, COREDIS, GLIDE, GLIDE_SYNC, VCACHE)
