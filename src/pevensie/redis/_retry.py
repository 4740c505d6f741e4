"""What may be sent a second time: one table, one function.

====================  ==============================  =====================================
\\                     never reached the server        sent, outcome unknown
====================  ==============================  =====================================
reads                 again                           again
overwrites            again                           again only if the server closed the
                                                      connection
everything else       again                           never: the outcome is unknown
====================  ==============================  =====================================

Why an overwrite is not sent again after this side gave up: the old bytes may still be under way,
and would undo a newer write when they arrive. When the server closed the connection they cannot.

A refusal ("not executed") counts as never having reached the server. All attempts together share
the one deadline of the call, which is the caller's to keep.
"""

from __future__ import annotations

from enum import Enum
from typing import Final

from pevensie.errors import ConnectionLost, RedisError, ServerError, StartError

MAX_ATTEMPTS: Final = 3
"""How often one command is tried in all. Enough to outlive a restart or a failover that is over
already; more would only add load to a server that is in trouble."""


class Retry(Enum):
    """How bad it would be to execute a command twice."""

    READ = "read"
    """Changes nothing: GET, MGET, PTTL."""
    OVERWRITE = "overwrite"
    """Twice is the same as once, unless another write came between: SET, DEL, EXPIRE."""
    NEVER = "never"
    """Twice is not once: INCRBY, SET NX."""


REFUSALS: Final = frozenset(
    {"LOADING", "READONLY", "TRYAGAIN", "CLUSTERDOWN", "MASTERDOWN"},
)
"""Codes by which a server says that it did not execute a command, and that may pass. MOVED and
ASK mean "not executed" too, but this client does not follow them yet: the same server would only
say the same again."""


def may_resend(retry: Retry, error: RedisError) -> bool:
    """Whether the command that failed with *error* may be sent again."""
    if isinstance(error, ServerError):
        return error.refused and error.code in REFUSALS
    if isinstance(error, StartError):
        return error.transient
    if not isinstance(error, ConnectionLost):
        return False
    if not error.sent or retry is Retry.READ:
        return True
    return retry is Retry.OVERWRITE and error.closed_by_server
