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
from pevensie.redis._resp import INCOMPLETE, LARGE, MAX_REPLY_BYTES, new_reader
from pevensie.redis._session import Tokens

T = TypeVar("T")

FIRST_READ: Final = 16 * 1024
"""Bytes to ask for at first: most replies are smaller, and a fresh buffer costs by its size."""
MORE_READ: Final = 1024 * 1024
"""Bytes to ask for once a read was full: a large value is on its way."""


class Connection:
    """An open connection. Its methods block."""

    __slots__ = (
        "__weakref__", "_awaited", "_encrypted", "_feed", "_gets", "_given_up", "_poll", "_reader",
        "_ready", "_replies", "_seen", "_since_reply", "_sock", "_timeout", "_token", "_tokens",
        "checked", "dirty", "torn",
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
        self.torn = False
        """Something is half-way: if its thread leaves now, nobody can go on."""
        self._given_up = False
        """Another thread ended it under its user."""

        self._token: bytes | None = None
        self._awaited = 0
        """How many replies the last write asked for, its token included."""
        self._replies: list[Any] = []
        """Those that have come."""
        self._since_reply = 0
        """Bytes received since the last whole one."""
        self._seen = 0
        """How many there were then."""

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
            return op.read(replies[0] if count == 1 else replies)
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
        """Wait for the replies to the last write until *deadline*; without the token.

        After :exc:`DeadlineExceeded`, or an interruption that did not leave it *torn*, another
        thread may go on with this.
        """
        replies, awaited, token = self._replies, self._awaited, self._token
        poll, recv, feed, gets = self._poll, self._sock.recv, self._feed, self._gets
        size = FIRST_READ
        # Encrypted bytes may be waiting in the TLS layer already, where poll does not see them.
        wait = not self._encrypted
        while True:
            left = deadline - monotonic()
            if left <= 0 or (wait and not poll(left * 1000)):
                raise _failures.no_reply(self._timeout, sent=True)
            self.torn = True
            try:
                data = recv(size)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                self.torn = False
                wait = True
                continue
            except OSError as error:
                raise self._lost(error, replies, sent=True) from error
            if not data:
                raise self._lost(None, replies, sent=True)
            try:
                feed(data)
                while (reply := gets()) is not INCOMPLETE:
                    replies.append(reply)
            except Exception as error:
                raise UnknownResponseError(
                    f"the server sent what is not RESP ({type(error).__name__}); is this a "
                    "Redis-compatible server?"
                ) from error
            self.torn = False
            if len(replies) >= awaited:
                break
            self._check_progress(data)
            if len(data) == size:
                size = MORE_READ
        if len(replies) > awaited or self._reader.has_data():
            raise _out_of_step("it sent more than it was asked for")
        if token is not None and replies.pop() != token:
            raise _out_of_step("its replies were out of step")
        self._seen = self._since_reply = 0
        self.dirty = False
        return replies

    def _check_progress(self, data: bytes) -> None:
        """Raise if it is clear after *data* already that the rest will not come, or never ends."""
        replies = self._replies
        if replies and replies[-1] == self._token:
            raise _out_of_step(f"{self._awaited - len(replies)} of its replies were lost")
        if len(replies) > self._seen:
            self._seen, self._since_reply = len(replies), 0
            return
        self._since_reply += len(data)
        if self._since_reply > MAX_REPLY_BYTES:
            raise UnknownResponseError(
                f"the server sent {self._since_reply} bytes without one whole reply"
            )

    def _lost(self, error: OSError | None, replies: list[Any], *, sent: bool) -> ConnectionLost:
        if self._given_up:
            return ConnectionLost("the cache was disconnected", sent=sent, closed_by_server=False)
        reason = "" if error is None else f" ({error.strerror or type(error).__name__})"
        return ConnectionLost(_failures.closed_by_server(replies, reason), sent=sent)


def _out_of_step(why: str) -> ConnectionLost:
    return ConnectionLost(f"the connection was given up: {why}", closed_by_server=False)
