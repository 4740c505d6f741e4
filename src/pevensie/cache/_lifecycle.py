"""The life of a cache: described, connected, disconnected, and connected again.

Each colour may be open once at a time: for blocking code one :class:`Cache`, for asyncio one
:class:`AsyncCache` per event loop. A lazy one made outside any loop counts, from then on, in all of
them. What is open is remembered weakly: a cache that is thrown away without ``disconnect`` does not
count.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Coroutine, Generator
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final

from pevensie.cache._async import AsyncCache
from pevensie.cache._keys import key_encoder
from pevensie.cache._sync import Cache
from pevensie.drivers import Driver
from pevensie.errors import AlreadyConnected

if TYPE_CHECKING:
    from asyncio import AbstractEventLoop


_lock: Final = threading.Lock()
"""Guards what is open, of every cache; held for moments. One for all, so that a fork can hold it:
a child must not inherit it from a thread that it does not have."""

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=_lock.acquire, after_in_parent=_lock.release, after_in_child=_lock.release
    )


class PevensieCache:
    """A cache that is not connected: where entries live, and what is open on it.

    Made by :func:`pevensie.cache.new` or :func:`pevensie.from_url`. It has no ``get``: connect it.
    """

    __slots__ = ("_async_caches", "_driver", "_encode", "_sync_cache")

    def __init__(self, driver: Driver) -> None:
        """See :func:`pevensie.cache.new`."""
        self._driver = driver
        self._encode = key_encoder(driver.namespace)
        self._sync_cache: weakref.ref[Cache] | None = None
        self._async_caches: list[tuple[AbstractEventLoop | None, weakref.ref[AsyncCache]]] = []

    def __repr__(self) -> str:
        return f"PevensieCache({self._driver!r})"

    if not TYPE_CHECKING:  # type checkers refuse it by themselves

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(
                f"PevensieCache is not connected, so it has no {name}: "
                "with app_cache.connect() as c, or async with app_cache.connect_async() as c"
            )

    def connect(self) -> Cache:
        """Open one connection, check it, and return the cache for blocking code.

        A wrong host, password or certificate fails here. Use the result in a ``with`` block, or
        call its ``disconnect``. Raises :exc:`AlreadyConnected` if one is open, else how connecting
        failed (Redis: :exc:`StartError`, :exc:`AuthenticationFailed`). One attempt, within the
        driver's ``timeout``: a look-up, a connection and one round trip.
        """
        cache = self.lazy()
        try:
            cache._store.start()
        except BaseException:
            cache.disconnect(force=True)
            raise
        return cache

    def connect_async(self) -> Connecting:
        """Same as :meth:`connect`, but for asyncio: ``async with`` the result, or await it."""
        return Connecting(self._connect_async())

    def lazy(self) -> Cache:
        """The cache for blocking code, which connects when it is first used. No I/O.

        For module globals (Django, Flask, Celery), image builds and prefork servers: the
        connection belongs to the process that uses it. Raises :exc:`AlreadyConnected` if one is
        open.
        """
        cache = Cache(self, self._driver.open(), self._encode)
        with _lock:
            if self._sync_cache is not None and self._sync_cache() is not None:
                raise AlreadyConnected("this cache is connected already; use that, or disconnect")
            self._sync_cache = weakref.ref(cache)
        return cache

    def lazy_async(self) -> AsyncCache:
        """Same as :meth:`lazy`, but for asyncio. Needs no running event loop."""
        loop = _running_loop()
        cache = AsyncCache(self, self._driver.open_async(), self._encode)
        with _lock:
            self._async_caches = [
                (home, reference)
                for home, reference in self._async_caches
                if reference() is not None and (home is None or not home.is_closed())
            ]
            for home, _ in self._async_caches:
                if home is None or home is loop:
                    raise AlreadyConnected(
                        "this cache is connected already in this loop; use that, or disconnect"
                    )
            self._async_caches.append((loop, weakref.ref(cache)))
        return cache

    async def _connect_async(self) -> AsyncCache:
        cache = self.lazy_async()
        try:
            await cache._store.start()
        except BaseException:
            await cache.disconnect(force=True)
            raise
        return cache

    def _disconnected(self, cache: Cache | AsyncCache) -> None:
        """*cache* is open no more."""
        with _lock:
            if self._sync_cache is not None and self._sync_cache() is cache:
                self._sync_cache = None
            self._async_caches = [
                (home, reference)
                for home, reference in self._async_caches
                if reference() is not cache
            ]


class Connecting:
    """What :meth:`PevensieCache.connect_async` returns: await it, or use it in ``async with``.

    Python warns if neither is done.
    """

    __slots__ = ("_cache", "_connect")

    def __init__(self, connect: Coroutine[Any, Any, AsyncCache]) -> None:
        self._connect = connect
        self._cache: AsyncCache | None = None

    if not TYPE_CHECKING:  # type checkers refuse it by themselves

        def __getattr__(self, name: str) -> Any:
            raise AttributeError(
                f"connect_async() was not awaited, so it has no {name}: "
                "c = await app_cache.connect_async(), or async with app_cache.connect_async() as c"
            )

    def __await__(self) -> Generator[Any, Any, AsyncCache]:
        return self._connect.__await__()

    async def __aenter__(self) -> AsyncCache:
        self._cache = await self._connect
        return await self._cache.__aenter__()

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        if self._cache is not None:
            await self._cache.__aexit__(kind, error, traceback)


def _running_loop() -> AbstractEventLoop | None:
    import asyncio

    try:
        return asyncio.get_running_loop()
    except RuntimeError:
        return None
