"""One multiplexed connection: one socket, one event loop, many callers.

Theory of operation. A caller *submits* an operation and awaits the future that it gets, which ends
with the operation's result: it is read here, so that a call costs no coroutine more. What is
submitted within one turn of the loop is written together, as a *batch* that ends with ``ECHO
token``, or as several if it is much. Batches wait in a FIFO for their replies. The replies
of a batch are handed out together, once as many have come as it asked for and the last of them is
its token. Anything else closes the connection, and every caller gets an error.

Why: one reply lost, doubled or injected (by a proxy, say, or a server's bug) shifts all that come
after it, and with 40 calls in flight 39 callers would hold another's value before any timeout.

Rules.
 1. An entry leaves the FIFO only when its replies have arrived, or the connection has died.
    Cancelling or timing out a caller abandons its future, never its place.
 2. Between queueing and book-keeping there is no ``await`` and nothing raises: operations are
    bytes already. A caller that is cancelled before its bytes are written is never sent.
 3. Small parts are joined and written at once. Not ``writelines``: in CPython 3.12.0-3.12.8
    and 3.13.0-3.13.1 it never pauses the writer. Large parts are written as they are.
 4. One timer per connection, at the earliest deadline in the FIFO. A timer per call would double
    the cost of a call.
 5. After a timeout the connection is *suspect*. If within one more ``timeout`` neither a token nor
    any byte has come, it is closed with RST: a plain close would still send what is buffered.
 6. A reply that nobody waits for, and whatever the parser refuses, closes the connection.
 7. The write buffer is the transport's until it is full; then batches wait here, where callers
    that are cancelled can still be left out.

With ``integrity_checks=False`` batches end without a token until a call times out; then all that is
in flight is merged into one batch that does end with one, and so does each that follows. Where the
server does not know ECHO, a timeout closes the connection.

A call that fails goes to ``on_failure``, which tells its caller or queues it again, here or on the
next connection, with the same future.

It must never: hand out a reply that is not its caller's, send on behalf of a caller that has left,
hold a reference to the client above it.
"""

from __future__ import annotations

import asyncio
import os
import socket
from collections import deque
from collections.abc import Callable
from math import inf
from typing import Any, Final, NamedTuple, TypeAlias, TypeVar, cast

import hiredis

from pevensie.errors import ConnectionLost, UnknownResponseError
from pevensie.redis import _failures
from pevensie.redis._io.sockets import reset_on_close
from pevensie.redis._ops import Data, Kind, Op
from pevensie.redis._resp import (
    INCOMPLETE,
    LARGE,
    MAX_REPLY_BYTES,
    LargeValue,
    coalesced,
    new_reader,
    text_of,
)
from pevensie.redis._session import Tokens, echo

T = TypeVar("T")

MAX_CALLS: Final = 16_384
"""Unsent and unanswered calls on one connection. Far above what a loop can keep busy (throughput
levels off at some hundred), low enough that their book-keeping stays within a few megabytes."""

MAX_BYTES: Final = 64 * 1024 * 1024
"""Unsent and unanswered request bytes on one connection; one call may exceed it. Sixty-four
values of a megabyte: more in flight gain nothing and only make memory grow."""

WRITE_BUFFER: Final = 1024 * 1024
"""Bytes in the transport's buffer from which batches wait here. Asyncio's own 64 KiB would pause
for nearly every large value."""

BATCH_BYTES: Final = 16 * 1024
"""Request bytes in one batch: as much as Redis reads, executes and answers at a time
(PROTO_IOBUF_LEN). With larger ones this side would wait for the last answer before it hands out the
first; so it works on those while the server works on the rest."""

EAGER_CALLS: Final = 64
"""Calls that are written before the turn of the loop is over, so that the server begins with them
while the loop still runs tasks that will make more. One more system call for each 64 calls."""

PARSED_BYTES: Final = 16 * 1024
"""Bytes that the parser is given at a time. Each kilobyte or so that it has read, hiredis moves all
that it has not: of 200 replies of a kilobyte at once, that took two thirds of its time."""

TAIL_BYTES: Final = 28
"""A token and its CRLF."""

TIMER_RESOLUTION: Final = 0.01
"""Seconds between two looks at the deadlines: with 10,000 calls on a frozen server, each look is
a millisecond."""


Call: TypeAlias = tuple[asyncio.Future[Any], Data, Kind[Any] | Op[Any], float, int]
"""A call in the FIFO: its caller's future, what is sent and of which kind, its deadline, and which
attempt it is, from 1. A plain tuple, as there is one per call: what the garbage collector has to
visit is a fifth of the cost of a call, where a thousand wait."""


class _Batch(NamedTuple):
    """Calls that were written one after the other, and are answered together."""

    entries: list[Call]
    replies: int
    """How many it asked for, its token included."""
    token: bytes | None
    size: int
    """Bytes of its operations; of several that were written at once, a fair share."""


class Connection(asyncio.Protocol):
    """An open connection, used by one event loop."""

    __slots__ = (
        "_alarm",
        "_alarm_at",
        "_batches",
        "_bytes",
        "_calls",
        "_checked",
        "_completed",
        "_echoes",
        "_flush_scheduled",
        "_gets",
        "_large",
        "_last_token",
        "_last_was_lone",
        "_loop",
        "_on_failure",
        "_on_room",
        "_paused",
        "_pending",
        "_pending_bytes",
        "_reader",
        "_received",
        "_replies",
        "_since_reply",
        "_sock",
        "_suspicion",
        "_tail",
        "_timeout",
        "_tokens",
        "_transport",
        "_why",
        "closed",
        "lost",
        "queued",
    )

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        sock: socket.socket,
        *,
        timeout: float,
        tokens: Tokens,
        on_room: Callable[[int], None],
        on_failure: Callable[[Call, Exception], None],
    ) -> None:
        """*timeout*: seconds, for rule 5. *on_room*: told how many calls have left. *on_failure*:
        given each call that has failed, and whose caller still waits."""
        self._loop = loop
        self._sock = sock
        self._timeout = timeout
        self._tokens = tokens
        self._checked = False
        """Whether batches end with a token now."""
        self._on_room = on_room
        self._on_failure = on_failure
        self._transport: asyncio.Transport | None = None
        self.closed = False
        """No more calls may be submitted."""
        self.queued = False
        """Callers wait for room; kept by whoever lets them wait."""
        self.lost: asyncio.Future[None] = loop.create_future()
        """Done when the socket is closed."""
        self._echoes = False
        """Whether tokens can be used."""
        self._why: str | None = None
        """Why this side gave the connection up; None: it did not."""

        self._pending: list[Call] = []
        self._pending_bytes = 0
        self._flush_scheduled = False
        self._last_was_lone = False
        self._paused = False
        self._batches: deque[_Batch] = deque()
        self._calls = 0
        self._bytes = 0

        self._reader = new_reader()
        self._gets = self._reader.gets
        self._replies: list[Any] = []
        """Replies that have come for the first batch."""
        self._large: LargeValue | None = None
        """The next one, if it is large and not whole yet."""
        self._last_token: bytes | None = None
        """Of the last batch that was answered."""
        self._tail = b""
        """The last bytes received."""
        self._since_reply = 0
        """Bytes received since the last whole reply."""
        self._received = 0
        """How often bytes have come."""
        self._completed = 0
        """How many batches were answered."""

        self._alarm: asyncio.TimerHandle | None = None
        self._alarm_at = inf
        self._suspicion: asyncio.TimerHandle | None = None

    def __repr__(self) -> str:
        state = "closed" if self.closed else "suspect" if self._suspicion else "open"
        return (
            f"<Connection {state} pending={len(self._pending)} batches={len(self._batches)} "
            f"calls={self._calls} bytes={self._bytes}>"
        )

    # -- what callers use --------------------------------------------------------------------

    @property
    def in_use(self) -> bool:
        """Whether somebody waits for a reply."""
        # Copies: a thread that disconnects from another loop may be looking.
        batches = [batch.entries for batch in list(self._batches)]
        return any(
            not call[0].done() for entries in (list(self._pending), *batches) for call in entries
        )

    def submit(
        self,
        data: Data,
        kind: Kind[T] | Op[T],
        size: int,
        deadline: float,
        *,
        future: asyncio.Future[T] | None = None,
        attempt: int = 1,
        waited: bool = False,
    ) -> asyncio.Future[T] | None:
        """Queue an operation; *future*, or a new one, gets its result, or a :exc:`RedisError`.

        *size*: of *data*, in bytes. *deadline* is a time of the loop's clock. To leave, a caller
        cancels the future. ``None``: the connection is closed or full, or (unless *waited*) others
        were first.
        """
        if (
            self._calls >= MAX_CALLS
            or self._bytes >= MAX_BYTES
            or self.closed
            or (self.queued and not waited)
        ):
            return None
        if future is None:
            future = self._loop.create_future()
        self._pending.append((future, data, kind, deadline, attempt))
        self._pending_bytes += size
        self._bytes += size
        self._calls += 1
        if deadline < self._alarm_at:
            self._set_alarm(deadline)
        if not self._flush_scheduled:
            if self._last_was_lone and not self._batches:
                # One caller at a time: nobody to wait for, so save a turn of the loop.
                self._flush()
            else:
                self._flush_scheduled = True
                self._loop.call_soon(self._end_of_turn)
        elif len(self._pending) >= EAGER_CALLS:
            self._flush()
        return future

    def greeted(self, *, echoes: bool, integrity_checks: bool) -> None:
        """The handshake, the first operation, went well: from now on, check integrity."""
        self._echoes = echoes
        self._checked = echoes and integrity_checks

    def give_up(self, why: str) -> None:
        """Close with RST, now; whoever waits gets :exc:`ConnectionLost` that says *why*."""
        if self._why is None:
            self._why = why
        if self._transport is not None and not self.closed:
            reset_on_close(self._sock)
            self._transport.abort()
        self._fail_all(None)

    def close(self) -> None:
        """Close it, with RST if anything is unanswered: what is buffered must not be sent then."""
        if self._batches or self._pending:
            self.give_up("the cache was disconnected")
        elif self._transport is not None:
            self._why = self._why or "the cache was disconnected"
            self._transport.abort()
            self._fail_all(None)

    def disown(self, devnull: int) -> None:
        """In a forked child: let go of the parent's socket, and of nothing else.

        Closing the transport would take the socket out of the epoll set that the parent shares.
        """
        if self._sock.fileno() >= 0:
            os.dup2(devnull, self._sock.fileno())

    def orphaned(self) -> None:
        """The loop is closed, and with it every public way to close a transport: let go of it."""
        self.closed = True
        self._batches.clear()  # nobody can be told: their loop is closed
        self._pending.clear()
        transport, self._transport = self._transport, None
        if transport is not None:
            try:
                transport.abort()
            except RuntimeError:
                # Asyncio could not schedule its last step, so take it, or it warns when collected.
                getattr(transport, "_call_connection_lost", _no_last_step)(None)
        self._sock.close()

    # -- writing -----------------------------------------------------------------------------

    def _end_of_turn(self) -> None:
        self._flush_scheduled = False
        self._flush()

    def _flush(self) -> None:
        pending = self._pending
        if self._paused or self.closed or not pending:
            return
        self._pending = []
        size, self._pending_bytes = self._pending_bytes, 0
        if len(pending) == 1:
            entries = pending if not pending[0][0].done() else []
            self._last_was_lone = True
        else:
            entries = [entry for entry in pending if not entry[0].done()]
            self._last_was_lone = False
        left_out = len(pending) - len(entries)
        if left_out:
            self._calls -= left_out
            self._on_room(left_out)
            if not entries:
                self._bytes -= size
                return
        parts: list[bytes] = []
        if size <= BATCH_BYTES:
            self._add_batch(entries, size, parts)
        else:
            self._add_batches(entries, size, parts)
        assert self._transport is not None
        write = self._transport.write
        if size < LARGE:
            write(b"".join(parts))
        else:
            for part in coalesced(parts):
                write(part)

    def _add_batch(self, entries: list[Call], size: int, parts: list[bytes]) -> None:
        """Make a batch of *entries*, and add what is to be written for it to *parts*."""
        replies = 0
        for _, data, kind, _, _ in entries:
            if isinstance(data, bytes):
                parts.append(data)
            else:
                parts += data
            replies += kind.replies
        token = None
        if self._checked:
            token = self._tokens.next()
            parts.append(echo(token))
            replies += 1
        self._batches.append(_Batch(entries, replies, token, size))

    def _add_batches(self, entries: list[Call], size: int, parts: list[bytes]) -> None:
        """As :meth:`_add_batch`, but several, of about :data:`BATCH_BYTES` each."""
        count = len(entries)
        step = max(1, count * BATCH_BYTES // size)
        left = size
        for first in range(0, count, step):
            batch = entries[first : first + step]
            share = left if first + step >= count else size * len(batch) // count
            left -= share
            self._add_batch(batch, share, parts)

    # -- reading: asyncio.Protocol -----------------------------------------------------------

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's is none by inheritance
        self._transport.set_write_buffer_limits(high=WRITE_BUFFER)

    def data_received(self, data: bytes) -> None:
        if self.closed:
            return
        self._received += 1
        replies = self._replies
        before, size = len(replies), len(data)
        try:
            beside = size >= LARGE or self._large is not None
            self._parse(self._beside(data) if beside else data, replies)
            self._tail = data[-TAIL_BYTES:]
        except Exception as error:  # noqa: BLE001 - hiredis raises ProtocolError, MemoryError, TypeError
            self.give_up(f"it sent what is not RESP ({type(error).__name__})")
            return
        if len(replies) == before:
            self._since_reply += size
            if self._since_reply > MAX_REPLY_BYTES:
                self.give_up(f"it sent {self._since_reply} bytes without one whole reply")
            return
        self._since_reply = 0
        self._hand_out(replies)

    def _parse(self, data: bytes, replies: list[Any]) -> None:
        """Add the replies that *data* completes to *replies*."""
        size = len(data)
        start, step = 0, PARSED_BYTES
        while start < size:
            before = len(replies)
            self._reader.feed(data, start, min(step, size - start))
            replies.extend(iter(self._gets, INCOMPLETE))
            start += step
            if len(replies) == before:
                step = size  # a large reply is on its way: hand over the rest at once

    def _beside(self, data: bytes) -> bytes:
        """Keep what belongs to a large value; what is left for the parser."""
        if self._large is None:
            # Only where the last reply is known to have ended: inside an array that the parser has
            # begun, has_data() may be false too.
            if self._last_token is not None and self._tail == self._last_token + b"\r\n":
                self._large = LargeValue.begun(data)
            return data if self._large is None else b""
        rest = self._large.add(data)
        if rest is None:
            return b""
        self._replies.append(self._large.whole())
        self._large = None
        return rest

    def _hand_out(self, replies: list[Any]) -> None:
        """Answer the batches whose replies are all there."""
        batches = self._batches
        failed: list[tuple[Call, Exception]] = []
        answered = start = 0
        while start < len(replies):
            if not batches:
                unasked = replies[start]
                said = f": {text_of(unasked)}" if isinstance(unasked, hiredis.ReplyError) else ""
                self.give_up(f"it sent a reply that nobody waits for{said}")
                break
            batch = batches[0]
            end = start + batch.replies
            if end > len(replies):
                if batch.token is not None and replies[-1] == batch.token:
                    self.give_up(f"{end - len(replies)} of its replies were lost")
                break
            if batch.token is not None and replies[end - 1] != batch.token:
                self.give_up("its replies were out of step")
                break
            batches.popleft()
            self._last_token = batch.token
            self._completed += 1
            self._bytes -= batch.size
            self._calls -= len(batch.entries)
            answered += len(batch.entries)
            for call in batch.entries:
                future, _, kind, _, _ = call
                count = kind.replies
                reply: Any = replies[start] if count == 1 else replies[start : start + count]
                start += count
                if not future.done():
                    try:
                        future.set_result(kind.read(reply))
                    except Exception as error:  # noqa: BLE001 - if not a RedisError, a bug, and its caller's alone
                        failed.append((call, error))
            start = end
        if not self.closed:
            self._replies = replies[start:] if start < len(replies) else []
        if answered:
            self._on_room(answered)
        for call, failure in failed:
            if isinstance(failure, UnknownResponseError):
                self.give_up("one of its replies made no sense")
            self._on_failure(call, failure)

    def eof_received(self) -> None:
        # At once: asyncio would first try to write what is still buffered.
        self._fail_all(None)
        if self._transport is not None:
            self._transport.abort()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._flush()

    def connection_lost(self, exc: Exception | None) -> None:
        self._fail_all(exc)
        self._transport = None
        if not self.lost.done():
            self.lost.set_result(None)

    def _fail_all(self, cause: Exception | None) -> None:
        """Tell whoever waits that the connection is gone. The second time, nobody waits."""
        self.closed = True
        for timer in (self._alarm, self._suspicion):
            if timer is not None:
                timer.cancel()
        self._alarm = self._suspicion = None
        batches, self._batches = self._batches, deque()
        pending, self._pending = self._pending, []
        left, self._calls = self._calls, 0
        self._bytes = self._pending_bytes = 0
        for sent, entries in (*((True, batch.entries) for batch in batches), (False, pending)):
            for call in entries:
                if not call[0].done():
                    self._on_failure(call, self.loss(cause, sent=sent))
        self._replies = []
        self._on_room(left)

    def loss(self, cause: Exception | None = None, *, sent: bool) -> ConnectionLost:
        """The exception for a call that a closed connection could not answer."""
        if self._why is not None:
            message = f"the connection was given up: {self._why}"
        else:
            message = _failures.closed_by_server(self._replies)
        error = ConnectionLost(message, sent=sent, closed_by_server=self._why is None)
        error.__cause__ = cause
        return error

    # -- deadlines ---------------------------------------------------------------------------

    def _set_alarm(self, deadline: float) -> None:
        if self._alarm is not None:
            self._alarm.cancel()
        self._alarm_at = deadline
        self._alarm = self._loop.call_at(deadline, self._on_alarm)

    def _on_alarm(self) -> None:
        """Abandon the callers whose time is up, and look again at the next deadline."""
        self._alarm = None
        self._alarm_at = inf
        now = self._loop.time()
        sent_expired = False
        earliest = inf
        for sent, entries in (
            *((True, batch.entries) for batch in self._batches),
            (False, self._pending),
        ):
            for call in entries:
                deadline = call[3]
                if deadline > now:
                    earliest = min(earliest, deadline)
                    continue
                # Also of a caller that left earlier: its reply should have come by now.
                sent_expired |= sent
                if not call[0].done():
                    self._on_failure(call, _failures.no_reply(self._timeout, sent=sent))
        if sent_expired:
            self._suspect()
        if not self.closed and earliest < inf:
            self._set_alarm(max(earliest, now + TIMER_RESOLUTION))

    def _suspect(self) -> None:
        """A call that was sent has timed out (rule 5)."""
        if not self._checked:
            if not self._echoes:
                self.give_up("a call timed out, and without ECHO its reply could come later")
                return
            self._checked = True
            self._merge()
        if self._suspicion is None and not self.closed:
            self._expect_life()

    def _merge(self) -> None:
        """Hold back all replies that are in flight until a token has come."""
        token = self._tokens.next()
        entries = [entry for batch in self._batches for entry in batch.entries]
        replies = sum(batch.replies for batch in self._batches) + 1
        size = sum(batch.size for batch in self._batches)
        self._batches = deque([_Batch(entries, replies, token, size)])
        assert self._transport is not None
        self._transport.write(echo(token))

    def _expect_life(self) -> None:
        self._suspicion = self._loop.call_later(
            self._timeout, self._on_suspicion, self._completed, self._received
        )

    def _on_suspicion(self, completed: int, received: int) -> None:
        self._suspicion = None
        if self._completed != completed or not self._batches:
            return
        if self._received == received:
            self.give_up(f"it has not answered for {2 * self._timeout * 1000:.0f} ms")
        else:
            self._expect_life()


def _no_last_step(_: None) -> None:
    """For transports that are not asyncio's own."""
