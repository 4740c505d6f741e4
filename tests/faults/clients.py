"""Clients behind one way to call them, so that a scenario can be played with any.

To add one: a class with these methods, and a line in :data:`CLIENTS`. ``open`` may do no more I/O
than the client needs; an error there counts as that of the first call. ``left`` says what the
client's own books should not say once all calls have ended; a client without open books says
nothing. A blocking client is called in threads: see :class:`InThreads`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Final, Protocol

import pevensie.cache
from pevensie.redis import RedisConfig, new_cache_driver

THREADS: Final = 256
"""At most; a call must not wait for a thread."""

KIND: Final = "fault"
"""The resource type of all keys."""


class Client(Protocol):
    """What scenarios call. Failures are exceptions, whatever their type."""

    blocking: bool

    async def get(self, key: str) -> str | None: ...
    async def get_many(self, keys: list[str]) -> list[str | None]: ...
    async def set(self, key: str, value: str) -> None: ...
    async def incr(self, key: str) -> int: ...
    async def close(self) -> None: ...
    def left(self) -> list[str]: ...
    def connections(self) -> int | None:
        """How many the client believes to have open; ``None``: it does not say."""


def stored(key: str) -> str:
    """The Redis key of *key*."""
    return f"{KIND}:{key}"


class PevensieAsync:
    blocking = False

    def __init__(self, cache: pevensie.AsyncCache) -> None:
        self.cache = cache

    @classmethod
    async def open(cls, config: RedisConfig) -> PevensieAsync:
        return cls(pevensie.cache.new(new_cache_driver(config)).lazy_async())

    async def get(self, key: str) -> str | None:
        return await self.cache.get(KIND, key)

    async def get_many(self, keys: list[str]) -> list[str | None]:
        found = await self.cache.get_many(KIND, keys)
        return [found.get(key) for key in keys]

    async def set(self, key: str, value: str) -> None:
        await self.cache.set(KIND, key, value)

    async def incr(self, key: str) -> int:
        return await self.cache.increment(KIND, key)

    async def close(self) -> None:
        await self.cache.disconnect(force=True)

    @property
    def _lines(self) -> list[Any]:
        store: Any = self.cache._store
        return [line for home in store._homes.values() for line in home.lines.all()]

    def connections(self) -> int:
        return sum(
            line.connection is not None and not line.connection.closed for line in self._lines
        )

    def left(self) -> list[str]:
        found = []
        for line in self._lines:
            c = line.connection
            if line.callers or line._waiting or line._dialling:
                found.append(repr(line))
            elif c is not None and (c._batches or c._pending or c._calls or c._bytes or c.queued):
                found.append(repr(c))
        return found


class InThreads:
    """Makes a blocking client look like the others: each call runs in a thread."""

    blocking = True

    def __init__(self) -> None:
        self._threads: dict[int, ThreadPoolExecutor] = {}  # by process: threads do not survive fork

    def call(self, function: Callable[..., Any], *args: Any) -> Awaitable[Any]:
        threads = self._threads.get(os.getpid())
        if threads is None:
            threads = self._threads[os.getpid()] = ThreadPoolExecutor(THREADS)
        return asyncio.get_running_loop().run_in_executor(threads, function, *args)

    async def stop(self) -> None:
        threads = self._threads.pop(os.getpid(), None)
        if threads is not None:
            threads.shutdown()  # all calls have ended


class PevensieSync(InThreads):
    def __init__(self, cache: pevensie.Cache) -> None:
        super().__init__()
        self.cache = cache

    @classmethod
    async def open(cls, config: RedisConfig) -> PevensieSync:
        return cls(pevensie.cache.new(new_cache_driver(config)).lazy())

    async def get(self, key: str) -> str | None:
        found: str | None = await self.call(self.cache.get, KIND, key)
        return found

    async def get_many(self, keys: list[str]) -> list[str | None]:
        found = await self.call(self.cache.get_many, KIND, keys)
        return [found.get(key) for key in keys]

    async def set(self, key: str, value: str) -> None:
        await self.call(self.cache.set, KIND, key, value)

    async def incr(self, key: str) -> int:
        total: int = await self.call(self.cache.increment, KIND, key)
        return total

    async def close(self) -> None:
        self.cache.disconnect(force=True)
        await self.stop()

    @property
    def _pool(self) -> Any:
        return self.cache._store._pool  # type: ignore[attr-defined]

    def connections(self) -> int:
        return len(self._pool._open)

    def left(self) -> list[str]:
        pool = self._pool
        busy = len(pool._open) != len(pool._idle)
        return [repr(pool)] if busy or pool._dials or pool._waiters or pool._pauses else []


CLIENTS: Final[dict[str, Callable[[RedisConfig], Awaitable[Client]]]] = {
    "pevensie-sync": PevensieSync.open,
    "pevensie-async": PevensieAsync.open,
}
