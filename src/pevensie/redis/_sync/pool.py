"""The pool: up to ``pool_size`` connections that threads borrow, one call at a time.

``_idle`` is a stack, so that few connections stay warm. Taking from it and putting back are single
steps of a list and need no lock; the lock is for everything else: growing, waiting, closing.

Who waits is served in order of arrival: what becomes free is handed to the first, who takes along
the calls of those behind it (see :mod:`~pevensie.redis._sync.crowd`). Nobody takes from the stack
while somebody waits, or a busy thread could starve the others. No wake-up is lost: who waits joins
``_waiters`` first and then serves the queue itself; who gives back appends first and then looks at
``_waiters``.

How many connections are used at once. To a server on this machine, whose answer takes less time
than Python needs for a call, :data:`NEAR`: more threads than that only fight for the GIL. And once
there were more threads than connections, all their calls travel over one, a batch after the other,
for as long as there are several to a batch: with 32 threads that carries twice as many calls as
ten connections do. Who has waited for :data:`PATIENCE` gets another connection all the same, up to
``pool_size``. (Figures: ``docs/benchmarks.md``. Without the GIL none of this applies.)

``_open`` holds every open connection weakly, ``_dials`` and ``_pauses`` what is under way. A thread
that is interrupted, wherever that is, drops the last reference: the connection is closed, and there
is room for another. So no counter can be left wrong.

While the server cannot be reached, one thread dials at a time; see
:mod:`pevensie.redis._backoff` for who waits for it and who is refused.
"""

from __future__ import annotations

import random
import sys
import threading
import time
import weakref
from collections import deque
from typing import Any, Final, TypeVar

from pevensie.errors import DeadlineExceeded, PoolError, RedisError, StartError
from pevensie.redis import _failures
from pevensie.redis._backoff import FAIL_FAST_AFTER, Backoff
from pevensie.redis._io.sockets import is_near
from pevensie.redis._ops import Op
from pevensie.redis._retry import Retry
from pevensie.redis._sync.connection import Connection
from pevensie.redis._sync.crowd import BATCH_BYTES, Batch, Caller, interrupted
from pevensie.redis._sync.dial import dial
from pevensie.redis.config import RedisConfig

T = TypeVar("T")

NEAR: Final = 3
"""Connections that are used at once, at most, to a server on this machine. Its round trip takes
little longer than the Python of two calls, so more threads at once only fight for the GIL."""

PATIENCE: Final = 0.005
"""Seconds that a call waits for the connection of a crowd, while there are others. Some ten times
what a batch takes on a server nearby; and CPython's switch interval, after which a thread that
computes gives way."""

DRAIN_STEP: Final = 0.005
"""Seconds between two looks at what is still in flight, while draining."""

_NEVER: Final = Retry.NEVER
_GIL: Final = getattr(sys, "_is_gil_enabled", lambda: True)()


class _Dial:
    """Something under way, for as long as its thread holds this: a dial, for which room is
    reserved, or a pause."""

    __slots__ = ("__weakref__",)


class Pool:
    """Connections to one server. Threads may share it."""

    __slots__ = (
        "_backoff", "_batch", "_closing", "_config", "_crowded", "_dial_ended", "_dials", "_idle",
        "_limit", "_lock", "_open", "_pauses", "_probe", "_refuses", "_waiters",
    )  # fmt: skip

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._limit = min(config.pool_size, NEAR) if _GIL and is_near(config) else config.pool_size
        """Connections that are used at once, unless a call would wait for too long."""
        self._backoff = Backoff(random.random)
        self._refuses = False
        """No more connections are handed out."""
        self._closing = False
        """No new calls are taken."""
        self._start_empty()

    def _start_empty(self) -> None:
        self._lock = threading.RLock()
        self._dial_ended = threading.Condition(self._lock)
        """A dial has ended, or will not begin."""
        self._idle: list[Connection] = []
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        """Idle and borrowed."""
        self._dials: weakref.WeakSet[_Dial] = weakref.WeakSet()
        self._pauses: weakref.WeakSet[_Dial] = weakref.WeakSet()
        """Calls between two attempts."""
        self._probe: weakref.ref[_Dial] | None = None
        """The dial to a server that could not be reached before."""
        self._waiters: deque[Caller] = deque()
        """Threads that wait for a connection, in order of arrival."""
        self._crowded = False
        """More threads ask than there are connections: their calls travel over one."""
        self._batch: weakref.ref[Batch] | None = None
        """Those that are under way; what waits will be served when they are back."""

    def __repr__(self) -> str:
        return (
            f"<Pool {self._config.address} open={len(self._open)} idle={len(self._idle)} "
            f"dials={len(self._dials)} waiting={len(self._waiters)} {self._backoff}>"
        )

    @property
    def in_use(self) -> bool:
        """Whether a connection is borrowed, or about to be."""
        return len(self._dials) + len(self._pauses) > 0 or len(self._open) > len(self._idle)

    # -- one call ----------------------------------------------------------------------------

    def execute(self, op: Op[T], deadline: float, *, again: bool = False) -> T:
        """Run *op* on a connection, by *deadline* (of ``time.monotonic``).

        *again*: it failed before, so look twice at the connection. Raises :exc:`PoolError`,
        :exc:`NotConnected`, how dialling failed, or what :meth:`Connection.execute` raises.
        """
        if self._closing and not again:
            raise _failures.not_connected()
        while not (self._waiters or self._crowded):
            try:
                connection = self._idle.pop()
            except IndexError:
                break
            # A connection that the server has closed is found by using it, and then most calls are
            # sent again. For those that never are, and where no token would show that it sent what
            # nobody asked for, it is looked at first.
            trusted = connection.checked and op.retry is not _NEVER and not again
            if not (trusted or connection.usable()):
                self._discard(connection)
                continue
            try:
                return connection.execute(op, deadline)
            finally:
                self._release(connection)
        result: T = self._queue(Caller(op, deadline))
        return result

    def _release(self, connection: Connection) -> None:
        """Put *connection* back; close it if it is not clean."""
        if connection.dirty or connection.outdated or self._refuses:
            self._discard(connection)
            return
        self._idle.append(connection)
        if self._waiters:
            with self._lock:
                self._serve()
        if self._refuses:
            self._close_idle()

    def _discard(self, connection: Connection) -> None:
        connection.close()
        with self._lock:
            self._open.discard(connection)
            self._serve()

    def start(self, deadline: float) -> None:
        """Open one connection and keep it, unless there is an idle one. One attempt."""
        with self._lock:
            if self._refuses:
                raise _failures.not_connected()
            if self._idle:
                return
            reserved = self._reserved()
        self._release(self._opened(reserved, deadline))

    # -- waiting -----------------------------------------------------------------------------

    def _queue(self, caller: Caller) -> Any:
        """The result of *caller*, once it is its turn, or another has read its reply.

        What a thread is to do when it is interrupted follows from ``caller.given``, wherever in
        here that is. So there is one place that cleans up.
        """
        try:
            while True:
                self._wait(caller)
                given = caller.given
                if isinstance(given, Batch):
                    if given.answered:
                        self._wake_after(given, caller.place)
                    else:
                        self._read(given, caller)
                    return given.outcome(caller)
                if isinstance(given, _Dial):
                    return self._lead(caller, self._dial(given, caller.deadline))
                assert isinstance(given, Connection)
                if not self._refuses and given.usable():
                    return self._lead(caller, given)
                caller.given = None
                self._discard(given)
        except BaseException as error:
            self._leave(caller, error)
            raise

    def _wait(self, caller: Caller) -> None:
        """Return when *caller* was given something, or raise."""
        acquire = caller.ready.acquire
        self._waiters.append(caller)
        if self._nothing_under_way() or self._refuses:
            with self._lock:
                if self._busy() >= self._limit:
                    self._crowded = True
                self._serve()
        left = caller.deadline - time.monotonic()
        woken = acquire(timeout=max(0.0, min(left, PATIENCE)))
        if not woken:
            with self._lock:
                self._serve(patient=False)
            left = caller.deadline - time.monotonic()
            woken = acquire(timeout=max(0.0, left))
        if woken and caller.given is not None:
            return
        with self._lock:
            given = caller.given
            if given is None:
                self._remove(caller)
            elif isinstance(given, Batch) and not given.answered and given.reader is not caller:
                given.left.add(caller)
            else:
                return
        if given is not None:
            raise _failures.no_reply(self._config.timeout_seconds, sent=True)
        if self._refuses:
            raise _failures.not_connected()
        raise PoolError(
            f"all {self._config.pool_size} connections were busy for "
            f"{self._config.timeout_seconds * 1000:.0f} ms; raise RedisConfig.pool_size"
        )

    def _leave(self, caller: Caller, error: BaseException) -> None:
        """Stop, because of *error*; what *caller* was given all the same goes to the next."""
        with self._lock:
            self._remove(caller)
            given = caller.given
            if isinstance(given, _Dial):
                self._dials.discard(given)
            elif isinstance(given, Connection):
                self._idle.append(given)
            elif isinstance(given, Batch):
                if not given.answered:
                    given.left.add(caller)
                    if given.reader is caller:
                        self._hand_over(given, error)
                if given.answered:
                    self._wake_after(given, caller.place)
            self._serve()
        if self._refuses:
            self._close_idle()

    def _nothing_under_way(self) -> bool:
        batch = self._batch
        return batch is None or batch() is None

    def _remove(self, caller: Caller) -> None:
        if caller in self._waiters:
            self._waiters.remove(caller)

    def _busy(self) -> int:
        """How many connections are in use, or about to be."""
        return len(self._open) - len(self._idle) + len(self._dials)

    def _serve(self, *, patient: bool = True) -> None:
        """Hand what is free to those who wait. The caller holds the lock."""
        if not self._waiters:
            return
        if not patient:
            limit = self._config.pool_size
        else:
            limit = 1 if self._crowded and _GIL else self._limit
        while self._waiters:
            caller = self._waiters[0]
            if caller.given is None and not self._refuses:
                if self._busy() >= limit:
                    return
                try:
                    caller.given = self._idle.pop()
                except IndexError:
                    # Somebody who had seen no waiter may have taken it meanwhile, without the lock.
                    if len(self._open) + len(self._dials) >= limit:
                        continue
                    caller.given = self._reserved()
            # In this order, so that nobody is forgotten if this thread is interrupted.
            caller.wake()
            self._waiters.popleft()

    # -- several calls on one connection -----------------------------------------------------

    def _lead(self, caller: Caller, connection: Connection) -> Any:
        """Use *connection* for *caller*, and for those who wait behind it."""
        caller.given = batch = Batch(connection, caller)
        with self._lock:
            self._gather(batch)
        if len(batch.callers) > 1:
            batch.send(caller.deadline)
            self._read(batch, caller)
            return batch.outcome(caller)
        caller.given = None
        try:
            return connection.execute(caller.op, caller.deadline)
        finally:
            self._release(connection)

    def _gather(self, batch: Batch) -> None:
        """Add those who wait to *batch*, in their order. The caller holds the lock."""
        waiters = self._waiters
        size = batch.callers[0].size
        try:
            while waiters and (size := size + waiters[0].size) <= BATCH_BYTES:
                if waiters[0].given is None:
                    batch.add(waiters[0])
                waiters.popleft()
        except BaseException:
            for caller in reversed(batch.callers[1:]):
                caller.given = None
                if caller not in waiters:
                    waiters.appendleft(caller)
            del batch.callers[1:]
            raise
        self._crowded = len(batch.callers) > 1
        if self._crowded:
            self._batch = weakref.ref(batch)

    def _read(self, batch: Batch, caller: Caller) -> None:
        """Read the replies to *batch*, for all who travel in it."""
        batch.replies = replies = batch.connection.receive(caller.deadline)
        with self._lock:
            batch.left.add(caller)
            batch.answer(replies)
        self._wake_after(batch, 0)

    def _wake_after(self, batch: Batch, place: int) -> None:
        """Wake those whose turn it is after *place*; the last one frees the connection."""
        if not batch.wake_after(place):
            return
        with self._lock:
            # The batch lets go of it: if this thread is interrupted here, nothing holds it.
            connection, batch.connection = batch.connection, None
            if self._batch is not None and self._batch() in (batch, None):
                self._batch = None
        if connection is not None:
            self._release(connection)

    def _hand_over(self, batch: Batch, error: BaseException) -> None:
        """The thread that reads for all has left, because of *error*: another goes on reading, or,
        unless the connection is fine, all fail. The caller holds the lock."""
        connection = batch.connection
        if batch.replies is not None:
            batch.answer(batch.replies)
        elif not batch.sent:
            batch.fail(interrupted(sent=False))
        elif isinstance(error, RedisError) and not isinstance(error, DeadlineExceeded):
            self._give_up(batch, error)
        elif connection.torn or not (connection.checked and connection.dirty):
            self._give_up(batch, interrupted(sent=True))
        elif batch.next_reader():
            return
        else:
            self._give_up(batch, interrupted(sent=True))
        self._wake_after(batch, 0)

    def _give_up(self, batch: Batch, error: RedisError) -> None:
        batch.connection.dirty = True
        batch.connection.close()
        batch.fail(error)

    # -- dialling ----------------------------------------------------------------------------

    def _reserved(self) -> _Dial:
        reserved = _Dial()
        self._dials.add(reserved)
        return reserved

    def _dial(self, reserved: _Dial, deadline: float) -> Connection:
        """A new connection, once it is this thread's turn to dial."""
        try:
            self._await_turn(reserved, deadline)
        except BaseException:
            self._dialled(reserved, None)
            raise
        return self._opened(reserved, deadline)

    def _opened(self, reserved: _Dial, deadline: float) -> Connection:
        started = time.monotonic()
        try:
            connection = dial(self._config, deadline)
        except BaseException as error:
            late = isinstance(error, StartError) and self._too_short(started, deadline)
            if isinstance(error, RedisError) and not late:
                with self._lock:
                    self._backoff.failed(error, started, time.monotonic())
            self._dialled(reserved, None)
            if isinstance(error, StartError) and late:
                raise _failures.no_connection(self._config.timeout_seconds, error) from error
            raise
        self._dialled(reserved, connection)
        with self._lock:
            refused = self._refuses
        if refused:
            self._discard(connection)
            raise _failures.not_connected()
        return connection

    def _dialled(self, reserved: _Dial, connection: Connection | None) -> None:
        with self._lock:
            self._dials.discard(reserved)
            if self._probe is not None and self._probe() in (reserved, None):
                self._probe = None
            if connection is not None:
                self._backoff.succeeded()
                self._open.add(connection)
            self._serve()
            self._dial_ended.notify_all()

    def _too_short(self, started: float, deadline: float) -> bool:
        """Whether a dial ran out of time because its caller had little left: not the server's
        failure."""
        return deadline - started < self._config.timeout_seconds / 2 and (
            time.monotonic() >= deadline
        )

    def _await_turn(self, reserved: _Dial, deadline: float) -> None:
        """Return when this thread may dial: at once if all is well, else one thread at a time,
        after the pause that is due."""
        backoff = self._backoff
        with self._lock:
            while backoff.failure is not None:
                if self._refuses:
                    raise _failures.not_connected()
                now = time.monotonic()
                probing = self._probe is not None and self._probe() is not None
                if not probing and now >= backoff.next_dial:
                    self._probe = weakref.ref(reserved)
                    return
                if backoff.failures >= FAIL_FAST_AFTER:
                    raise _failures.again(backoff.failure)
                if now >= deadline:
                    raise _failures.no_connection(self._config.timeout_seconds, backoff.failure)
                until = deadline if probing else min(deadline, backoff.next_dial)
                self._dial_ended.wait(until - now)

    # -- closing -----------------------------------------------------------------------------

    def drain(self, deadline: float) -> None:
        """Take no new calls; wait for those in flight until *deadline*; hand out no more."""
        self._closing = True
        # Polled: to be told would cost each call something, for what happens once in a life.
        while (self.in_use or self._waiters) and time.monotonic() < deadline:
            time.sleep(DRAIN_STEP)
        with self._lock:
            self._refuses = True
            self._serve()
            self._dial_ended.notify_all()
        self._close_idle()

    def close(self, *, force: bool) -> bool:
        """Close every connection and hand out no more. With *force* also under those who use them;
        without, ``False`` if somebody does, and then nothing was closed.
        """
        with self._lock:
            refused, self._refuses = self._refuses, True
            if self.in_use and not force:
                self._refuses = refused
                return False
            borrowed = list(self._open)
        self.drain(time.monotonic())
        for connection in borrowed:
            connection.give_up()
        return True

    def forget(self) -> None:
        """In a forked child: the connections are the parent's, and so is whoever held the lock."""
        inherited = list(self._open)
        self._start_empty()
        for connection in inherited:
            connection.dirty = False
            connection.close()

    def pause(self, seconds: float) -> None:
        """Sleep between two attempts of one call, which stays in flight."""
        paused = _Dial()
        self._pauses.add(paused)
        try:
            time.sleep(seconds)
        finally:
            self._pauses.discard(paused)

    def look_up_again(self) -> None:
        """Close what is idle, and the others when they are given back, since the server became a
        replica, so that its name is looked up again; not more often than is worth it."""
        with self._lock:
            due = self._backoff.may_look_up(time.monotonic())
            if due:
                for connection in list(self._open):
                    connection.outdated = True
        if due:
            self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self._discard(connection)
