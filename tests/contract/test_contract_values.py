"""The contract: what is stored, read, removed and counted, by one caller."""

from __future__ import annotations

import pytest
from contract_subject import Subject

from pevensie.drivers import NO_TTL
from pevensie.errors import ServerError

pytestmark = pytest.mark.anyio

INT64_MAX = 2**63 - 1
INT64_MIN = -(2**63)

ODD_BYTES = {
    "empty": b"",
    "nul": b"\0",
    "crlf": b"a\r\nb\r\n",
    "resp": b"$3\r\nfoo\r\n-ERR no\r\n+OK\r\n*1\r\n",
    "ff": b"\xff\xfe\x80",
    "every": bytes(range(256)),
    "space": b" a b ",
    "ten": b"10",
}


# Round trips


@pytest.mark.parametrize("value", ODD_BYTES.values(), ids=ODD_BYTES)
async def test_a_value_comes_back_as_it_went_in(subject: Subject, value: bytes) -> None:
    store, key = subject.store, subject.key()
    await store.set([(key, value)], None)
    assert await store.get(key) == value
    assert await store.get_many([key]) == [value]
    assert await store.contains(key) is True


@pytest.mark.parametrize("name", ODD_BYTES.values(), ids=ODD_BYTES)
async def test_a_key_comes_back_as_it_went_in(subject: Subject, name: bytes) -> None:
    """Keys of any bytes are told apart by every byte, in every verb."""
    store, key, other = subject.store, subject.key(b"k" + name), subject.key(b"k" + name + b"\0")
    await store.set([(key, b"1")], 60_000)
    assert await store.get(key) == b"1"
    assert await store.get(other) is None
    assert await store.add(key, b"2", None) is False
    assert await store.increment(key, 1, None) == 2
    assert await store.touch(key, 50_000) is True
    assert 0 < await store.ttl(key) <= 50_000
    assert await store.contains(other) is False
    assert await store.delete([other]) == 0
    assert await store.delete([key]) == 1


async def test_a_large_value_and_a_large_key_come_back(subject: Subject) -> None:
    store = subject.store
    key, value = subject.key(b"x" * 10_000), b"0123456789abcdef" * 65_536
    await store.set([(key, value)], 60_000)
    assert await store.get(key) == value
    await store.set([(key, value[:-1])], 60_000)
    assert await store.get_many([key, key]) == [value[:-1], value[:-1]]


async def test_what_is_not_there_is_none_and_no_error(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    assert await store.get(key) is None
    assert await store.get_many([key]) == [None]
    assert await store.contains(key) is False


# get_many


async def test_get_many_keeps_the_order_of_its_keys(subject: Subject) -> None:
    """One value or None for each key, also for one that comes twice."""
    store = subject.store
    a, b, c, gone = (subject.key(name) for name in (b"a", b"b", b"c", b"gone"))
    await store.set([(a, b"A"), (b, b""), (c, b"C")], None)
    assert await store.get_many([c, gone, a, a, b, gone, c]) == [
        b"C", None, b"A", b"A", b"", None, b"C",
    ]  # fmt: skip
    assert await store.get_many((b,)) == [b""]


async def test_many_keys_in_one_call(subject: Subject) -> None:
    store = subject.store
    items = [(subject.key(b"%d" % n), b"value %d" % n) for n in range(500)]
    keys = [key for key, _ in items]
    await store.set(items, 60_000)
    assert await store.get_many(keys) == [value for _, value in items]
    assert await store.delete(keys) == 500
    assert await store.get_many(keys) == [None] * 500


# set


async def test_set_replaces_whatever_was_there(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    await store.increment(key, 7, None)
    await store.set([(key, b"text")], None)
    assert await store.get(key) == b"text"
    await store.set([(key, b"other")], 60_000)
    assert await store.get(key) == b"other"


async def test_of_a_key_that_set_gets_twice_the_last_counts(subject: Subject) -> None:
    store, key, other = subject.store, subject.key(), subject.key(b"other")
    await store.set([(key, b"first"), (other, b"o"), (key, b"last")], None)
    assert await store.get_many([key, other]) == [b"last", b"o"]
    await store.set([(key, b"last"), (key, b"first")], 60_000)
    assert await store.get(key) == b"first"


async def test_set_takes_any_sequence_and_leaves_it_alone(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    items = [(key, b"1")]
    await store.set(items, None)
    await store.set(tuple(items), 60_000)
    assert items == [(key, b"1")]
    assert await store.get(key) == b"1"


# add


async def test_add_stores_only_what_is_not_there(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    assert await store.add(key, b"first", None) is True
    assert await store.add(key, b"second", None) is False
    assert await store.get(key) == b"first"
    assert await store.delete([key]) == 1
    assert await store.add(key, b"third", None) is True
    assert await store.get(key) == b"third"


async def test_an_empty_value_is_there(subject: Subject) -> None:
    """An empty value is a value: it is not taken for a missing one."""
    store, key = subject.store, subject.key()
    await store.set([(key, b"")], None)
    assert await store.get(key) == b""
    assert await store.add(key, b"1", None) is False
    assert await store.touch(key, 60_000) is True
    assert await store.delete([key]) == 1


# delete


async def test_delete_says_how_many_were_there(subject: Subject) -> None:
    store = subject.store
    a, b, gone = (subject.key(name) for name in (b"a", b"b", b"gone"))
    await store.set([(a, b"1"), (b, b"2")], None)
    assert await store.delete([gone]) == 0
    assert await store.delete([a, gone, b]) == 2
    assert await store.delete([a, b]) == 0
    assert await store.get_many([a, b]) == [None, None]


# increment


async def test_increment_counts_from_zero(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    assert await store.increment(key, 5, None) == 5
    assert await store.increment(key, 1, None) == 6
    assert await store.increment(key, -10, None) == -4
    assert await store.increment(key, 0, None) == -4
    assert await store.get(key) == b"-4"
    assert await store.increment(key, 4, None) == 0
    assert await store.get(key) == b"0"


async def test_increment_of_a_missing_key_by_nothing_creates_it(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    assert await store.increment(key, 0, None) == 0
    assert await store.get(key) == b"0"


@pytest.mark.parametrize(
    "value", [b"0", b"1", b"-1", b"42", b"%d" % INT64_MAX, b"%d" % INT64_MIN], ids=repr
)
async def test_increment_reads_what_set_stored(subject: Subject, value: bytes) -> None:
    store, key = subject.store, subject.key()
    await store.set([(key, value)], None)
    assert await store.increment(key, 0, None) == int(value)
    assert await store.get(key) == value


@pytest.mark.parametrize(
    "value",
    [
        b"", b"x", b" 1", b"1 ", b"1\n", b"+1", b"01", b"00", b"-0", b"-01", b"-", b"--1", b"1.0",
        b"1e3", b"1_0", b"0x1", b"1\0", b"\0", b"\xd9\xa1", b"9223372036854775808",
        b"-9223372036854775809", b"1" * 21, b"1" * 5_000,
    ],
    ids=lambda value: repr(value[:24]),
)  # fmt: skip
async def test_increment_of_no_whole_number_changes_nothing(subject: Subject, value: bytes) -> None:
    store, key = subject.store, subject.key()
    await store.set([(key, value)], None)
    with pytest.raises(ServerError):
        await store.increment(key, 1, 60_000)
    assert await store.get(key) == value
    assert await store.ttl(key) == NO_TTL


@pytest.mark.parametrize(
    ("value", "delta"),
    [
        (INT64_MAX, 1),
        (INT64_MIN, -1),
        (1, INT64_MAX),
        (-1, INT64_MIN),
        (INT64_MAX, INT64_MAX),
        (INT64_MIN, INT64_MIN),
    ],
)
async def test_a_sum_outside_64_bits_changes_nothing(
    subject: Subject, value: int, delta: int
) -> None:
    store, key = subject.store, subject.key()
    await store.set([(key, b"%d" % value)], 60_000)
    with pytest.raises(ServerError):
        await store.increment(key, delta, None)
    assert await store.get(key) == b"%d" % value
    assert 0 < await store.ttl(key) <= 60_000
    assert await store.increment(key, 0, None) == value, "the store is usable after an error"


async def test_increment_reaches_both_ends_of_64_bits(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    assert await store.increment(key, INT64_MAX, None) == INT64_MAX
    assert await store.increment(key, INT64_MIN, None) == -1
    assert await store.increment(key, INT64_MIN + 1, None) == INT64_MIN
    assert await store.increment(key, INT64_MAX, None) == -1
