"""One blocking connection, used by one thread at a time.

What is written, by one call or for several, ends with ``ECHO token``; its replies count only once
that token has come back in its place. So a reply that was lost, doubled, injected, or left over
from a call that timed out, never becomes another call's. Where tokens are not used
(``integrity_checks=False``, or a server that refuses ECHO), the socket is looked at before each
use instead: for bytes that nobody asked for, and for its end.

A connection is *dirty* from before the first byte of a write until its last reply was read. Only a
clean one may be used again, so a ``KeyboardInterrupt``, a signal handler that raises, a timeout or
a lost connection can never leave a half-read reply behind for the next caller.

The socket does not block; waiting is ``poll`` with what is left of the call's deadline, so that
signals (a profiler's, say) cannot prolong it. Each system call lets go of the GIL, and with many
threads that costs more than the call itself: so there are three to a round trip, not one more.
"""

from __future__ import annotations

import socket
import ssl
from time import monotonic
from typing import Any, Final, TypeVar

import hiredis

from pevensie.errors import ConnectionLost, DeadlineExceeded, UnknownResponseError
from pevensie.redis import _failures
from pevensie.redis._io.sockets import Readiness, reset_on_close
from pevensie.redis._ops import Op
from pevensie.redis._resp import (
    INCOMPLETE,
    LARGE,
    MAX_REPLY_BYTES,
    LargeValue,
    keep_freed_memory,
    new_reader,
)
from pevensie.redis._session import Tokens

T = TypeVar("T")

FIRST_READ: Final = 16 * 1024
"""Bytes to ask for at first: most replies are smaller, and a fresh buffer costs by its size."""
MORE_READ: Final = 1024 * 1024
"""Bytes to ask for once a read was full: a large value is on its way."""


class Connection:
    """An open connection. Its methods block."""

    __slots__ = (
        "__weakref__", "_awaited", "_encrypted", "_fed", "_feed", "_gets", "_given_up", "_large",
        "_poll", "_reader", "_ready", "_replies", "_sock", "_timeout", "_token", "_tokens",
        "checked", "dirty", "outdated", "torn",
    )  # fmt: skip

    def __init__(self, sock: socket.socket, timeout: float) -> None:
        """*sock*: connected, not blocking. *timeout*: seconds, for messages."""
        self._sock = sock
        self._encrypted = isinstance(sock, ssl.SSLSocket)
        self._timeout = timeout
        self._reader = new_reader()
        self._feed, self._gets = self._reader.feed, self._reader.gets
        self._ready = Readiness(sock)
        self._poll = self._ready.poll
        self._tokens: Tokens | None = None
        self.checked = False
        """Each write ends with a token."""
        self.dirty = False
        """A write began and its last reply was not read: never to be used again."""
        self.outdated = False
        """Its server became a replica: not to be used again, once its user is done."""
        self.torn = False
        """Something is half-way: if its thread leaves now, nobody can go on."""
        self._given_up = False
        """Another thread ended it under its user."""

        self._token: bytes | None = None
        self._awaited = 0
        """How many replies the last write asked for, its token included."""
        self._replies: list[Any] = []
        """Those that have come."""
        self._fed = False
        """Since the last write the parser got something: it may be inside an array now, which
        ``has_data()`` does not tell."""
        self._large: LargeValue | None = None
        """The next one, if it is large and not whole yet."""

    def __repr__(self) -> str:
        return f"<Connection fd={self._sock.fileno()} {'dirty' if self.dirty else 'clean'}>"

    def __del__(self) -> None:
        # Also where construction failed half-way; closing a descriptor is no I/O.
        sock = getattr(self, "_sock", None)
        if sock is not None:
            sock.close()

    def check_with(self, tokens: Tokens) -> None:
        """From now on, end each write with a token."""
        self._tokens = tokens
        self.checked = True

    def usable(self) -> bool:
        """Whether the other side has neither closed it nor sent what nobody asked for."""
        if not self._poll(0):
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
        count = op.replies
        self.send(op.data, count, deadline)
        replies = self.receive(deadline)
        try:
            return op.read(replies[0] if count == 1 else replies[:count])
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

    # -- sending -----------------------------------------------------------------------------

    def send(self, data: tuple[bytes, ...], replies: int, deadline: float) -> None:
        """Send *data*, to which there will be so many *replies*, and a token."""
        self.dirty = self.torn = True
        self._replies = []
        self._fed = False
        self._awaited = replies
        if self._tokens is not None:
            self._awaited += 1
            if len(data) == 1 and len(data[0]) < LARGE:
                self._token, sealed = self._tokens.sealed(data[0])
                data = (sealed,)
            else:
                self._token, command = self._tokens.sealed(b"")
                data = (*data, command)
        begun = False
        try:
            for part in data:
                try:
                    count = self._sock.send(part)
                except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    count = 0
                if count != len(part):
                    begun = True
                    self._send_rest(part, count, deadline)
                begun = True
        except OSError as error:
            if isinstance(error, DeadlineExceeded):
                raise
            raise self._lost(error, self._last_words(), sent=begun) from error
        self.torn = False

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
                left = deadline - monotonic()
                if left <= 0 or not self._ready.to_write(left):
                    raise _failures.no_reply(self._timeout, sent=True)
                try:
                    count += self._sock.send(view[count:])
                except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                    pass

    # -- receiving ---------------------------------------------------------------------------

    def receive(self, deadline: float) -> list[Any]:
        """Wait for the replies to the last write until *deadline*; the last is the
        token, if there are tokens.

        After :exc:`DeadlineExceeded`, or an interruption that did not leave it *torn*, another
        thread may go on with this.
        """
        replies, awaited = self._replies, self._awaited
        size, seen = FIRST_READ, len(replies)
        since_reply = 0 if self._large is None else 1
        # Encrypted bytes may be waiting in the TLS layer already, where poll does not see them.
        wait = not self._encrypted
        while len(replies) < awaited:
            left = deadline - monotonic()
            if left <= 0 or (wait and not self._poll(left * 1000)):
                raise _failures.no_reply(self._timeout, sent=True)
            self.torn = True
            try:
                data = self._sock.recv(size)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self.torn = False
                wait = True
                continue
            except OSError as error:
                raise self._lost(error, replies, sent=True) from error
            if not data:
                raise self._lost(None, replies, sent=True)
            count = len(data)
            try:
                if self._large is not None or (count == size and not self._fed):
                    data = self._beside(data)
                if data:
                    self._fed = True
                    self._feed(data)
                while (reply := self._gets()) is not INCOMPLETE:
                    replies.append(reply)
            except Exception as error:
                raise UnknownResponseError(
                    f"the server sent what is not RESP ({type(error).__name__}); is this a "
                    "Redis-compatible server?"
                ) from error
            self.torn = False
            if len(replies) >= awaited:
                break
            if count == size:
                size = MORE_READ
                keep_freed_memory()
            since_reply = 0 if len(replies) > seen else since_reply + count
            seen = len(replies)
            if since_reply > MAX_REPLY_BYTES:
                raise UnknownResponseError(
                    f"the server sent {since_reply} bytes without one whole reply"
                )
            if self._token is not None and replies and replies[-1] == self._token:
                raise _out_of_step(f"{awaited - seen} of its replies were lost")
        if len(replies) > awaited or self._reader.has_data():
            raise _out_of_step("it sent more than it was asked for")
        if self._token is not None and replies[-1] != self._token:
            raise _out_of_step("its replies were out of step")
        self.dirty = False
        return replies

    def _beside(self, data: bytes) -> bytes:
        """Keep what belongs to a large value; what is left for the parser."""
        if self._large is None:
            self._large = LargeValue.begun(data)
            return data if self._large is None else b""
        rest = self._large.add(data)
        if rest is None:
            return b""
        self._replies.append(self._large.whole())
        self._large = None
        return rest

    def _lost(self, error: OSError | None, replies: list[Any], *, sent: bool) -> ConnectionLost:
        if self._given_up:
            return ConnectionLost("the cache was disconnected", sent=sent, closed_by_server=False)
        reason = "" if error is None else f" ({error.strerror or type(error).__name__})"
        return ConnectionLost(_failures.closed_by_server(replies, reason), sent=sent)


def _out_of_step(why: str) -> ConnectionLost:
    return ConnectionLost(f"the connection was given up: {why}", closed_by_server=False)
