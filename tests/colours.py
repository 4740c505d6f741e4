"""Both colours behind one way to call them: tests are written once, as ``async def``.

For the sync colour the methods of a :class:`~pevensie.cache.Cache` are called at once by coroutines
that never suspend; ``concurrently`` runs them in threads.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Any

from pevensie import cache
from pevensie.cache import PevensieCache
from pevensie.redis import RedisConfig, new_cache_driver

COLOURS = ["sync", "async"]


class Blocking:
    """A blocking cache whose methods can be awaited."""

    def __init__(self, cache: Any) -> None:
        self.cache = cache

    def __getattr__(self, name: str) -> Callable[..., Awaitable[Any]]:
        method = getattr(self.cache, name)

        async def call(*args: object, **kwargs: object) -> object:
            return method(*args, **kwargs)

        return call


def app(config: RedisConfig) -> PevensieCache:
    return cache.new(new_cache_driver(config))


@asynccontextmanager
async def connected(
    described: PevensieCache | RedisConfig, colour: str, *, lazy: bool = False
) -> AsyncIterator[Any]:
    """A connected cache of *colour*, closed by force at the end."""
    if isinstance(described, RedisConfig):
        described = app(described)
    c: Any
    if colour == "sync":
        c = Blocking(described.lazy() if lazy else described.connect())
    else:
        c = described.lazy_async() if lazy else await described.connect_async()
    try:
        yield c
    finally:
        await c.disconnect(force=True)


Call = Callable[[Any], Awaitable[Any]]


async def concurrently(colour: str, c: Any, calls: list[Call]) -> list[Any]:
    """The outcomes of *calls* on *c*, at once: results, or the exceptions raised."""
    if colour == "async":
        return await asyncio.gather(*(call(c) for call in calls), return_exceptions=True)

    def run(call: Call) -> Any:
        async def one() -> Any:
            return await call(c)

        coroutine = one()
        try:
            coroutine.send(None)
        except StopIteration as stop:
            return stop.value
        except Exception as error:
            return error
        raise AssertionError("a blocking call suspended")

    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(len(calls)) as pool:
        return await asyncio.gather(*(loop.run_in_executor(pool, run, call) for call in calls))
