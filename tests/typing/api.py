"""What type checkers see: read by mypy and pyright, never run.

A line that must be refused says so with both checkers' ways to expect an error, so that it is an
error here if it is *not* refused.
"""

from __future__ import annotations

from datetime import timedelta
from typing import assert_type
from uuid import UUID

import pevensie
from pevensie import cache, memory
from pevensie.cache import AsyncCache, Cache, PevensieCache
from pevensie.drivers import AsyncStore, Driver, Store
from pevensie.redis import RedisConfig, default_config, embedded, new_cache_driver

redis_driver: Driver = new_cache_driver(default_config())
memory_driver: Driver = memory.new_cache_driver()
store: Store = redis_driver.open()
async_store: AsyncStore = memory_driver.open_async()

app_cache = cache.new(new_cache_driver(RedisConfig(host="cache.pevensie.dev")))
assert_type(app_cache, PevensieCache)
assert_type(pevensie.from_url("memory://"), PevensieCache)

# The type state: a cache that is not connected has nothing to call.
app_cache.get("ship", "dawn-treader")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
app_cache.set("ship", "dawn-treader", "x")  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
app_cache.disconnect()  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]

# A configuration is frozen, keyword-only and closed.
RedisConfig("localhost")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
RedisConfig(hots="localhost")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
RedisConfig(timeout=1.5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
RedisConfig(set_mode="both")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
default_config().host = "x"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]
RedisConfig(timeout=timedelta(seconds=1), password=lambda: "rotated")

cache.new(RedisConfig())  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def blocking() -> None:
    with app_cache.connect() as c:
        assert_type(c, Cache)
        assert_type(c.get("ship", 1), str | None)
        assert_type(c.get("ship", 1, default=None), str | None)
        assert_type(c.get("ship", 1, default="?"), str)
        assert_type(c.get("ship", 1, default=5), str | int)
        assert_type(c.delete("ship", UUID(int=1)), bool)
        assert_type(c.get_many("ship", [1, 2]), dict[int, str])
        assert_type(c.get_many("ship", ["a"]), dict[str, str])
        assert_type(c.add("ship", 1, "x", ttl_seconds=timedelta(hours=1)), bool)
        assert_type(c.increment("hits", "home"), int)
        assert_type(c.contains("ship", 1), bool)
        assert_type(c.touch("ship", 1, None), bool)
        assert_type(c.ttl("ship", 1), float | None)
        assert_type(c.ping(), float)
        c.set_many("ship", {1: "x", 2: "y"}, ttl_seconds=1.5)
        c.set("ship", 1, "x", ttl_seconds=None)

        c.set("ship", 1, b"x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        c.set("ship", 1.5, "x")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        c.set("ship", 1, "x", 60)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
        c.set("ship", 1, "x", ttl_seconds="60")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        c.get(5, 1)  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
        assert_type(c.disconnect(force=True), PevensieCache)
    assert_type(app_cache.lazy(), Cache)
    with embedded() as config:
        assert_type(config, RedisConfig)


async def awaited() -> None:
    async with app_cache.connect_async() as c:
        assert_type(c, AsyncCache)
        assert_type(await c.get("ship", 1), str | None)
        assert_type(await c.get("ship", 1, default="?"), str)
        assert_type(await c.get_many("ship", [1, 2]), dict[int, str])
        assert_type(await c.ttl("ship", 1), float | None)
        assert_type(await c.disconnect(), PevensieCache)
    assert_type(await app_cache.connect_async(), AsyncCache)
    assert_type(app_cache.lazy_async(), AsyncCache)
    app_cache.connect_async().get("ship", 1)  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue]
