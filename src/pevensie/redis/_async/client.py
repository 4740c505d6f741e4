"""The asyncio store: from a verb to an operation to the line of the running event loop.

One client may be used from any number of event loops, one after the other or side by side in
several threads; each gets lines of its own, dialled on first use there. A loop that ends takes its
connections along: an asynchronous generator per loop is closed by ``loop.shutdown_asyncgens()``,
which ``asyncio.run`` and its kin call while the loop still runs, and by the garbage collector, on
that loop, when the client itself is gone.

After a fork the child forgets the lines of its parent without touching them: closing a transport
would take the parent's socket out of the parent's epoll set too.
"""

from __future__ import annotations

import asyncio
import atexit
import os
import random
import threading
import weakref
from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Coroutine, Sequence
from typing import Any, Final, NamedTuple, TypeVar

from pevensie.errors import RedisError, ServerError, UnknownResponseError
from pevensie.redis import _failures, _ops
from pevensie.redis._async.line import Line
from pevensie.redis._backoff import pause_after_refusal
from pevensie.redis._ops import Op
from pevensie.redis._retry import MAX_ATTEMPTS, may_resend
from pevensie.redis.config import RedisConfig

T = TypeVar("T")

BULK: Final = 1024 * 1024
"""Bytes from which an operation travels on a second connection, where ``pool_size`` allows one, so
that small calls do not queue behind it."""

DRAIN_STEP: Final = 0.005
"""Seconds between two looks at what is still in flight, while draining."""


class _Lines(NamedTuple):
    """The connections of one event loop."""

    main: Line
    bulk: Line
    """For large operations; the same as *main* where there is only one."""

    def all(self) -> set[Line]:
        return {self.main, self.bulk}

    def shut(self) -> None:
        for line in self.all():
            line.shut()


class _Home(NamedTuple):
    """An event loop, its lines, and the generator that closes them with the loop."""

    loop: AbstractEventLoop
    lines: _Lines
    keeper: AsyncGenerator[None]


class AsyncRedisStore:
    """An :class:`~pevensie.drivers.AsyncStore` on a Redis-compatible server."""

    __slots__ = (
        "__weakref__", "_config", "_here", "_homes", "_lock", "_refuses", "_single", "_timeout",
    )  # fmt: skip

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._timeout = config.timeout_seconds
        self._single = config.set_mode == "single"
        self._lock = threading.RLock()
        """Guards ``_homes``; held for moments, never across I/O. Reentrant, for signal handlers."""
        self._homes: dict[AbstractEventLoop, _Home] = {}
        self._here: _Home | None = None
        """The home that was used last: the fast path. One attribute, so that threads never see
        the loop of one with the lines of another."""
        self._refuses = False
        _stores.add(self)

    def __repr__(self) -> str:
        homes = [home.lines for home in self._homes.values()]
        return f"<AsyncRedisStore {self._config.address} {homes}>"

    def __del__(self) -> None:
        # Loops that run close their connections by themselves; closed ones cannot any more.
        if hasattr(self, "_homes"):
            self._forget_closed_loops()

    # -- the verbs: see pevensie.drivers.Store ----------------------------------------------

    def get(self, key: bytes) -> Coroutine[Any, Any, bytes | None]:
        return self._run(_ops.get(key))

    def get_many(self, keys: Sequence[bytes]) -> Coroutine[Any, Any, list[bytes | None]]:
        return self._run(_ops.get_many(keys))

    def set(
        self, items: Sequence[tuple[bytes, bytes]], ttl: int | None
    ) -> Coroutine[Any, Any, None]:
        return self._run(_ops.set_entries(items, ttl, single=self._single))

    def add(self, key: bytes, value: bytes, ttl: int | None) -> Coroutine[Any, Any, bool]:
        return self._run(_ops.add(key, value, ttl))

    def delete(self, keys: Sequence[bytes]) -> Coroutine[Any, Any, int]:
        return self._run(_ops.delete(keys))

    def increment(self, key: bytes, delta: int, ttl: int | None) -> Coroutine[Any, Any, int]:
        return self._run(_ops.increment(key, delta, ttl, single=self._single))

    def touch(self, key: bytes, ttl: int | None) -> Coroutine[Any, Any, bool]:
        return self._run(_ops.touch(key, ttl))

    def contains(self, key: bytes) -> Coroutine[Any, Any, bool]:
        return self._run(_ops.contains(key))

    def ttl(self, key: bytes) -> Coroutine[Any, Any, int]:
        return self._run(_ops.ttl(key))

    def ping(self) -> Coroutine[Any, Any, None]:
        return self._run(_ops.ping())

    # -- running an operation ----------------------------------------------------------------

    async def _run(self, op: Op[T]) -> T:
        home = self._here
        loop = asyncio.get_running_loop()
        lines = home.lines if home is not None and home.loop is loop else self._lines(loop)
        data = op.data
        size = len(data[0]) if len(data) == 1 else sum(map(len, data))
        line = lines.main if size < BULK else lines.bulk
        deadline = loop.time() + self._timeout
        attempt = 1
        while True:
            connection = line.connection
            try:
                future = connection.submit(op, size, deadline) if connection is not None else None
                if future is None:
                    future = await line.submit(op, size, deadline)
                return op.read(await future)
            except RedisError as error:
                if error.server is None:
                    error.server = self._config.address
                if isinstance(error, UnknownResponseError):
                    line.drop("one of its replies made no sense")
                if attempt == MAX_ATTEMPTS or not may_resend(op.retry, error):
                    raise
                await self._before_retry(line, error, attempt, deadline)
            attempt += 1

    async def _before_retry(
        self, line: Line, error: RedisError, attempt: int, deadline: float
    ) -> None:
        """Let a refusal pass; after a lost connection, dialling has pauses of its own."""
        if not isinstance(error, ServerError):
            return
        if error.code == "READONLY":
            line.look_up_again()
        pause = pause_after_refusal(attempt, random.random)
        if asyncio.get_running_loop().time() + pause >= deadline:
            raise error
        line.callers += 1
        try:
            await asyncio.sleep(pause)
        finally:
            line.callers -= 1

    def _lines(self, loop: AbstractEventLoop) -> _Lines:
        """The lines of *loop*, made on first use there."""
        with self._lock:
            if self._refuses:
                raise _failures.not_connected()
            home = self._homes.get(loop)
            if home is None:
                self._forget_closed_loops()
                main = Line(self._config)
                bulk = Line(self._config) if self._config.pool_size > 1 else main
                lines = _Lines(main, bulk)
                home = self._homes[loop] = _Home(loop, lines, _keeper(self, loop, lines))
            self._here = home
        return home.lines

    def _forget_closed_loops(self) -> None:
        for loop in [loop for loop in self._homes if loop.is_closed()]:
            home = self._homes.pop(loop)
            for line in home.lines.all():
                if line.connection is not None:
                    line.connection.orphaned()
        if self._here is not None and self._here.loop.is_closed():
            self._here = None

    def _forget(self, loop: AbstractEventLoop) -> None:
        with self._lock:
            self._homes.pop(loop, None)
            if self._here is not None and self._here.loop is loop:
                self._here = None

    # -- its life ----------------------------------------------------------------------------

    async def start(self) -> None:
        await self._lines(asyncio.get_running_loop()).main.start()

    async def drain(self) -> None:
        self._refuse()
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._timeout
        # Polled: an event would cost each call something, for what happens once in a life.
        while self._in_use() and loop.time() < deadline:  # noqa: ASYNC110
            await asyncio.sleep(DRAIN_STEP)

    async def close(self, *, force: bool) -> None:
        if not force and self._in_use():
            raise _failures.in_use(self._config.address)
        self._refuse()
        here = asyncio.get_running_loop()
        with self._lock:
            self._forget_closed_loops()
            homes = list(self._homes.values())
        for home in homes:
            if home.loop is here:
                await home.keeper.aclose()
            else:
                try:
                    home.loop.call_soon_threadsafe(home.lines.shut)
                except RuntimeError:
                    pass  # closed in this moment: its keeper saw to the rest

    def _refuse(self) -> None:
        with self._lock:
            self._refuses = True
            self._here = None

    def _in_use(self) -> bool:
        with self._lock:
            homes = list(self._homes.items())
        return any(
            line.in_use for loop, home in homes if not loop.is_closed() for line in home.lines.all()
        )

    def _forked(self) -> None:
        """In the child: the lines are the parent's, and so is whoever held the lock."""
        self._lock = threading.RLock()
        devnull = os.open(os.devnull, os.O_RDWR)
        for home in self._homes.values():
            for line in home.lines.all():
                if line.connection is not None:
                    line.connection.disown(devnull)
        os.close(devnull)
        _inherited.extend(self._homes.values())
        self._homes = {}
        self._here = None


def _keeper(store: AsyncRedisStore, loop: AbstractEventLoop, lines: _Lines) -> AsyncGenerator[None]:
    """A generator that the running *loop* knows of, and whose end closes *lines*."""
    # The store must be free to go while the loop runs.
    reference = weakref.ref(store)
    keeper = _keep(reference, loop, lines)
    try:
        keeper.asend(None).send(None)
    except StopIteration:
        pass
    return keeper


async def _keep(
    reference: weakref.ref[AsyncRedisStore], loop: AbstractEventLoop, lines: _Lines
) -> AsyncGenerator[None]:
    try:
        yield
    finally:
        store = reference()
        if store is not None:
            store._forget(loop)
            del store
        for line in lines.all():
            await line.close()


_stores: Final[weakref.WeakSet[AsyncRedisStore]] = weakref.WeakSet()
_inherited: Final[list[_Home]] = []
"""What a child got from its parent, kept so that it is never closed here."""


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._forked()


@atexit.register
def _at_exit() -> None:
    """Loops that were closed without ceremony leave their transports to complain."""
    for store in list(_stores):
        store._forget_closed_loops()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
