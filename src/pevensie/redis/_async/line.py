"""A line: the one connection to a server in one event loop, dialled again when it is lost.

Callers that find the connection closed wait, within their own deadlines, for one dial that they
share; see :mod:`pevensie.redis._backoff` for when that is. The dial is a task of its own: a caller
that is cancelled leaves it running for the others. Callers that find the connection full wait in
order of arrival.

A call that fails comes back here, and if it may be sent again it is queued again with the future
that its caller awaits already: in a task of its own, so that the others need none.
"""

from __future__ import annotations

import asyncio
import random
from collections import OrderedDict
from typing import Final, TypeVar

from pevensie.errors import PoolError, RedisError, ServerError
from pevensie.redis import _failures
from pevensie.redis._async.connection import Call, Connection
from pevensie.redis._async.dial import dial
from pevensie.redis._backoff import FAIL_FAST_AFTER, Backoff, pause_after_refusal
from pevensie.redis._ops import Data, Kind, Op, size_of
from pevensie.redis._retry import MAX_ATTEMPTS, Retry, may_resend
from pevensie.redis.config import RedisConfig

T = TypeVar("T")

MAX_WAITING: Final = 16_384
"""Callers that wait for room. Who comes later is refused at once: at some hundred bytes each, what
waits is worth a few megabytes, and it will not be served in time anyway."""


CLOSING: Final = 1.0
"""Seconds to wait for a loop to close a socket, which takes it one turn."""


class Line:
    """A connection that comes back."""

    __slots__ = ("_backoff", "_config", "_dialling", "_waiting", "callers", "closed", "connection")

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._backoff = Backoff(random.random)
        self._dialling: asyncio.Task[RedisError | None] | None = None
        self._waiting: OrderedDict[asyncio.Future[None], None] = OrderedDict()
        self.connection: Connection | None = None
        """The latest one, open or not."""
        self.callers = 0
        """Callers that wait for a connection, or for room."""
        self.closed = False

    def __repr__(self) -> str:
        return f"<Line {self.connection} callers={self.callers} {self._backoff}>"

    @property
    def in_use(self) -> bool:
        """Whether a call is in flight."""
        return self.callers > 0 or (self.connection is not None and self.connection.in_use)

    async def start(self) -> None:
        """Dial once, unless there is an open connection; raise how that failed."""
        if self.connection is None or self.connection.closed:
            self._keep(await dial(self._config, self._on_room, self._failed))

    async def call(self, data: Data, kind: Kind[T] | Op[T], deadline: float) -> T:
        """The result of an operation that cannot be submitted at once."""
        future: asyncio.Future[T] = asyncio.get_running_loop().create_future()
        await self._queue((future, data, kind, deadline, 1))
        return await future

    async def _queue(self, call: Call, pause: float = 0) -> None:
        """Submit *call*, after a *pause*, or see to it that its caller learns why not."""
        try:
            if pause:
                await asyncio.sleep(pause)
            await self._submit(call)
        except RedisError as error:
            if not call[0].done():
                self._failed(call, error)

    async def _submit(self, call: Call) -> None:
        """Submit *call* as soon as there is an open connection with room for it."""
        future, data, kind, deadline, attempt = call
        self.callers += 1
        waiting_for = "a connection"
        try:
            async with asyncio.timeout_at(deadline):
                while True:
                    connection = self.connection
                    if self.closed:
                        raise _failures.not_connected()
                    if connection is None or connection.closed:
                        waiting_for = "a connection"
                        await self._redialled()
                        continue
                    queued = connection.submit(
                        data,
                        kind,
                        size_of(data),
                        deadline,
                        future=future,
                        attempt=attempt,
                        waited=waiting_for == "room",
                    )
                    if queued is not None:
                        self._wake(1)
                        return
                    waiting_for, again = "room", waiting_for == "room"
                    await self._room(first=again)
        except RedisError:
            raise
        except TimeoutError:
            raise self._late(waiting_for) from None
        finally:
            self.callers -= 1

    # -- failures ----------------------------------------------------------------------------

    def _failed(self, call: Call, error: Exception) -> None:
        """Tell the caller of *call*, or try it again, which the caller does not notice."""
        future, data, kind, deadline, attempt = call
        if isinstance(error, RedisError):
            if error.server is None:
                error.server = self._config.address
            if attempt < MAX_ATTEMPTS and may_resend(kind.retry, error):
                pause = 0.0
                if isinstance(error, ServerError):  # else dialling has pauses of its own
                    if error.code == "READONLY":
                        self._look_up_again()
                    pause = pause_after_refusal(attempt, random.random)
                if pause == 0 or future.get_loop().time() + pause < deadline:
                    self._try_again((future, data, kind, deadline, attempt + 1), pause, error)
                    return
        future.set_exception(error)

    def _try_again(self, call: Call, pause: float, failure: RedisError) -> None:
        """Begin to queue *call* again, in a task that ends when its caller leaves."""
        future = call[0]
        self.callers += 1
        task = future.get_loop().create_task(self._queue(call, pause))

        def ended(task: asyncio.Task[None]) -> None:
            self.callers -= 1
            if not future.done() and (task.cancelled() or task.exception() is not None):
                future.set_exception(failure)

        task.add_done_callback(ended)
        future.add_done_callback(lambda _: task.cancel())

    def _look_up_again(self) -> None:
        """Give the connection up to a server that became a replica, so that its name is looked up
        again; not more often than is worth it."""
        now = asyncio.get_running_loop().time()
        if self.connection is not None and self._backoff.may_look_up(now):
            self.connection.give_up("the server became a replica")

    def shut(self) -> None:
        """Close for good. Whoever still waits is told so."""
        self.closed = True
        if self._dialling is not None:
            self._dialling.cancel()
        self._wake(len(self._waiting))
        if self.connection is not None:
            self.connection.close()

    async def close(self) -> None:
        """As :meth:`shut`; returns once the socket is closed."""
        self.shut()
        if self.connection is not None:
            await asyncio.wait((self.connection.lost,), timeout=CLOSING)

    # -- dialling ----------------------------------------------------------------------------

    async def _redialled(self) -> None:
        """Wait for the dial under way, or begin it; raise if that is of no use."""
        loop = asyncio.get_running_loop()
        task = self._dialling
        failure = self._backoff.failure
        if task is None or task.done():  # done: cancelled from outside before it began
            if failure is not None and self._backoff.fails_fast(loop.time()):
                raise _failures.again(failure)
            task = self._dialling = loop.create_task(self._redial())
        elif failure is not None and self._backoff.failures >= FAIL_FAST_AFTER:
            raise _failures.again(failure)
        await asyncio.wait((task,))
        if task.cancelled():
            return
        error = task.result()
        if error is not None and (
            self._backoff.failures >= FAIL_FAST_AFTER or not may_resend(Retry.NEVER, error)
        ):
            raise _failures.again(error)

    async def _redial(self) -> RedisError | None:
        """Dial, after the pause that is due. How it failed is returned, for any number to read."""
        loop = asyncio.get_running_loop()
        started = loop.time()
        try:
            await asyncio.sleep(self._backoff.next_dial - loop.time())
            started = loop.time()
            self._keep(await dial(self._config, self._on_room, self._failed))
        except RedisError as error:
            self._backoff.failed(error, started, loop.time())
            return error
        finally:
            self._dialling = None
        return None

    def _keep(self, connection: Connection) -> None:
        self._backoff.succeeded()
        self.connection = connection
        self._wake(len(self._waiting))

    # -- room --------------------------------------------------------------------------------

    async def _room(self, *, first: bool) -> None:
        """Wait until there may be room. *first*: this caller was next already."""
        if len(self._waiting) >= MAX_WAITING:
            raise PoolError(f"{MAX_WAITING} calls are waiting already; the server does not keep up")
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._waiting[future] = None
        if first:
            self._waiting.move_to_end(future, last=False)
        self._mark()
        try:
            await future
        except BaseException:
            self._waiting.pop(future, None)
            # If this caller was woken and leaves all the same, pass it on.
            self._wake(0 if future.cancelled() else 1)
            raise

    def _on_room(self, calls: int) -> None:
        if self._waiting:
            self._wake(calls)

    def _wake(self, callers: int) -> None:
        waiting = self._waiting
        while waiting and callers > 0:
            future, _ = waiting.popitem(last=False)
            if not future.done():
                future.set_result(None)
                callers -= 1
        self._mark()

    def _mark(self) -> None:
        if self.connection is not None:
            self.connection.queued = bool(self._waiting)

    def _late(self, waiting_for: str) -> RedisError:
        milliseconds = round(self._config.timeout_seconds * 1000)
        if waiting_for == "room":
            message = f"no room for one more call within {milliseconds} ms; the server is too slow"
            return PoolError(message)
        return _failures.no_connection(self._config.timeout_seconds, self._backoff.failure)
