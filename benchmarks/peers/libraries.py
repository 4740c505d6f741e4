"""The cache libraries, each with the cheapest of its documented serializers for a ``str``.

All five call redis-py, so they get what makes redis-py fast: hiredis, and a connection for each
task or thread. By default the pools of aiocache, dogpile.cache, django-redis and py-key-value end
at 100 connections, and a call more is an error; that of cashews has 10, and a call more waits (10,
50 or 200 connections for its 200 tasks made no difference beyond the noise).
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Any, Final

from benchmarks.peers.peer import HOST, QUEUE, QUEUED, RESOURCE, TTL, Calls, Peer, by_name


@asynccontextmanager
async def _aiocache(port: int, tasks: int) -> AsyncGenerator[Calls]:
    from aiocache import RedisCache
    from aiocache.serializers import StringSerializer
    from redis.asyncio import BlockingConnectionPool, ConnectionPool

    async with RedisCache(
        serializer=StringSerializer(),
        endpoint=HOST,
        port=port,
        pool_max_size=tasks or QUEUED,
        connection_pool_class=BlockingConnectionPool if tasks == QUEUE else ConnectionPool,
    ) as cache:
        yield Calls(cache.get, partial(cache.set, ttl=TTL), cache.multi_get)


@asynccontextmanager
async def _cashews(port: int, tasks: int) -> AsyncGenerator[Calls]:
    from cashews import Cache

    cache = Cache()
    # By default it waits for 1 s instead of 5, takes an error for a miss, and calls repr() on each
    # value that it reads, to see whether that works.
    cache.setup(
        f"redis://{HOST}:{port}",
        max_connections=tasks or QUEUED,
        socket_timeout=5,
        suppress=False,
        check_repr=False,
    )
    await cache.init()
    try:
        yield Calls(cache.get, partial(cache.set, expire=TTL), lambda names: cache.get_many(*names))
    finally:
        await cache.close()


@contextmanager
def _dogpile(port: int, threads: int) -> Generator[Calls]:
    from dogpile.cache import make_region

    arguments = {
        "host": HOST,
        "port": port,
        "redis_expiration_time": TTL,
        "connection_kwargs": {"max_connections": threads},
    }
    region = make_region().configure("dogpile.cache.redis", arguments=arguments)
    yield Calls(region.get, region.set, region.get_multi)


@contextmanager
def _django_redis(port: int, threads: int) -> Generator[Calls]:
    from django.conf import settings

    # The limit is in the URL because django-redis keeps one pool for each URL.
    url = f"redis://{HOST}:{port}/0?max_connections={threads}"
    if not settings.configured:
        settings.configure(CACHES={"default": {"BACKEND": "django_redis.cache.RedisCache"}})
    settings.CACHES["default"]["LOCATION"] = url
    from django.core.cache import caches

    cache = caches.create_connection("default")
    yield Calls(cache.get, partial(cache.set, timeout=TTL), cache.get_many)
    cache.close()


@asynccontextmanager
async def _py_key_value(port: int, tasks: int) -> AsyncGenerator[Calls]:
    from key_value.aio.stores.redis import RedisStore
    from redis.asyncio import BlockingConnectionPool, ConnectionPool, Redis

    make_pool = BlockingConnectionPool if tasks == QUEUE else ConnectionPool
    pool = make_pool(host=HOST, port=port, decode_responses=True, max_connections=tasks or QUEUED)
    async with (
        Redis(connection_pool=pool) as client,
        RedisStore(client=client, default_collection=RESOURCE) as store,
    ):
        yield Calls(store.get, partial(store.put, ttl=TTL), store.get_many)


def _in_dict(value: str) -> dict[str, Any]:
    return {"v": value}


AIOCACHE: Final = Peer(
    name="aiocache",
    open_async=_aiocache,
    module="aiocache",
    packages=("aiocache", "redis"),
    kind="library",
    note="StringSerializer; a connection per task",
)
CASHEWS: Final = Peer(
    name="cashews",
    open_async=_cashews,
    module="cashews",
    packages=("cashews", "redis"),
    plain=False,
    many=lambda _names, values: tuple(values),
    kind="library",
    note="pickle, not signed; `check_repr=False`, `suppress=False`, 5 s timeout; a connection "
    "per task",
)
DOGPILE: Final = Peer(
    name="dogpile.cache",
    open=_dogpile,
    module="dogpile.cache, redis",
    packages=("dogpile.cache", "redis"),
    plain=False,
    stored=None,
    kind="library",
    note="its default, pickle; one TTL for the region; a connection per thread",
)
DJANGO_REDIS: Final = Peer(
    name="django-redis",
    open=_django_redis,
    packages=("django-redis", "django", "redis"),
    stored_prefix=f":1:{RESOURCE}:",
    plain=False,
    many=by_name,
    kind="library",
    note="its default, pickle; a connection per thread",
)
PY_KEY_VALUE: Final = Peer(
    name="py-key-value",
    open_async=_py_key_value,
    module="key_value.aio.stores.redis",
    packages=("py-key-value-aio", "redis"),
    prefix="",
    stored_prefix=f"{RESOURCE}::",
    plain=False,
    given=_in_dict,
    got=_in_dict,
    stored=None,
    kind="library",
    note="it stores dicts as JSON, so here one of a single entry; a connection per task",
)

PEERS: Final = (AIOCACHE, CASHEWS, DOGPILE, DJANGO_REDIS, PY_KEY_VALUE)
