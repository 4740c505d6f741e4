"""The proof of the FIFO: whatever happens, a caller gets its own reply or an error.

A state machine drives one async connection over a transport in memory and a clock that only it
moves: callers come, leave and time out; the server answers in pieces, sends errors, loses, doubles
and injects replies, closes; the write buffer fills and empties. Every key is used once, and the
reply to it is the key, so that a reply in the wrong hands is seen.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import socket
from collections import deque
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import hiredis
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from pevensie.errors import ConnectionLost, DeadlineExceeded, ServerError
from pevensie.redis import _ops
from pevensie.redis._async.connection import Connection
from pevensie.redis._session import Tokens

TIMEOUT = 1.0


class Loop:
    """As much of an event loop as futures and a connection need, with a clock of its own."""

    def __init__(self) -> None:
        self.now = 0.0
        self._ready: deque[tuple[Callable[..., Any], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, Any]] = []
        self._numbers = itertools.count()

    def time(self) -> float:
        return self.now

    def get_debug(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)  # type: ignore[arg-type]

    def call_soon(self, callback: Callable[..., Any], *args: Any, context: Any = None) -> None:
        self._ready.append((callback, args))

    def call_at(self, when: float, callback: Callable[..., Any], *args: Any) -> Any:
        timer = SimpleNamespace(callback=callback, args=args, cancelled=False)
        timer.cancel = lambda: setattr(timer, "cancelled", True)
        heapq.heappush(self._timers, (when, next(self._numbers), timer))
        return timer

    def call_later(self, delay: float, callback: Callable[..., Any], *args: Any) -> Any:
        return self.call_at(self.now + delay, callback, *args)

    def run(self) -> None:
        """One turn: what is ready now."""
        for _ in range(len(self._ready)):
            callback, args = self._ready.popleft()
            callback(*args)

    def advance(self, seconds: float) -> None:
        """Let time pass, and the timers that are due run, in order."""
        until = self.now + seconds
        while self._timers and self._timers[0][0] <= until:
            self.now, _, timer = heapq.heappop(self._timers)
            if not timer.cancelled:
                timer.callback(*timer.args)
            self.run()
        self.now = until


class Transport:
    """Collects what is written; the test says when it is closed."""

    def __init__(self) -> None:
        self.written = bytearray()
        self.closing = False

    def set_write_buffer_limits(self, high: int) -> None:
        assert high > 0

    def write(self, data: bytes) -> None:
        assert not self.closing
        self.written += data

    def abort(self) -> None:
        self.closing = True

    close = abort


class Fifo(RuleBasedStateMachine):
    @initialize(integrity_checks=st.sampled_from([True, True, True, False]))
    def connect(self, integrity_checks: bool) -> None:
        self.loop = Loop()
        self.transport = Transport()
        self.freed = 0
        self.connection = Connection(
            self.loop,  # type: ignore[arg-type]
            SimpleNamespace(family=socket.AF_UNIX),  # type: ignore[arg-type]
            timeout=TIMEOUT,
            tokens=Tokens(b"0123456789abcdef"),
            on_room=self.on_room,
            on_failure=self.on_failure,
        )
        self.connection.connection_made(self.transport)  # type: ignore[arg-type]
        self.connection.greeted(echoes=True, integrity_checks=integrity_checks)
        self.checked = integrity_checks
        self.server = hiredis.Reader(notEnoughData=Ellipsis)
        self.replies: deque[bytes] = deque()
        """What the server has still to say."""
        self.buffer = bytearray()
        """What it has said and the connection has not received."""
        self.calls: dict[bytes, tuple[asyncio.Future[Any], Any, float]] = {}
        self.sent: set[bytes] = set()
        self.numbers = itertools.count()
        self.faulty = False

    def on_room(self, calls: int) -> None:
        assert calls >= 0
        self.freed += calls

    def on_failure(self, call: Any, error: Exception) -> None:
        future = call[0]
        assert not future.done(), "nobody is told about a call that has left"
        future.set_exception(error)

    def serve(self) -> None:
        """Let the server execute what was written."""
        self.server.feed(bytes(self.transport.written))
        self.transport.written.clear()
        while (words := self.server.gets()) is not Ellipsis:
            if words[0] == b"ECHO":
                self.replies.append(b"$%d\r\n%b\r\n" % (len(words[1]), words[1]))
            elif words[0] in (b"PERSIST", b"EXISTS"):
                self.replies.append(b":1\r\n")
            elif words[1].endswith(b"!"):
                self.replies.append(b"-OOM %b\r\n" % words[1])
            else:
                self.replies.append(b"$%d\r\n%b\r\n" % (len(words[1]), words[1]))
            if words[0] != b"ECHO":
                assert words[1] in self.calls
                self.sent.add(words[1])

    # -- callers -------------------------------------------------------------------------------

    @rule(
        kinds=st.lists(st.sampled_from(["get", "get", "error", "touch"]), min_size=1, max_size=5),
        patience=st.floats(0.05, TIMEOUT),
    )
    def submit(self, kinds: list[str], patience: float) -> None:
        for kind in kinds:
            self.submit_one(kind, patience)

    def submit_one(self, kind: str, patience: float) -> None:
        key = b"%d%b" % (next(self.numbers), b"!" if kind == "error" else b"")
        op: Any = _ops.touch(key, None) if kind == "touch" else _ops.get(key)
        deadline = self.loop.now + patience
        future = self.connection.submit(op.data, op, len(op.data[0]), deadline)
        assert (future is None) == self.connection.closed
        if future is not None:
            self.calls[key] = (future, op, deadline)

    @precondition(lambda self: self.calls)
    @rule(which=st.integers(0, 1000))
    def cancel(self, which: int) -> None:
        key = list(self.calls)[which % len(self.calls)]
        self.serve()
        written = key in self.sent
        future = self.calls[key][0]
        if future.cancel() and not written:
            self.loop.run()
            self.serve()
            assert key not in self.sent, "who leaves before the write is never sent"

    @rule()
    def turn(self) -> None:
        self.loop.run()

    @rule(seconds=st.floats(0.001, 1.5 * TIMEOUT))
    def wait(self, seconds: float) -> None:
        self.loop.advance(seconds)
        for future, _, deadline in self.calls.values():
            assert future.done() or deadline > self.loop.now - 0.02, "a deadline has passed"

    # -- the server ----------------------------------------------------------------------------

    @rule(count=st.integers(1, 20))
    def answer(self, count: int) -> None:
        self.serve()
        for _ in range(min(count, len(self.replies))):
            self.buffer += self.replies.popleft()

    @precondition(lambda self: self.buffer)
    @rule(size=st.integers(1, 20) | st.just(10_000))
    def receive(self, size: int) -> None:
        data = bytes(self.buffer[:size])
        del self.buffer[:size]
        self.connection.data_received(data)

    @precondition(lambda self: self.checked and not self.faulty)
    @rule(at=st.integers(0, 1000), fault=st.sampled_from(["lose", "double", "inject", "push"]))
    def disturb(self, at: int, fault: str) -> None:
        """Once per connection: two faults may cancel out, which is outside the promise."""
        self.serve()
        if not self.replies:
            return
        self.faulty = True
        at %= len(self.replies)
        if fault == "lose":
            del self.replies[at]
        elif fault == "double":
            self.replies.insert(at, self.replies[at])
        elif fault == "inject":
            self.replies.insert(at, b"$8\r\nstranger\r\n")
        else:
            self.replies.insert(at, b">2\r\n+invalidate\r\n*1\r\n+x\r\n")

    @precondition(lambda self: self.checked and not self.faulty)
    @rule(
        calls=st.integers(2, 5),
        at=st.integers(0, 1000),
        fault=st.sampled_from(["lose", "double", "inject", "push"]),
        size=st.integers(1, 20) | st.just(10_000),
    )
    def storm(self, calls: int, at: int, fault: str, size: int) -> None:
        """Several calls in one write, one fault among their replies, all received in pieces."""
        self.submit(["get"] * calls, TIMEOUT)
        self.loop.run()
        self.disturb(at, fault)
        self.answer(100)
        while self.buffer:
            self.receive(size)

    @rule(writing=st.booleans())
    def pressure(self, writing: bool) -> None:
        if not self.connection.closed:
            (self.connection.resume_writing if writing else self.connection.pause_writing)()

    @precondition(lambda self: self.transport.closing)
    @rule()
    def lose(self) -> None:
        self.connection.connection_lost(None)

    @rule(dice=st.integers(0, 9))
    def end(self, dice: int) -> None:
        if dice == 0:
            self.connection.connection_lost(ConnectionResetError())

    # -- what must hold ------------------------------------------------------------------------

    @invariant()
    def every_outcome_is_the_callers_own(self) -> None:
        for key, (future, op, _) in self.calls.items():
            if not future.done() or future.cancelled():
                continue
            error = future.exception()
            if error is not None:
                if isinstance(error, ServerError):
                    assert error.args[0].startswith(f"the server answered: OOM {key.decode()};")
                    continue
                assert isinstance(error, ConnectionLost | DeadlineExceeded)
                assert error.sent or key not in self.sent, "sent=False must be true"
            elif op.replies == 2:
                assert future.result() is True
            else:
                assert future.result() == key

    @invariant()
    def the_books_are_right(self) -> None:
        connection = self.connection
        queued = [len(batch.entries) for batch in connection._batches]
        assert connection._calls == sum(queued) + len(connection._pending)
        assert connection._bytes == connection._pending_bytes + sum(
            batch.size for batch in connection._batches
        )
        if connection.closed:
            assert all(future.done() for future, _, _ in self.calls.values())
            assert repr(connection).startswith("<Connection closed")

    def teardown(self) -> None:
        if not hasattr(self, "connection"):
            return
        if not self.faulty and not self.connection.closed:
            # Without a fault, whoever still waits is answered once the server has said all.
            self.connection.resume_writing()
            for _ in range(3):
                self.loop.run()
                self.serve()
                self.buffer += b"".join(self.replies)
                self.replies.clear()
                self.connection.data_received(bytes(self.buffer))
                self.buffer.clear()
            assert all(future.done() for future, _, _ in self.calls.values())
            assert not self.connection.closed
            assert (self.connection._calls, self.connection._bytes) == (0, 0)
        self.connection.connection_lost(None)
        self.every_outcome_is_the_callers_own()
        assert self.freed == len(self.calls), "room for each call is given back once"


TestFifo = Fifo.TestCase
TestFifo.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
