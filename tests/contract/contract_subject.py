"""What a contract test gets: stores of one driver, in one colour, behind one way to call them.

Each test is written once, as ``async def`` against :class:`~pevensie.drivers.AsyncStore`. For the
sync colour the store is a blocking one whose verbs are called at once by coroutines that never
suspend, so that ``await store.get(key)`` does the same in both colours.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, NamedTuple, TypeVar, cast

from pevensie.drivers import AsyncStore, Driver, Store

T = TypeVar("T")
Colour = Literal["sync", "async"]
Job = Callable[[], Coroutine[Any, Any, T]]

VERBS: dict[str, Callable[[AsyncStore, bytes], Awaitable[object]]] = {
    "start": lambda store, key: store.start(),
    "get": lambda store, key: store.get(key),
    "get_many": lambda store, key: store.get_many([key]),
    "set": lambda store, key: store.set([(key, b"1")], 60_000),
    "add": lambda store, key: store.add(key, b"1", 60_000),
    "delete": lambda store, key: store.delete([key]),
    "increment": lambda store, key: store.increment(key, 1, 60_000),
    "touch": lambda store, key: store.touch(key, 60_000),
    "contains": lambda store, key: store.contains(key),
    "ttl": lambda store, key: store.ttl(key),
    "ping": lambda store, key: store.ping(),
}
"""Every verb that a closed store refuses, with arguments that fit."""


class Variant(NamedTuple):
    """One column of the suite."""

    driver: str
    colour: Colour
    loop: Literal["asyncio", "uvloop"]

    def __str__(self) -> str:
        return f"{self.driver}-{self.colour}" + ("-uvloop" if self.loop == "uvloop" else "")


class _Awaitable:
    """A blocking store whose verbs can be awaited. They block, and never suspend."""

    def __init__(self, store: Store) -> None:
        self._store = store

    def __getattr__(self, name: str) -> Callable[..., Coroutine[Any, Any, Any]]:
        verb = getattr(self._store, name)

        async def call(*args: object, **kwargs: object) -> object:
            return verb(*args, **kwargs)

        return call

    def __repr__(self) -> str:
        return repr(self._store)


class Subject:
    """The driver under test, a store of it, and what tests need around them."""

    _numbers = itertools.count()
    _run = random.SystemRandom().randbytes(6).hex()

    def __init__(self, driver: Driver, variant: Variant) -> None:
        self.driver = driver
        self.variant = variant
        self._prefix = f"contract:{self._run}:{next(self._numbers)}:".encode()
        self._keys: set[bytes] = set()
        self._opened: list[AsyncStore] = []
        self.store = self.open()

    def open(self, colour: Colour | None = None) -> AsyncStore:
        """A further store of the same driver, by default in the colour under test."""
        if (colour or self.variant.colour) == "sync":
            store = cast(AsyncStore, _Awaitable(self.driver.open()))
        else:
            store = self.driver.open_async()
        self._opened.append(store)
        return store

    def key(self, name: bytes = b"k") -> bytes:
        """A key that no other test, and no other run, uses. Removed when the test is over."""
        key = self._prefix + name
        self._keys.add(key)
        return key

    async def at_once(self, *jobs: Job[T]) -> list[T]:
        """Run *jobs* together: tasks in the async colour, threads in the sync one."""
        if self.variant.colour == "sync":
            return self.in_threads(*jobs)
        return await asyncio.gather(*(job() for job in jobs))

    def in_threads(self, *jobs: Job[T]) -> list[T]:
        """Run each of *jobs* in a thread, in the async colour with an event loop of its own."""
        barrier = threading.Barrier(len(jobs))

        def run(job: Job[T]) -> T:
            barrier.wait(10)
            if self.variant.colour == "sync":
                return _finish(job())
            with asyncio.Runner(loop_factory=self._loop_factory()) as runner:
                return runner.run(job())

        with ThreadPoolExecutor(len(jobs)) as pool:
            return list(pool.map(run, jobs))

    async def breathe(self) -> None:
        """Let other jobs run: in the async colour a store may never suspend by itself."""
        if self.variant.colour == "async":
            await asyncio.sleep(0)

    async def until(self, check: Job[bool], *, seconds: float = 5.0) -> None:
        """Ask *check* every few milliseconds until it says yes; fail after *seconds*."""
        deadline = time.monotonic() + seconds
        while not await check():
            assert time.monotonic() < deadline, f"still not so after {seconds} seconds"
            await asyncio.sleep(0.004)

    async def clean(self) -> None:
        """Remove what the test has stored, and close what it has opened."""
        if self._keys:
            await self.open().delete(sorted(self._keys))
        for store in self._opened:
            await store.close(force=True)

    def _loop_factory(self) -> Callable[[], asyncio.AbstractEventLoop] | None:
        if self.variant.loop == "asyncio":
            return None
        import uvloop

        return uvloop.new_event_loop


def _finish(coroutine: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine that never suspends."""
    try:
        coroutine.send(None)
    except StopIteration as stop:
        return cast(T, stop.value)
    coroutine.close()
    raise AssertionError("a job of the sync colour must only await its store and breathe()")
