"""The protocol layer around hiredis, fed anything in any pieces, in memory.

What a server says well is understood whatever pieces it comes in. What it says wrong is an error of
ours or, if it arrives in a way that what is right can be told apart, a right value: but never two
different values for the same bytes, and nothing but our own errors comes out.

The sizes from which strings are collected beside the parser, and how much is read at a time, are
made small here, so that every boundary is met.
"""

from __future__ import annotations

import asyncio
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any

import hiredis
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from pevensie.errors import PevensieError
from pevensie.redis import _resp
from pevensie.redis._async import connection as async_connection
from pevensie.redis._ops import Op
from pevensie.redis._retry import Retry
from pevensie.redis._session import Tokens
from pevensie.redis._sync import connection as sync_connection
from unit.test_fifo import Loop, Transport

SMALL = {"LARGE": 24, "FIRST_READ": 16, "MORE_READ": 64}
PREFIX = b"0123456789abcdef"
TOKEN = Tokens(PREFIX).next()

thorough = settings(
    max_examples=int(os.environ.get("PEVENSIE_FUZZ_EXAMPLES", "300")),
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (_resp, sync_connection, async_connection):
        for name, value in SMALL.items():
            if hasattr(module, name):
                monkeypatch.setattr(module, name, value)


def bulk(value: bytes) -> bytes:
    return b"$%d\r\n%b\r\n" % (len(value), value)


def array(items: list[bytes]) -> bytes:
    return b"*%d\r\n%b" % (len(items), b"".join(items))


strings = st.one_of(
    st.binary(max_size=12),
    st.integers(16, 140).map(lambda size: b"v" * size),
    st.sampled_from([b"\r\n", b"$30\r\n" + b"w" * 30 + b"\r\n", b"x" * 30 + b"\r\n" * 5, TOKEN]),
).map(bulk)
simple = st.one_of(
    strings,
    st.sampled_from([b"$-1\r\n", b"*-1\r\n", b"+OK\r\n", b"-ERR no\r\n", b":7\r\n", b"*0\r\n"]),
)
replies = st.lists(st.one_of(simple, st.lists(simple, max_size=4).map(array)), max_size=8)
pieces = st.lists(st.integers(1, 80), min_size=1, max_size=12)


def parsed(data: bytes) -> list[Any]:
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    reader.feed(data)
    found = []
    while (reply := reader.gets()) is not Ellipsis:
        found.append(reply)
    return found


def comparable(outcome: Any) -> Any:
    """Values by their content; error replies too, which compare by identity."""
    if isinstance(outcome, list):
        return [comparable(item) for item in outcome]
    return f"{outcome!r}" if isinstance(outcome, hiredis.ReplyError) else outcome


def in_pieces(data: bytes, sizes: list[int]) -> Iterator[bytes]:
    at = number = 0
    while at < len(data):
        size = sizes[number % len(sizes)]
        yield data[at : at + size]
        at += size
        number += 1


class Heard:
    """A socket that has so much to say, in those pieces, and then ends."""

    family = socket.AF_UNIX

    def __init__(self, data: bytes, sizes: list[int]) -> None:
        self._pieces = list(in_pieces(data, sizes))
        self._fd, self._other = os.pipe()
        os.close(self._other)  # so it is always "ready to read"

    def fileno(self) -> int:
        return self._fd

    def send(self, data: bytes) -> int:
        return len(data)

    def recv(self, size: int) -> bytes:
        if not self._pieces:
            return b""
        piece = self._pieces.pop(0)
        if len(piece) > size:
            self._pieces.insert(0, piece[size:])
        return piece[:size]

    def setsockopt(self, *_: object) -> None: ...

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


def sync_outcomes(data: bytes, sizes: list[int], count: int, *, checked: bool) -> list[Any]:
    """What one blocking call that asked for *count* replies gets: replies, or as many errors."""
    heard = Heard(data, sizes)
    connection = sync_connection.Connection(heard, 1.0)  # type: ignore[arg-type]
    if checked:
        connection.check_with(Tokens(PREFIX))
    deadline = time.monotonic() + 60
    try:
        connection.send((b"?",), count, deadline)
        outcomes = connection.receive(deadline)
        assert not connection.dirty
        assert len(outcomes) == count + checked  # the token is the last
        return comparable(outcomes[:count])
    except PevensieError as error:
        assert connection.dirty
        return [error] * count
    finally:
        connection.close()


def async_outcomes(data: bytes, sizes: list[int], count: int, *, checked: bool) -> list[Any]:
    """What each of *count* callers on one connection gets."""
    loop = Loop()
    transport = Transport()
    tokens = Tokens(PREFIX)
    tokens._count = -1
    connection = async_connection.Connection(
        loop,  # type: ignore[arg-type]
        SimpleNamespace(family=socket.AF_UNIX),  # type: ignore[arg-type]
        timeout=1.0,
        tokens=tokens,
        on_room=lambda calls: None,
        on_failure=lambda call, error: call[0].set_exception(error),
    )
    connection.connection_made(transport)  # type: ignore[arg-type]
    connection.greeted(echoes=True, integrity_checks=checked)
    op: Op[Any] = Op((b"?",), 1, lambda reply: reply, Retry.NEVER)
    # One before, so that a token has come: only then are large values collected.
    connection.submit(b"?", op, 1, 1.0)
    loop.run()
    connection.data_received(b"+OK\r\n" + (bulk(PREFIX + b"0" * 10) if checked else b""))
    connection._last_was_lone = False  # or the first of those that follow would travel alone
    futures: list[Any] = [connection.submit(b"?", op, 1, 1.0) for _ in range(count)]
    loop.run()
    for piece in in_pieces(data, sizes):
        if not transport.closing:
            # What asyncio hands over may be a bytearray of its own, or bytes.
            connection.data_received(piece)
    connection.connection_lost(None)
    loop.run()
    outcomes = []
    for future in futures:
        error = future.exception()
        assert error is None or isinstance(error, PevensieError), repr(error)
        outcomes.append(error or comparable(future.result()))
    return outcomes


SIDES = {"sync": sync_outcomes, "async": async_outcomes}
Side = Callable[..., list[Any]]


@pytest.fixture
def side(colour: str) -> Side:
    return SIDES[colour]


@thorough
@given(said=replies, sizes=pieces, checked=st.booleans())
@example(said=[bulk(b"v" * 30)] * 8, sizes=[16, 64], checked=True)
@example(said=[bulk(b"v" * 74), *[bulk(b"w" * 25)] * 3], sizes=[80], checked=True)
# Once taken for a reply of its own: a large string that comes just behind the head of its array.
@example(
    said=[array([bulk(b"v" * 24), bulk(b"w" * 24), b":7\r\n"]), b":8\r\n", b":9\r\n"],
    sizes=[4, 8, 8, 8, 7, 16, 15, 99],
    checked=True,
)
def test_what_is_right_is_understood_in_any_pieces(
    side: Side, said: list[bytes], sizes: list[int], checked: bool
) -> None:
    if not said:
        return
    data = b"".join(said) + (bulk(TOKEN) if checked else b"")
    # A value that is the token is the token, whoever sent it: a peer that forges it is outside.
    if checked and bulk(TOKEN) in said:
        return
    expected = comparable(parsed(b"".join(said)))
    assert side(data, sizes, len(said), checked=checked) == expected


def agree(one: list[Any], other: list[Any]) -> bool:
    """Wherever both are values, they are the same."""
    return all(
        isinstance(a, Exception) or isinstance(b, Exception) or same(a, b)
        for a, b in zip(one, other, strict=True)
    )


def same(a: Any, b: Any) -> bool:
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    return bool(a == b)


damage = st.lists(
    st.tuples(
        st.integers(0, 400),
        st.integers(0, 3),
        st.one_of(
            st.binary(max_size=3),
            st.sampled_from([b"$", b"\r\n", b"$25\r\n", b"*2\r\n", b"9", b"%1\r\n", b"#t\r\n"]),
        ),
    ),
    min_size=1,
    max_size=3,
)


@thorough
@given(said=replies, hurt=damage, sizes=pieces, others=pieces, checked=st.booleans())
def test_what_is_damaged_has_one_meaning_at_most(
    side: Side,
    said: list[bytes],
    hurt: list[tuple[int, int, bytes]],
    sizes: list[int],
    others: list[int],
    checked: bool,
) -> None:
    data = b"".join(said) + (bulk(TOKEN) if checked else b"")
    for at, removed, instead in hurt:
        at = at % (len(data) + 1)
        data = data[:at] + instead + data[at + removed :]
    count = max(1, len(said))
    one = side(data, sizes, count, checked=checked)
    assert agree(one, side(data, others, count, checked=checked))
    assert agree(one, side(data, [1], count, checked=checked))
    assert agree(one, side(data, [len(data) or 1], count, checked=checked))


@thorough
@given(
    data=st.one_of(
        st.binary(max_size=300),
        st.lists(
            st.sampled_from(
                [b"$", b"*", b"\r\n", b"1", b"30", b"-1", b":", b"%2", b"~1", b"|1", b">1", b"_",
                 b"#t", b",1.5", b"(1", b"=7", b"!3", b"x" * 30, b"v" * 7, bulk(TOKEN)]
            ),
            max_size=60,
        ).map(b"".join),
    ),
    sizes=pieces,
    others=pieces,
    count=st.integers(1, 5),
    checked=st.booleans(),
)  # fmt: skip
def test_anything_at_all(
    side: Side, data: bytes, sizes: list[int], others: list[int], count: int, checked: bool
) -> None:
    one = side(data, sizes, count, checked=checked)
    assert agree(one, side(data, others, count, checked=checked))


@thorough
@given(said=st.lists(simple, min_size=2, max_size=8), sizes=pieces, at=st.integers(0, 8))
def test_one_reply_that_is_lost_doubled_or_strange_gives_nobody_anothers(
    side: Side, said: list[bytes], sizes: list[int], at: int
) -> None:
    """With tokens, whatever the pieces: no value out of place."""
    if bulk(TOKEN) in said:
        return
    expected = comparable(parsed(b"".join(said)))
    at %= len(said) + 1
    whole = [*said, bulk(TOKEN)]
    for wrong in (
        whole[:at] + whole[at + 1 :],
        [*whole[: at + 1], *whole[at:]],
        [*whole[:at], bulk(b"stranger" * 4), *whole[at:]],
    ):
        outcomes = side(b"".join(wrong), sizes, len(said), checked=True)
        assert agree(outcomes, expected)


def test_the_loop_of_these_tests_is_none_of_asyncios() -> None:
    """So nothing here may wait for real time."""
    assert not isinstance(Loop(), asyncio.AbstractEventLoop)
