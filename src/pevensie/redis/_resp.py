"""RESP2, the Redis serialization protocol: commands to bytes, error replies to exceptions.

Parsing is hiredis's. What it hands out is plain: ``bytes``, ``int``, ``None``, ``list``, and
:class:`hiredis.ReplyError` for an error reply. Anything else (it would understand RESP3 too) is no
answer to what this client asks, and each reader below an :class:`~pevensie.redis._ops.Op` says so.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import lru_cache
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


KEPT_BYTES: Final = 4 * 1024 * 1024
"""How much freed memory the C library may keep: see :func:`keep_freed_memory`."""


@lru_cache(1)
def keep_freed_memory() -> None:
    """Free one large block, once, from which glibc learns to keep twice as much for later.

    Else it gives the memory of each large value back to the system and asks for it anew: a page
    fault for every 4 KiB, which costs several times as much as all else. See M_MMAP_THRESHOLD in
    mallopt(3). Touches no page; elsewhere than on glibc it does nothing.
    """
    bytes(KEPT_BYTES)


def new_reader() -> hiredis.Reader:
    """A parser for one connection."""
    return hiredis.Reader(notEnoughData=INCOMPLETE)


class LargeValue:
    """A large string that is being received: collected beside the parser, which would copy it
    once more."""

    __slots__ = ("_chunks", "_missing")

    def __init__(self, length: int, begun: bytes) -> None:
        self._chunks = [begun]
        self._missing = length + 2 - len(begun)  # its CRLF included

    @staticmethod
    def begun(data: bytes) -> LargeValue | None:
        """The value that begins with *data* and ends later, if it is a large one."""
        if not data.startswith(b"$"):
            return None
        head = data[:32].partition(b"\r\n")[0]
        if not head[1:].isdigit() or not LARGE <= (length := int(head[1:])) <= MAX_REPLY_BYTES:
            return None
        if length + 2 <= len(data) - len(head) - 2:
            return None  # it is whole already
        keep_freed_memory()
        return LargeValue(length, data[len(head) + 2 :])

    def add(self, data: bytes) -> bytes | None:
        """Take what belongs to it; what comes behind it, or ``None``: it is not whole yet."""
        missing = self._missing
        self._missing = missing - len(data)
        if self._missing > 0:
            self._chunks.append(data)
            return None
        self._chunks.append(data[:missing])
        return data[missing:]

    def whole(self) -> bytes:
        """The value, once all is there. Raises :exc:`hiredis.ProtocolError` if it has no end."""
        chunks = self._chunks
        last = chunks.pop()
        if len(last) == 1:
            last = chunks.pop() + last
        if not last.endswith(b"\r\n"):
            raise hiredis.ProtocolError("a string is longer than the server has said")
        chunks.append(last[:-2])
        return b"".join(chunks)


class _Sizes(dict[int, bytes]):
    """The line before an argument of so many bytes."""

    def __missing__(self, length: int) -> bytes:
        return b"$%d\r\n" % length


SIZES: Final = _Sizes((length, b"$%d\r\n" % length) for length in range(1024))
"""Made in advance for the usual sizes: to look one up costs a third of making it."""


def command(*arguments: bytes) -> bytes:
    """One command as an array of bulk strings."""
    strings = b"\r\n".join([SIZES[len(argument)] + argument for argument in arguments])
    return b"*%d\r\n%b\r\n" % (len(arguments), strings)


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
