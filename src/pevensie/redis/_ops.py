"""Every operation of the driver as a value: bytes to send, replies to expect, how to read them.

No I/O, no clock, no state. Both shells, blocking and asyncio, run the same values, so an operation
and its reading are written once, here.

Rule 1. An Op is contiguous: its commands are written together and nothing comes between them.
Rule 2. ``read`` gets the bare reply if there is one, a list if there are several. It returns the
    result or raises :exc:`ServerError` or :exc:`UnknownResponseError`, and does nothing else.
Rule 3. A value of ``LARGE`` bytes or more stays the caller's object: it is a part of its own in
    ``data`` and is never copied into a larger one.
Rule 4. Nothing is ever stored without its TTL: SET and EXPIRE are one transaction, or one command.

The seed's way to set (``set_mode="expire"``) is ``MULTI, SET, EXPIRE | PEXPIRE | PERSIST, EXEC``.
What comes back is ``OK, QUEUED, QUEUED, [OK, n]``. How that can fail, as seen on Valkey 9 and
Redis 7: OOM, READONLY, NOREPLICAS and NOPERM come when queueing, or as ``EXECABORT … because of:``;
ASK comes only as EXEC's reply; an error inside EXEC's array means that the other commands ran; and
where MULTI itself is refused, the commands after it ran one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from typing import Any, Final, Generic, NamedTuple, TypeAlias, TypeVar

import hiredis

from pevensie.errors import UnknownResponseError
from pevensie.redis._resp import LARGE, SIZES, coalesced, command, server_error, unexpected
from pevensie.redis._retry import Retry

T = TypeVar("T")


class Op(NamedTuple, Generic[T]):
    """One operation, ready to be sent."""

    data: tuple[bytes, ...]
    """One or more RESP commands, in parts."""
    replies: int
    """How many top-level replies they produce."""
    read: Callable[[Any], T]
    """The result, from the bare reply or the list of replies."""
    retry: Retry
    """How bad it would be to send it twice."""


class Kind(Generic[T]):
    """What all operations of one kind share: an :class:`Op` without its data.

    The commonest verbs have one made in advance: an Op per call would cost a twentieth of it.
    """

    __slots__ = ("read", "replies", "retry")

    def __init__(self, replies: int, read: Callable[[Any], T], retry: Retry) -> None:
        self.replies = replies
        self.read = read
        self.retry = retry


Data: TypeAlias = bytes | tuple[bytes, ...]
"""What is to be sent: in one part, or in several."""


def size_of(data: Data) -> int:
    """How many bytes that is."""
    return len(data) if isinstance(data, bytes) else sum(map(len, data))


Prepared: TypeAlias = tuple[Data, Kind[T] | Op[T]]
"""An operation whose kind may be one made in advance."""

_READ: Final = Retry.READ
_OVERWRITE: Final = Retry.OVERWRITE
_new_op: Final[Callable[[tuple[Any, ...]], Op[Any]]] = partial(tuple.__new__, Op)
"""As ``Op(...)``, without the frame of a NamedTuple's constructor: 0.3 us less for the two
operations that are called most. Reading a member off its Enum costs 0.1 us, hence the names."""


def get(key: bytes) -> Op[bytes | None]:
    """GET: the value, or None."""
    data = b"".join((_GET, SIZES[len(key)], key, _END))  # as get_data, without a call more
    return _new_op(((data,), 1, _value, _READ))


def get_data(key: bytes) -> bytes:
    """What :func:`get` sends; its kind is :data:`GET`."""
    return b"".join((_GET, SIZES[len(key)], key, _END))


def get_many(keys: Sequence[bytes]) -> Op[list[bytes | None]]:
    """MGET: one value or None for each key, in order."""
    expected = len(keys)

    def read(reply: Any) -> list[bytes | None]:
        if type(reply) is not list or len(reply) != expected:
            raise unexpected(reply, f"an array of {expected}")
        if not _VALUE_TYPES.issuperset(map(type, reply)):
            raise UnknownResponseError("expected strings and nils in the reply to MGET")
        return reply

    return Op((command(b"MGET", *keys),), 1, read, Retry.READ)


def set_entries(items: Sequence[tuple[bytes, bytes]], ttl: int | None, *, single: bool) -> Op[None]:
    """Store entries with one TTL (milliseconds, or None), whatever was there before."""
    data, kind = prepared_set(items, ttl, single=single)
    if isinstance(kind, Op):
        return kind
    return _new_op(((data,), kind.replies, kind.read, kind.retry))


def prepared_set(
    items: Sequence[tuple[bytes, bytes]], ttl: int | None, *, single: bool
) -> Prepared[None]:
    """As :func:`set_entries`, in the form that costs less."""
    if single:
        op = _set_single(items, ttl)
        return op.data, op
    head, tail, kind = _lifetime_command(ttl)
    if len(items) == 1:
        key, value = items[0]
        length = len(value)
        if length < LARGE:
            name = SIZES[len(key)] + key + _END
            parts = (_SET, name, SIZES[length], value, _END, head, name, tail, _EXEC)
            return b"".join(parts), kind
    op = _set_many(items, head, tail, kind.read)
    return op.data, op


def add(key: bytes, value: bytes, ttl: int | None) -> Op[bool]:
    """SET NX: whether it was stored, with its TTL, in one command."""
    arguments = [b"SET", key, value, b"NX"]
    if ttl is not None:
        arguments += _lifetime(ttl)
    return Op(_large_parts(arguments), 1, _stored, Retry.NEVER)


def delete(keys: Sequence[bytes]) -> Op[int]:
    """DEL: how many were there."""
    return Op((command(b"DEL", *keys),), 1, _count, Retry.OVERWRITE)


def increment(key: bytes, delta: int, ttl: int | None, *, single: bool) -> Op[int]:
    """Add to a counter, which gets its TTL when it is created, in the same step.

    ``MULTI, SET key 0 PX ttl NX, INCRBY, EXEC``: time stands still inside EXEC, so the counter
    cannot expire between the two. Where MULTI is not to be used and there is a TTL, no command
    does this in one step, hence the only script of this driver.
    """
    amount = b"%d" % delta
    if ttl is None:
        return Op((command(b"INCRBY", key, amount),), 1, _count, Retry.NEVER)
    if single:
        arguments = (b"EVAL", _INCREMENT, b"1", key, amount, b"%d" % ttl)
        return Op((command(*arguments),), 1, _count, Retry.NEVER)
    created = command(b"SET", key, b"0", *_lifetime(ttl), b"NX")
    data = _MULTI + created + command(b"INCRBY", key, amount) + _EXEC
    return Op((data,), 4, _counter, Retry.NEVER)


def touch(key: bytes, ttl: int | None) -> Op[bool]:
    """A new TTL for an entry that is there: EXPIRE, or PERSIST and EXISTS, since PERSIST says 0
    also of an entry that had no TTL."""
    if ttl is None:
        data = command(b"PERSIST", key) + command(b"EXISTS", key)
        return Op((data,), 2, _exists_after_persist, Retry.OVERWRITE)
    seconds, rest = divmod(ttl, 1000)
    name, number = (b"PEXPIRE", ttl) if rest else (b"EXPIRE", seconds)
    return Op((command(name, key, b"%d" % number),), 1, _flag, Retry.OVERWRITE)


def contains(key: bytes) -> Op[bool]:
    """EXISTS."""
    return Op((command(b"EXISTS", key),), 1, _flag, Retry.READ)


def ttl(key: bytes) -> Op[int]:
    """PTTL: milliseconds left, -1: never expires, -2: not there."""
    return Op((command(b"PTTL", key),), 1, _ttl, Retry.READ)


def ping() -> Op[None]:
    """PING."""
    return Op((b"*1\r\n$4\r\nPING\r\n",), 1, _pong, Retry.READ)


# -- writing ---------------------------------------------------------------------------------

_MULTI: Final = b"*1\r\n$5\r\nMULTI\r\n"
_EXEC: Final = b"*1\r\n$4\r\nEXEC\r\n"
_SET: Final = _MULTI + b"*3\r\n$3\r\nSET\r\n"
_END: Final = b"\r\n"
_GET: Final = b"*2\r\n$3\r\nGET\r\n"

_INCREMENT: Final = (
    b"redis.call('SET',KEYS[1],'0','PX',ARGV[2],'NX')return redis.call('INCRBY',KEYS[1],ARGV[1])"
)
"""Creates the counter with its TTL unless it is there, then adds. Takes an argument of 1 key."""


@lru_cache(256)
def _lifetime_command(ttl: int | None) -> tuple[bytes, bytes, Kind[None]]:
    """The command that goes with a SET, before and after the key, and the kind of both.

    Remembered, since an application has few different TTLs; it saves a tenth of a call.
    """
    if ttl is None:
        return b"*2\r\n$7\r\nPERSIST\r\n", b"", _SET_PERSIST
    seconds, rest = divmod(ttl, 1000)
    head = b"*3\r\n$7\r\nPEXPIRE\r\n" if rest else b"*3\r\n$6\r\nEXPIRE\r\n"
    number = b"%d" % (ttl if rest else seconds)
    return head, b"$%d\r\n%b\r\n" % (len(number), number), _SET_EXPIRE


def _set_many(
    items: Sequence[tuple[bytes, bytes]],
    command_head: bytes,
    command_tail: bytes,
    read: Callable[[list[Any]], None],
) -> Op[None]:
    parts: list[bytes] = [_MULTI]
    for key, value in items:
        name = b"$%d\r\n%b\r\n" % (len(key), key)
        parts.append(b"*3\r\n$3\r\nSET\r\n%b$%d\r\n" % (name, len(value)))
        parts.append(value)
        parts.append(b"\r\n%b%b%b" % (command_head, name, command_tail))
    parts.append(_EXEC)
    count = 2 * len(items)
    return Op(
        tuple(coalesced(parts)), count + 2, read if count == 2 else _many(read), Retry.OVERWRITE
    )


def _set_single(items: Sequence[tuple[bytes, bytes]], ttl: int | None) -> Op[None]:
    """``SET key value PX ttl`` for each entry: one command each, which also removes an old TTL."""
    lifetime = [] if ttl is None else _lifetime(ttl)
    parts = [part for key, value in items for part in _large_parts([b"SET", key, value, *lifetime])]
    read = _ok if len(items) == 1 else _all_ok
    return Op(tuple(coalesced(parts)), len(items), read, Retry.OVERWRITE)


def _lifetime(ttl: int) -> list[bytes]:
    return [b"PX", b"%d" % ttl]


def _large_parts(arguments: Sequence[bytes]) -> tuple[bytes, ...]:
    """One command, in parts where an argument is large."""
    if all(len(argument) < LARGE for argument in arguments):
        return (command(*arguments),)
    parts = [b"*%d\r\n" % len(arguments)]
    for argument in arguments:
        parts += (b"$%d\r\n" % len(argument), argument, b"\r\n")
    return tuple(coalesced(parts))


# -- reading ---------------------------------------------------------------------------------

_VALUE_TYPES: Final = frozenset({bytes, type(None)})
_STORED_TO_EXPIRE: Final = [b"OK", b"QUEUED", b"QUEUED", [b"OK", 1]]


def _value(reply: Any) -> bytes | None:
    if type(reply) is bytes or reply is None:
        return reply
    raise unexpected(reply, "a string or nil")


def _count(reply: Any) -> int:
    if type(reply) is int:
        return reply
    raise unexpected(reply, "a whole number")


def _flag(reply: Any) -> bool:
    if type(reply) is int and (reply == 0 or reply == 1):
        return reply == 1
    raise unexpected(reply, "0 or 1")


def _ttl(reply: Any) -> int:
    if type(reply) is int and reply >= -2:
        return reply
    raise unexpected(reply, "milliseconds, -1 or -2")


def _ok(reply: Any) -> None:
    if reply != b"OK":
        raise unexpected(reply, "OK")


def _all_ok(replies: list[Any]) -> None:
    failed = [reply for reply in replies if reply != b"OK"]
    if failed:
        raise _partly(failed[0], "OK", refused=len(failed) == len(replies))


def _pong(reply: Any) -> None:
    if reply != b"PONG":
        raise unexpected(reply, "PONG")


def _stored(reply: Any) -> bool:
    if reply is None or reply == b"OK":
        return reply is not None
    raise unexpected(reply, "OK or nil")


def _exists_after_persist(replies: list[Any]) -> bool:
    _flag(replies[0])
    return _flag(replies[1])


def _partly(reply: Any, expected: str, *, refused: bool) -> Exception:
    """As :func:`unexpected`, where other commands of the same Op may have been executed."""
    if isinstance(reply, hiredis.ReplyError):
        return server_error(reply, refused=refused)
    return unexpected(reply, expected)


def _expiring(replies: list[Any]) -> None:
    """Of a transaction of SET and EXPIRE."""
    if replies == _STORED_TO_EXPIRE:
        return
    _check_stored(_executed(replies), times_out=True)


def _persisted(replies: list[Any]) -> None:
    """Of a transaction of SET and PERSIST."""
    _check_stored(_executed(replies), times_out=False)


def _many(one: Callable[[list[Any]], None]) -> Callable[[list[Any]], None]:
    """As *one*, for a transaction of several pairs."""

    def read(replies: list[Any]) -> None:
        _check_stored(_executed(replies), times_out=one is _expiring)

    return read


def _check_stored(results: list[Any], *, times_out: bool) -> None:
    """Check the results of pairs of SET and EXPIRE (1), or SET and PERSIST (0 or 1)."""
    for stored, lifetime in zip(results[::2], results[1::2], strict=True):
        if stored != b"OK":
            raise _partly(stored, "OK", refused=False)
        if type(lifetime) is not int or lifetime not in ((1,) if times_out else (0, 1)):
            raise _partly(lifetime, "1" if times_out else "0 or 1", refused=False)


def _counter(replies: list[Any]) -> int:
    """Of a transaction of SET NX and INCRBY."""
    created, total = _executed(replies)
    if created is not None and created != b"OK":
        raise _partly(created, "OK or nil", refused=False)
    if type(total) is not int:
        # The counter was there (else SET made it 0), so SET NX changed nothing: all was refused.
        raise _partly(total, "a whole number", refused=created is None)
    return total


def _executed(replies: list[Any]) -> list[Any]:
    """The results inside EXEC's reply, or the exception that says why there are none."""
    multi, *queued, results = replies
    began = multi == b"OK"
    if began and type(results) is list and len(results) == len(queued):
        if all(reply == b"QUEUED" for reply in queued):
            return results
        raise UnknownResponseError("EXEC answered with results of commands that were not queued")
    if type(results) is list or not any(isinstance(r, hiredis.ReplyError) for r in replies):
        odd = next((reply for reply in replies if not isinstance(reply, bytes)), results)
        raise unexpected(odd, "OK, QUEUED and an array")
    raise _transaction_error(multi, queued, results, refused=began and results is not None)


def _transaction_error(multi: Any, queued: list[Any], results: Any, *, refused: bool) -> Exception:
    """The one exception for a transaction that was not executed as such.

    The first command that was refused has the reason, since EXEC then only says EXECABORT; where
    none was, EXECABORT gives it; where MULTI itself was refused, EXEC only says that it misses it.
    """
    for reply in queued:
        if isinstance(reply, hiredis.ReplyError):
            return server_error(reply, refused=refused)
    _, found, reason = str(results).partition("because of: ")
    if found and str(results).startswith("EXECABORT"):
        return server_error(hiredis.ReplyError(reason), refused=refused)
    if isinstance(multi, hiredis.ReplyError):
        return server_error(multi, refused=refused)
    return _partly(results, "an array", refused=refused)


# -- kinds made in advance -------------------------------------------------------------------

GET: Final = Kind(1, _value, Retry.READ)
_SET_EXPIRE: Final = Kind(4, _expiring, Retry.OVERWRITE)
_SET_PERSIST: Final = Kind(4, _persisted, Retry.OVERWRITE)
