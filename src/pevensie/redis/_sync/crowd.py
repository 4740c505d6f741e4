"""Threads that wait: for a connection, or for replies that another thread reads for them.

Where more threads ask than there are connections, their calls travel together. The first of them
gets a connection and leads: it writes what all have asked for, reads all replies, and wakes the
others. The replies are handed out together, once the token behind them has come back.

- A leader whose own deadline has passed, or who is interrupted, leaves; the next goes on reading.
  Only if it left the connection *torn*, in the middle of a write or a read, is that closed.
- A caller that leaves gives up its reply, not its place: the reply is read, and dropped.
- Who is woken wakes two more before it does anything else, and the last one frees the connection.
  If the leader woke all at once, they would fight for the GIL; and the next batch, which begins
  then, is larger for having waited.
"""

from __future__ import annotations

import threading
from typing import Any, Final

from pevensie.errors import ConnectionLost, RedisError, ServerError
from pevensie.redis import _failures
from pevensie.redis._ops import Op
from pevensie.redis._sync.connection import Connection

BATCH_BYTES: Final = 16 * 1024
"""Request bytes that travel together: as much as Redis reads and answers at a time, and less than
any socket buffer. A larger call travels alone."""


class Caller:
    """A thread that waits."""

    __slots__ = ("deadline", "given", "op", "place", "ready")

    def __init__(self, op: Op[Any], deadline: float) -> None:
        self.op = op
        self.deadline = deadline
        self.ready = threading.Lock()
        """Released to wake it."""
        self.ready.acquire()
        self.given: object = None
        """A connection, leave to dial one, or the batch that it travels in."""
        self.place = 0
        """Its place in the batch."""

    def wake(self) -> None:
        try:
            self.ready.release()
        except RuntimeError:
            pass  # twice, since who should have done it was interrupted in between

    @property
    def size(self) -> int:
        """Request bytes; as much as fills a batch for what cannot travel with others."""
        data = self.op.data
        return len(data[0]) if len(data) == 1 else BATCH_BYTES


class Batch:
    """Calls that travel together, on one connection."""

    __slots__ = (
        "__weakref__", "answered", "callers", "connection", "left", "outcomes", "reader",
        "replies", "sent",
    )  # fmt: skip

    def __init__(self, connection: Connection, leader: Caller) -> None:
        self.connection: Any = connection
        """None: it was given back."""
        self.callers = [leader]
        leader.place = 0
        self.sent = False
        """Writing has begun."""
        self.replies: list[Any] | None = None
        """All of them, once they have come."""
        self.reader = leader
        """Who reads the replies, for all."""
        self.left: set[Caller] = set()
        """Who does not wait: timed out, interrupted, or its replies were read by itself."""
        self.answered = False
        """Each caller has its outcome. From then on, nobody is added to *left*."""
        self.outcomes: list[Any] = []
        """For each caller its result, or the exception to raise."""

    def add(self, caller: Caller) -> None:
        caller.place = len(self.callers)
        self.callers.append(caller)
        caller.given = self

    def send(self, deadline: float) -> None:
        """Write what all have asked for."""
        ops = [caller.op for caller in self.callers]
        data = b"".join([op.data[0] for op in ops])
        replies = sum([op.replies for op in ops])
        self.sent = True
        self.connection.send((data,), replies, deadline)

    def answer(self, replies: list[Any]) -> None:
        """Read each caller's share of *replies*."""
        outcomes: list[Any] = []
        start = 0
        for caller in self.callers:
            _, count, read, _ = caller.op
            reply = replies[start] if count == 1 else replies[start : start + count]
            start += count
            try:
                outcomes.append(read(reply))
            except Exception as error:  # noqa: BLE001 - its caller's, not the others'
                outcomes.append(error)
                if not isinstance(error, ServerError):
                    self.connection.dirty = True
        self.outcomes = outcomes
        self.answered = True

    def fail(self, error: RedisError) -> None:
        """The same for all."""
        self.outcomes = [_failures.again(error) for _ in self.callers]
        self.answered = True

    def outcome(self, caller: Caller) -> Any:
        """The result of *caller*, or raise its failure."""
        outcome = self.outcomes[caller.place]
        if isinstance(outcome, Exception):
            raise outcome.with_traceback(None)
        return outcome

    def next_reader(self) -> bool:
        """Let another go on reading; whether there is one."""
        for caller in self.callers:
            if caller not in self.left:
                self.reader = caller
                caller.wake()
                return True
        return False

    def wake_after(self, place: int) -> bool:
        """Wake the two whose turn it is after *place*; whether the last one was reached by it."""
        callers, left = self.callers, self.left
        last = len(callers) - 1
        reached = place == last
        for turn in (2 * place + 1, 2 * place + 2):
            if turn > last:
                break
            caller = callers[turn]
            if caller in left:
                reached |= self.wake_after(turn)
            else:
                caller.wake()
        return reached


def interrupted(*, sent: bool) -> ConnectionLost:
    """For those whose replies were being read, or whose calls written, by a thread that left."""
    return ConnectionLost(
        "the connection was given up: the thread that used it for several was interrupted",
        sent=sent,
        closed_by_server=False,
    )
