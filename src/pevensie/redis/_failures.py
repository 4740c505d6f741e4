"""What both shells say when something went wrong: said once, so that it reads the same."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from typing import Any

import hiredis

from pevensie.errors import DeadlineExceeded, NotConnected, RedisError, ShutdownError
from pevensie.redis._resp import text_of


def not_connected() -> NotConnected:
    """A verb after ``disconnect``."""
    return NotConnected("the cache was disconnected; connect() again")


def in_use(server: str) -> ShutdownError:
    """``disconnect()`` with calls in flight."""
    return ShutdownError(
        "calls are in flight, so nothing was closed; let them end first, or disconnect(force=True)",
        server=server,
    )


def no_reply(timeout: float, *, sent: bool) -> DeadlineExceeded:
    """The deadline of a call has passed on an open connection. *timeout*: seconds."""
    outcome = "it may or may not have been executed" if sent else "it was not sent"
    return DeadlineExceeded(
        f"no reply within {_milliseconds(timeout)}: {outcome}; is the server overloaded or out of "
        "reach, or RedisConfig.timeout too short?",
        sent=sent,
    )


def no_connection(timeout: float, failure: RedisError | None) -> DeadlineExceeded:
    """The deadline of a call has passed before there was a connection."""
    last = "" if failure is None else f"; the last attempt: {failure.args[0]}"
    return DeadlineExceeded(f"no connection within {_milliseconds(timeout)}{last}", sent=False)


def closed_by_server(replies: Iterable[Any], reason: str = "") -> str:
    """What to say of a connection that the other side closed. *replies*: its last words."""
    said = next((f": {text_of(r)}" for r in replies if isinstance(r, hiredis.ReplyError)), "")
    return f"the server closed the connection{reason}{said.partition('. ')[0]}"


def again(error: RedisError) -> RedisError:
    """A copy to raise: one exception must not be raised by several callers."""
    fresh = copy.copy(error)
    fresh.__cause__ = error.__cause__
    return fresh


def _milliseconds(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms"
