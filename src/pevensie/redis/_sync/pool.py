"""The pool: up to ``pool_size`` connections that threads borrow, one call at a time.

``_idle`` is a stack, so that few connections stay warm. Taking from it and putting back are single
steps of a list and need no lock; the lock is for everything else: growing, waiting, closing.

Who waits is served in order of arrival: what becomes free is handed to the first, and nobody takes
from the stack while somebody waits, or a busy thread could starve the others. No wake-up is lost:
who waits joins ``_waiters`` first and then serves the queue itself; who gives back appends first
and then looks at ``_waiters``.

``_open`` holds every open connection weakly, ``_dials`` and ``_pauses`` what is under way. A thread
that is interrupted, wherever that is, drops the last reference: the connection is closed, and there
is room for another. So no counter can be left wrong.

While the server cannot be reached, one thread dials at a time; see
:mod:`pevensie.redis._backoff` for who waits for it and who is refused.
"""

from __future__ import annotations

import random
import threading
import time
import weakref
from collections import deque

from pevensie.errors import PoolError, RedisError, StartError
from pevensie.redis import _failures
from pevensie.redis._backoff import FAIL_FAST_AFTER, Backoff
from pevensie.redis._sync.connection import Connection
from pevensie.redis._sync.dial import dial
from pevensie.redis.config import RedisConfig


class _Dial:
    """Something under way, for as long as its thread holds this: a dial, for which room is
    reserved, or a pause."""

    __slots__ = ("__weakref__",)


class _Waiter:
    """A thread that waits, and what it is given: a connection, or leave to dial one."""

    __slots__ = ("given", "ready")

    def __init__(self) -> None:
        self.ready = threading.Lock()
        self.ready.acquire()
        self.given: Connection | _Dial | None = None


class Pool:
    """Connections to one server. Threads may share it."""

    __slots__ = (
        "_backoff", "_config", "_dial_ended", "_dials", "_idle", "_lock", "_open", "_pauses",
        "_probe", "_refuses", "_waiters",
    )  # fmt: skip

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._backoff = Backoff(random.random)
        self._refuses = False
        """No more connections are handed out."""
        self._start_empty()

    def _start_empty(self) -> None:
        self._lock = threading.RLock()
        self._dial_ended = threading.Condition(self._lock)
        """A dial or a pause has ended, or, while draining, a connection was closed."""
        self._idle: list[Connection] = []
        self._open: weakref.WeakSet[Connection] = weakref.WeakSet()
        """Idle and borrowed."""
        self._dials: weakref.WeakSet[_Dial] = weakref.WeakSet()
        self._pauses: weakref.WeakSet[_Dial] = weakref.WeakSet()
        """Calls between two attempts."""
        self._probe: weakref.ref[_Dial] | None = None
        """The dial to a server that could not be reached before."""
        self._waiters: deque[_Waiter] = deque()
        """Threads that wait for a connection, in order of arrival."""

    def __repr__(self) -> str:
        return (
            f"<Pool {self._config.address} open={len(self._open)} idle={len(self._idle)} "
            f"dials={len(self._dials)} waiting={len(self._waiters)} {self._backoff}>"
        )

    @property
    def in_use(self) -> bool:
        """Whether a connection is borrowed, or about to be."""
        return len(self._dials) + len(self._pauses) > 0 or len(self._open) > len(self._idle)

    # -- borrowing ---------------------------------------------------------------------------

    def acquire(self, deadline: float) -> Connection:
        """A connection that is fit for use, until :meth:`release`.

        Waits for one until *deadline* (of ``time.monotonic``); opens one if there is room. Raises
        :exc:`PoolError`, :exc:`NotConnected` or how dialling failed.
        """
        while True:
            connection: Connection | _Dial
            try:
                connection = self._wait(deadline) if self._waiters else self._idle.pop()
            except IndexError:
                connection = self._wait(deadline)
            if isinstance(connection, _Dial):
                return self._dial(connection, deadline)
            if not self._refuses and connection.usable():
                return connection
            self._discard(connection)

    def release(self, connection: Connection) -> None:
        """Give back what :meth:`acquire` returned. What is not clean is closed."""
        if connection.dirty or self._refuses:
            self._discard(connection)
            return
        self._idle.append(connection)
        if self._waiters:
            with self._lock:
                self._serve()
        if self._refuses:
            self._close_idle()

    def start(self, deadline: float) -> None:
        """Open one connection and keep it, unless there is an idle one. One attempt."""
        with self._lock:
            if self._refuses:
                raise _failures.not_connected()
            if self._idle:
                return
            reserved = self._reserved()
        self.release(self._opened(reserved, deadline))

    def _wait(self, deadline: float) -> Connection | _Dial:
        """An idle connection as soon as it is this thread's turn, or leave to dial another."""
        waiter = _Waiter()
        with self._lock:
            if self._refuses:
                raise _failures.not_connected()
            self._waiters.append(waiter)
            self._serve()
        try:
            waiter.ready.acquire(timeout=max(0.0, deadline - time.monotonic()))
        except BaseException:
            self._leave(waiter)
            raise
        with self._lock:
            if waiter.given is not None:
                return waiter.given
            self._leave(waiter)
        if self._refuses:
            raise _failures.not_connected()
        raise PoolError(
            f"all {self._config.pool_size} connections were busy for "
            f"{self._config.timeout_seconds * 1000:.0f} ms; raise RedisConfig.pool_size"
        )

    def _leave(self, waiter: _Waiter) -> None:
        """Stop waiting; what this thread was given all the same goes to the next."""
        with self._lock:
            if waiter in self._waiters:
                self._waiters.remove(waiter)
            if isinstance(waiter.given, _Dial):
                self._dials.discard(waiter.given)
            elif waiter.given is not None:
                self._idle.append(waiter.given)
            self._serve()
        if self._refuses:
            self._close_idle()

    def _serve(self) -> None:
        """Hand what is free to those who wait. The caller holds the lock."""
        while self._waiters:
            given: Connection | _Dial
            try:
                given = self._idle.pop()
            except IndexError:
                if len(self._open) + len(self._dials) >= self._config.pool_size:
                    return
                given = self._reserved()
            waiter = self._waiters.popleft()
            waiter.given = given
            waiter.ready.release()

    def _discard(self, connection: Connection) -> None:
        connection.close()
        with self._lock:
            self._open.discard(connection)
            self._serve()
            if self._refuses:
                self._dial_ended.notify_all()

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
        """Hand out no more connections; wait for those that are borrowed until *deadline*."""
        with self._lock:
            self._refuses = True
            while self._waiters:
                self._waiters.popleft().ready.release()
            self._dial_ended.notify_all()
        self._close_idle()
        with self._lock:
            while self.in_use and (left := deadline - time.monotonic()) > 0:
                self._dial_ended.wait(left)

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
            with self._lock:
                self._pauses.discard(paused)
                self._dial_ended.notify_all()

    def look_up_again(self) -> None:
        """Close what is idle, since the server became a replica, so that its name is looked up
        again; not more often than is worth it."""
        with self._lock:
            due = self._backoff.may_look_up(time.monotonic())
        if due:
            self._close_idle()

    def _close_idle(self) -> None:
        while self._idle:
            try:
                connection = self._idle.pop()
            except IndexError:
                return
            self._discard(connection)
