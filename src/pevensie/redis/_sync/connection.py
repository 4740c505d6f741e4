"""One blocking connection, used by one thread at a time.

A connection is *dirty* from before the first byte of an operation is sent until its last reply was
read. Only a clean one may be used again, so a ``KeyboardInterrupt``, a signal handler that raises,
a timeout or a lost connection can never leave a half-read reply behind for the next caller. A call
has the connection to itself, so its replies need no token; but before each use, the socket is
looked at for bytes that nobody asked for and for its end.

The socket does not block; waiting is ``poll`` with what is left of the call's deadline, so that
signals (a profiler's, say) cannot prolong it.
"""

from __future__ import annotations

import socket
import ssl
import time
from typing import Any, Final, TypeVar

import hiredis

from pevensie.errors import ConnectionLost, DeadlineExceeded, UnknownResponseError
from pevensie.redis import _failures
from pevensie.redis._io.sockets import Readiness, reset_on_close
from pevensie.redis._ops import Op
from pevensie.redis._resp import INCOMPLETE, MAX_REPLY_BYTES, new_reader

T = TypeVar("T")

FIRST_READ: Final = 16 * 1024
"""Bytes to ask for at first: most replies are smaller, and a fresh buffer costs by its size."""
MORE_READ: Final = 1024 * 1024
"""Bytes to ask for once a read was full: a large value is on its way."""


class Connection:
    """An open connection. Its methods block."""

    __slots__ = (
        "__weakref__", "_encrypted", "_given_up", "_reader", "_ready", "_sock", "_timeout", "dirty",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        """*sock*: connected, not blocking. *timeout*: seconds, for messages."""
        self._sock = sock
        self._encrypted = isinstance(sock, ssl.SSLSocket)
        self._timeout = timeout
        self._reader = new_reader()
        self._ready = Readiness(sock)
        self.dirty = False
        """An operation began and its last reply was not read: never to be used again."""
        self._given_up = False
        """Another thread ended it under its user."""

    def __repr__(self) -> str:
        return f"<Connection fd={self._sock.fileno()} {'dirty' if self.dirty else 'clean'}>"

    def __del__(self) -> None:
        # Also where construction failed half-way; closing a descriptor is no I/O.
        sock = getattr(self, "_sock", None)
        if sock is not None:
            sock.close()

    def usable(self) -> bool:
        """Whether the other side has neither closed it nor sent what nobody asked for."""
        if not self._ready.to_read(0):
            return True
        if not self._encrypted:
            return False
        try:
            self._sock.recv(1)  # a TLS record may be none of the application's, such as a ticket
        except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
            return True
        except OSError:
            return False
        return False

    def execute(self, op: Op[T], deadline: float) -> T:
        """Send *op*, wait for its replies until *deadline* (of ``time.monotonic``), read them.

        Raises what ``op.read`` raises, :exc:`ConnectionLost` or :exc:`DeadlineExceeded`.
        """
        self.dirty = True
        self._send(op.data, deadline)
        replies = self._receive(op.replies, deadline)
        self.dirty = False
        try:
            return op.read(replies)
        except UnknownResponseError:
            self.dirty = True
            raise

    def close(self) -> None:
        """Close it; with RST if replies are outstanding, so that nothing buffered is still sent."""
        if self.dirty:
            try:
                reset_on_close(self._sock)
            except OSError:
                pass  # closed already
        self._sock.close()

    def give_up(self) -> None:
        """End it under the thread that uses it, which gets :exc:`ConnectionLost`, soon."""
        self._given_up = True
        try:
            # Not SSLSocket's own, which would take the TLS state away from the other thread.
            socket.socket.shutdown(self._sock, socket.SHUT_RDWR)
        except OSError:
            pass  # not connected any more

    # -- sending and receiving ---------------------------------------------------------------

    def _send(self, data: tuple[bytes, ...], deadline: float) -> None:
        send = self._sock.send
        begun = False
        try:
            for part in data:
                try:
                    count = send(part)
                except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    count = 0
                begun = begun or count > 0
                if count != len(part):
                    begun = True
                    self._send_rest(part, count, deadline)
        except OSError as error:
            if isinstance(error, DeadlineExceeded):
                raise
            raise self._lost(error, self._last_words(), sent=begun) from error

    def _last_words(self) -> list[Any]:
        """What the other side has said before it closed."""
        try:
            self._reader.feed(self._sock.recv(FIRST_READ))
            return [self._reader.gets()]
        except (OSError, hiredis.ProtocolError):
            return []

    def _send_rest(self, part: bytes, count: int, deadline: float) -> None:
        with memoryview(part) as view:
            while count < len(part):
                left = deadline - time.monotonic()
                if left <= 0 or not self._ready.to_write(left):
                    raise _failures.no_reply(self._timeout, sent=True)
                try:
                    count += self._sock.send(view[count:])
                except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass

    def _receive(self, count: int, deadline: float) -> Any:
        """*count* replies: the bare reply if it is one, a list if they are several."""
        feed, gets = self._reader.feed, self._reader.gets
        replies: list[Any] = []
        size, since_reply = FIRST_READ, 0
        while True:
            data = self._read(size, replies, deadline)
            if len(data) == size:
                size = MORE_READ
            since_reply += len(data)
            try:
                feed(data)
                while (reply := gets()) is not INCOMPLETE:
                    replies.append(reply)
                    since_reply = 0
            except Exception as error:
                raise UnknownResponseError(
                    f"the server sent what is not RESP ({type(error).__name__}); is this a "
                    "Redis-compatible server?"
                ) from error
            if len(replies) == count and not self._reader.has_data():
                return replies[0] if count == 1 else replies
            if len(replies) >= count:
                raise ConnectionLost(
                    "the connection was given up: the server sent more than it was asked for",
                    closed_by_server=False,
                )
            if since_reply > MAX_REPLY_BYTES:
                raise UnknownResponseError(
                    f"the server sent {since_reply} bytes without one whole reply"
                )

    def _read(self, size: int, replies: list[Any], deadline: float) -> bytes:
        """Some bytes, at least one, after *replies*. Encrypted ones may be waiting in the TLS layer
        already."""
        wait = not self._encrypted
        while True:
            left = deadline - time.monotonic()
            if left <= 0 or (wait and not self._ready.to_read(left)):
                raise _failures.no_reply(self._timeout, sent=True)
            try:
                data = self._sock.recv(size)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                wait = True
                continue
            except OSError as error:
                raise self._lost(error, replies, sent=True) from error
            if not data:
                raise self._lost(None, replies, sent=True)
            return data

    def _lost(self, error: OSError | None, replies: list[Any], *, sent: bool) -> ConnectionLost:
        if self._given_up:
            return ConnectionLost("the cache was disconnected", sent=sent, closed_by_server=False)
        reason = "" if error is None else f" ({error.strerror or type(error).__name__})"
        return ConnectionLost(_failures.closed_by_server(replies, reason), sent=sent)
