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
import threading
import weakref
from asyncio import AbstractEventLoop
from collections.abc import AsyncGenerator, Awaitable, Sequence
from typing import Final, TypeVar

from pevensie.redis import _failures, _ops
from pevensie.redis._async.line import Line
from pevensie.redis._ops import Data, Kind, Op, size_of
from pevensie.redis.config import RedisConfig

T = TypeVar("T")

BULK: Final = 1024 * 1024
"""Bytes from which an operation travels on a second connection, where ``pool_size`` allows one, so
that small calls do not queue behind it."""

DRAIN_STEP: Final = 0.005
"""Seconds between two looks at what is still in flight, while draining."""


class _Lines:
    """The connections of one event loop."""

    __slots__ = ("bulk", "main")

    def __init__(self, config: RedisConfig) -> None:
        self.main = Line(config)
        self.bulk = Line(config) if config.pool_size > 1 else self.main
        """For large operations; the same as *main* where there is only one."""

    def __repr__(self) -> str:
        return f"<_Lines main={self.main} bulk={self.bulk}>"

    def all(self) -> set[Line]:
        return {self.main, self.bulk}

    def shut(self) -> None:
        for line in self.all():
            line.shut()


class _Home:
    """An event loop, its lines, and the generator that closes them with the loop."""

    __slots__ = ("keeper", "lines", "loop")

    def __init__(
        self, loop: AbstractEventLoop, lines: _Lines, keeper: AsyncGenerator[None]
    ) -> None:
        self.loop = loop
        self.lines = lines
        self.keeper = keeper


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

    def get(self, key: bytes) -> Awaitable[bytes | None]:
        return self._run(_ops.get_data(key), _ops.GET)

    def get_many(self, keys: Sequence[bytes]) -> Awaitable[list[bytes | None]]:
        return self._run_op(_ops.get_many(keys))

    def set(self, items: Sequence[tuple[bytes, bytes]], ttl: int | None) -> Awaitable[None]:
        data, kind = _ops.prepared_set(items, ttl, single=self._single)
        return self._run(data, kind)

    def add(self, key: bytes, value: bytes, ttl: int | None) -> Awaitable[bool]:
        return self._run_op(_ops.add(key, value, ttl))

    def delete(self, keys: Sequence[bytes]) -> Awaitable[int]:
        return self._run_op(_ops.delete(keys))

    def increment(self, key: bytes, delta: int, ttl: int | None) -> Awaitable[int]:
        return self._run_op(_ops.increment(key, delta, ttl, single=self._single))

    def touch(self, key: bytes, ttl: int | None) -> Awaitable[bool]:
        return self._run_op(_ops.touch(key, ttl))

    def contains(self, key: bytes) -> Awaitable[bool]:
        return self._run_op(_ops.contains(key))

    def ttl(self, key: bytes) -> Awaitable[int]:
        return self._run_op(_ops.ttl(key))

    def ping(self) -> Awaitable[None]:
        return self._run_op(_ops.ping())

    # -- running an operation ----------------------------------------------------------------

    def _run_op(self, op: Op[T]) -> Awaitable[T]:
        return self._run(op.data, op)

    def _run(self, data: Data, kind: Kind[T] | Op[T]) -> Awaitable[T]:
        # No coroutine where there is an open connection with room: it would cost a twentieth of a
        # call, and with a thousand calls in flight a tenth.
        home = self._here
        loop = asyncio.get_running_loop()
        lines = home.lines if home is not None and home.loop is loop else self._lines(loop)
        size = len(data) if isinstance(data, bytes) else size_of(data)
        line = lines.main if size < BULK else lines.bulk
        deadline = loop.time() + self._timeout
        connection = line.connection
        future = connection.submit(data, kind, size, deadline) if connection is not None else None
        return line.call(data, kind, deadline) if future is None else future

    def _lines(self, loop: AbstractEventLoop) -> _Lines:
        """The lines of *loop*, made on first use there."""
        with self._lock:
            if self._refuses:
                raise _failures.not_connected()
            home = self._homes.get(loop)
            if home is None:
                self._forget_closed_loops()
                lines = _Lines(self._config)
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
