"""Operations: what they send, and how every reply that a server may give is read."""

from __future__ import annotations

from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pevensie.errors import ServerError, UnknownResponseError
from pevensie.redis import _ops
from pevensie.redis._resp import LARGE, coalesced, command
from pevensie.redis._retry import Retry

OK, QUEUED = b"OK", b"QUEUED"


def error(text: str) -> hiredis.ReplyError:
    return hiredis.ReplyError(text)


def parsed(op: _ops.Op[Any]) -> list[list[bytes]]:
    """The commands of *op*, as a server reads them."""
    reader = hiredis.Reader(notEnoughData=Ellipsis)
    reader.feed(b"".join(op.data))
    commands = []
    while (words := reader.gets()) is not Ellipsis:
        commands.append(words)
    assert not reader.has_data()
    return commands


SET = _ops.set_entries([(b"k", b"v")], 5000, single=False)
PERSIST = _ops.set_entries([(b"k", b"v")], None, single=False)
MANY = _ops.set_entries([(b"k", b"v"), (b"l", b"w")], 5000, single=False)
COUNT = _ops.increment(b"k", 1, 5000, single=False)


@given(
    st.binary(min_size=1),
    st.binary(),
    st.none() | st.integers(1, 10**13),
    st.integers(-(2**63), 2**63 - 1),
    st.booleans(),
)
def test_what_the_server_parses_is_what_was_meant(
    key: bytes, value: bytes, ttl: int | None, delta: int, single: bool
) -> None:
    ops: list[_ops.Op[Any]] = [
        _ops.get(key),
        _ops.get_many([key, value or b"x"]),
        _ops.set_entries([(key, value)], ttl, single=single),
        _ops.set_entries([(key, value), (b"x", key)], ttl, single=single),
        _ops.add(key, value, ttl),
        _ops.delete([key]),
        _ops.increment(key, delta, ttl, single=single),
        _ops.touch(key, ttl),
        _ops.contains(key),
        _ops.ttl(key),
        _ops.ping(),
    ]
    for op in ops:
        commands = parsed(op)
        assert len(commands) == op.replies
        assert op is ops[-1] or any(key in words for words in commands)
    sets = [words for words in parsed(ops[2]) if words[0] == b"SET"]
    assert [words[1:3] for words in sets] == [[key, value]]


@pytest.mark.parametrize("single", [True, False])
def test_a_large_value_is_never_copied(single: bool) -> None:
    large = bytes(LARGE)
    for op in (
        _ops.set_entries([(b"k", large)], 5000, single=single),
        _ops.set_entries([(b"a", b"b"), (b"k", large), (b"c", b"d")], None, single=single),
        _ops.add(b"k", large, 5000),
    ):
        assert any(part is large for part in op.data)
        assert len(op.data) <= 3
        parsed(op)


@given(st.lists(st.binary(max_size=8)))
def test_coalescing_changes_no_byte(parts: list[bytes]) -> None:
    assert b"".join(coalesced(parts)) == b"".join(parts)
    assert len(list(coalesced(parts))) <= 1


def test_what_may_be_sent_twice() -> None:
    assert _ops.get(b"k").retry is _ops.get_many([b"k"]).retry is Retry.READ
    assert _ops.ttl(b"k").retry is _ops.contains(b"k").retry is _ops.ping().retry is Retry.READ
    assert SET.retry is _ops.delete([b"k"]).retry is _ops.touch(b"k", 1).retry is Retry.OVERWRITE
    assert COUNT.retry is _ops.add(b"k", b"v", None).retry is Retry.NEVER


@pytest.mark.parametrize(
    ("op", "reply", "result"),
    [
        (_ops.get(b"k"), b"v", b"v"),
        (_ops.get(b"k"), None, None),
        (_ops.get_many([b"k", b"l"]), [b"v", None], [b"v", None]),
        (SET, [OK, QUEUED, QUEUED, [OK, 1]], None),
        (PERSIST, [OK, QUEUED, QUEUED, [OK, 1]], None),
        (PERSIST, [OK, QUEUED, QUEUED, [OK, 0]], None),
        (MANY, [OK, QUEUED, QUEUED, QUEUED, QUEUED, [OK, 1, OK, 1]], None),
        (_ops.set_entries([(b"k", b"v")], 5, single=True), OK, None),
        (_ops.set_entries([(b"k", b"v"), (b"l", b"w")], 5, single=True), [OK, OK], None),
        (_ops.add(b"k", b"v", None), OK, True),
        (_ops.add(b"k", b"v", None), None, False),
        (_ops.delete([b"k", b"l"]), 2, 2),
        (COUNT, [OK, QUEUED, QUEUED, [OK, 1]], 1),
        (COUNT, [OK, QUEUED, QUEUED, [None, 7]], 7),
        (_ops.increment(b"k", 1, None, single=False), -3, -3),
        (_ops.touch(b"k", 5), 1, True),
        (_ops.touch(b"k", 5), 0, False),
        (_ops.touch(b"k", None), [0, 1], True),
        (_ops.touch(b"k", None), [0, 0], False),
        (_ops.contains(b"k"), 1, True),
        (_ops.ttl(b"k"), -2, -2),
        (_ops.ttl(b"k"), 1500, 1500),
        (_ops.ping(), b"PONG", None),
    ],
)
def test_right_replies(op: _ops.Op[Any], reply: Any, result: Any) -> None:
    assert op.read(reply) == result


EXECABORT = "EXECABORT Transaction discarded because of previous errors."


@pytest.mark.parametrize(
    ("replies", "code", "refused"),
    [
        # A command was refused when queueing.
        ([OK, error("OOM no"), QUEUED, error(EXECABORT)], "OOM", True),
        ([OK, QUEUED, error("NOPERM no"), error(EXECABORT)], "NOPERM", True),
        ([OK, error("LOADING w"), error("LOADING w"), error(EXECABORT)], "LOADING", True),
        ([OK, error("MOVED 1 h:1"), error("MOVED 1 h:1"), error(EXECABORT)], "MOVED", True),
        # EXEC itself was refused, with or without its reason.
        (
            [OK, QUEUED, QUEUED, error("EXECABORT Transaction discarded because of: OOM no")],
            "OOM",
            True,
        ),
        ([OK, QUEUED, QUEUED, error("ASK 1 h:1")], "ASK", True),
        ([OK, QUEUED, QUEUED, error("READONLY no")], "READONLY", True),
        # MULTI was refused, so the others ran one by one.
        ([error("NOPERM no"), OK, 1, error("ERR EXEC without MULTI")], "NOPERM", False),
        ([error("LOADING w"), error("LOADING w"), 0, error("ERR EXEC")], "LOADING", False),
        # An error inside EXEC's array: the other command ran.
        ([OK, QUEUED, QUEUED, [OK, error("ERR invalid expire time")]], "ERR", False),
        ([OK, QUEUED, QUEUED, [error("OOM no"), 0]], "OOM", False),
    ],
)
def test_how_a_transaction_can_fail(replies: list[Any], code: str, refused: bool) -> None:
    with pytest.raises(ServerError) as caught:
        SET.read(replies)
    assert (caught.value.code, caught.value.refused) == (code, refused)


@pytest.mark.parametrize(
    ("results", "refused"),
    [([None, error("ERR value is not an integer")], True), ([OK, error("OOM no")], False)],
)
def test_a_counter_that_cannot_be_moved(results: list[Any], refused: bool) -> None:
    with pytest.raises(ServerError) as caught:
        COUNT.read([OK, QUEUED, QUEUED, results])
    assert caught.value.refused is refused


def test_some_of_many_single_sets_may_be_stored() -> None:
    op = _ops.set_entries([(b"k", b"v"), (b"l", b"w")], 5, single=True)
    for replies, refused in [
        ([OK, error("OOM no")], False),
        ([error("OOM no"), error("OOM no")], True),
    ]:
        with pytest.raises(ServerError) as caught:
            op.read(replies)
        assert caught.value.refused is refused


NONSENSE: list[tuple[_ops.Op[Any], Any]] = [
    (_ops.get(b"k"), 5),
    (_ops.get(b"k"), []),
    (_ops.get(b"k"), True),
    (_ops.get(b"k"), hiredis.PushNotification([b"x"])),
    (_ops.get_many([b"k"]), [b"v", b"w"]),
    (_ops.get_many([b"k"]), [5]),
    (_ops.get_many([b"k"]), None),
    (_ops.get_many([b"k"]), {b"k": b"v"}),
    (SET, [OK, QUEUED, QUEUED, [OK, 0]]),
    (SET, [OK, QUEUED, QUEUED, [OK]]),
    (SET, [OK, QUEUED, QUEUED, [OK, 1, 1]]),
    (SET, [OK, QUEUED, QUEUED, [b"KO", 1]]),
    (SET, [OK, QUEUED, QUEUED, None]),
    (SET, [OK, QUEUED, QUEUED, OK]),
    (SET, [OK, OK, QUEUED, [OK, 1]]),
    (SET, [OK, QUEUED, 1, [OK, 1]]),
    (SET, [QUEUED, QUEUED, QUEUED, [OK, 1]]),
    (PERSIST, [OK, QUEUED, QUEUED, [OK, 2]]),
    (COUNT, [OK, QUEUED, QUEUED, [OK, b"1"]]),
    (COUNT, [OK, QUEUED, QUEUED, [1, 1]]),
    (_ops.add(b"k", b"v", None), 1),
    (_ops.delete([b"k"]), b"1"),
    (_ops.delete([b"k"]), True),
    (_ops.contains(b"k"), 2),
    (_ops.touch(b"k", 5), None),
    (_ops.ttl(b"k"), -3),
    (_ops.ping(), OK),
    (_ops.set_entries([(b"k", b"v")], 5, single=True), None),
    (_ops.set_entries([(b"k", b"v"), (b"l", b"w")], 5, single=True), [OK, QUEUED]),
]


@pytest.mark.parametrize(("op", "reply"), NONSENSE)
def test_nonsense_is_an_unknown_response(op: _ops.Op[Any], reply: Any) -> None:
    with pytest.raises(UnknownResponseError):
        op.read(reply)


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("OOM command not allowed", "OOM"),
        ("ERR syntax error", "ERR"),
        ("something odd", "ERR"),
        ("", "ERR"),
        ("WRONGTYPE Operation against a key", "WRONGTYPE"),
    ],
)
def test_the_code_is_the_first_word(text: str, code: str) -> None:
    with pytest.raises(ServerError) as caught:
        _ops.get(b"k").read(error(text))
    assert caught.value.code == code
    assert caught.value.refused


def test_a_command_is_an_array_of_bulk_strings() -> None:
    assert command(b"GET", b"k\r\n") == b"*2\r\n$3\r\nGET\r\n$3\r\nk\r\n\r\n"


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, LARGE - 1])
@pytest.mark.parametrize("ttl", [None, 5000, 5001])
def test_arguments_of_any_size_are_announced_as_they_are(length: int, ttl: int | None) -> None:
    """Short ones by a table, long ones without; and the two forms of GET and SET are one."""
    key, value = b"k" * length, b"v" * length
    get, put = _ops.get(key), _ops.set_entries([(key, value)], ttl, single=False)
    assert parsed(get) == [[b"GET", key]]
    assert get == ((_ops.get_data(key),), _ops.GET.replies, _ops.GET.read, _ops.GET.retry)
    assert parsed(put)[1] == [b"SET", key, value]
    data, kind = _ops.prepared_set([(key, value)], ttl, single=False)
    assert put == ((data,), kind.replies, kind.read, kind.retry)
