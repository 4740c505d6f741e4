"""RESP2, the Redis serialization protocol: commands to bytes, error replies to exceptions.

Parsing is hiredis's. What it hands out is plain: ``bytes``, ``int``, ``None``, ``list``, and
:class:`hiredis.ReplyError` for an error reply. Anything else (it would understand RESP3 too) is no
answer to what this client asks, and each reader below an :class:`~pevensie.redis._ops.Op` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, Final

import hiredis

from pevensie.errors import ServerError, UnknownResponseError

INCOMPLETE: Final = object()
"""What a reader's ``gets()`` returns when it has no whole reply. Not hiredis's default ``False``,
which the RESP3 reply ``#f`` also parses to."""

MAX_REPLY_BYTES: Final = 576 * 1024 * 1024
"""How much may be received without one whole reply: Redis's own limit of a value
(proto-max-bulk-len, 512 MB) and some room. A server that sends more is not a Redis server."""


LARGE: Final = 64 * 1024
"""Bytes from which a value is not copied: below, one copy costs less than one more part."""


def new_reader() -> hiredis.Reader:
    """A parser for one connection."""
    return hiredis.Reader(notEnoughData=INCOMPLETE)


def command(*arguments: bytes) -> bytes:
    """One command as an array of bulk strings."""
    parts = [b"*%d\r\n" % len(arguments)]
    parts += [b"$%d\r\n%b\r\n" % (len(argument), argument) for argument in arguments]
    return b"".join(parts)


def coalesced(parts: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in fewer parts: neighbours that are not large become one."""
    small: list[bytes] = []
    for part in parts:
        if len(part) < LARGE:
            small.append(part)
            continue
        if small:
            yield b"".join(small)
            small = []
        yield part
    if small:
        yield b"".join(small)


def text_of(reply: hiredis.ReplyError) -> str:
    """What an error reply says, without what it may repeat of the command.

    "unknown command 'GET', with args beginning with: 'ship:…'": neither keys nor passwords belong
    in messages.
    """
    return str(reply).partition(", with args beginning with")[0]


def server_error(reply: hiredis.ReplyError, *, refused: bool = True) -> ServerError:
    """The exception for an error reply. *refused*: nothing of what was asked was executed."""
    text = text_of(reply)
    word = text.partition(" ")[0]
    code = word if word.isupper() else "ERR"
    return ServerError(
        f"the server answered: {text}{_HINTS.get(code, '')}", code=code, refused=refused
    )


_HINTS: Final = {
    "OOM": "; raise its maxmemory, or set a maxmemory-policy that evicts",
    "READONLY": "; this is a replica: connect to the primary",
    "WRONGTYPE": "; another program stores something else than a string under this key",
    "NOPERM": "; grant this user the command and the key pattern with ACL SETUSER",
    "MISCONF": "; its last snapshot failed: see its log",
    "MOVED": "; this server is part of a cluster, which is not supported yet",
}


def unexpected(reply: Any, expected: str) -> Exception:
    """The exception for *reply* where *expected* should be: the server's error, or nonsense."""
    if isinstance(reply, hiredis.ReplyError):
        return server_error(reply)
    return UnknownResponseError(
        f"expected {expected}, got {_kind(reply)}; is this a Redis-compatible server, "
        "and is there no proxy that mixes up replies?"
    )


def _kind(reply: Any) -> str:
    """What *reply* is, without its content."""
    if reply is None:
        return "nil"
    if isinstance(reply, bytes):
        return "a string"
    if isinstance(reply, list):
        return f"an array of {len(reply)}"
    return f"a reply of type {type(reply).__name__}"
