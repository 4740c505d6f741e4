"""The contract: time to live. Real time, because a server has no other; short, and never exact."""

from __future__ import annotations

import pytest
from contract_subject import Subject

from pevensie.drivers import MISSING_TTL, NO_TTL
from pevensie.errors import ServerError

pytestmark = pytest.mark.anyio

SHORT = 50
"""Milliseconds: what a test waits for."""
LONG = 60_000
"""Milliseconds: what never runs out in a test."""


async def lasts(subject: Subject, key: bytes, at_most: int = LONG) -> bool:
    """Whether *key* is there with a TTL of at most *at_most* and not far from it."""
    return at_most - 5_000 < await subject.store.ttl(key) <= at_most


async def run_out(subject: Subject) -> None:
    """Wait until every entry that already has a TTL of SHORT must have run out."""
    last = subject.key(b"the last to run out")
    await subject.store.set([(last, b"")], SHORT + 10)

    async def is_gone() -> bool:
        return not await subject.store.contains(last)

    await subject.until(is_gone)


async def test_ttl_says_what_is_left(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    assert await store.ttl(key) == MISSING_TTL
    await store.set([(key, b"1")], None)
    assert await store.ttl(key) == NO_TTL
    await store.set([(key, b"1")], LONG)
    assert await lasts(subject, key)


async def test_ttl_counts_down_and_is_positive_to_the_end(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    await store.set([(key, b"1")], SHORT)
    seen = [SHORT]

    async def is_gone() -> bool:
        seen.append(await store.ttl(key))
        return seen[-1] == MISSING_TTL

    await subject.until(is_gone)
    assert seen == sorted(seen, reverse=True)
    assert min(seen[:-1]) >= 0


@pytest.mark.parametrize("ttl", [1, 999, 1_000, 1_001, 86_400_000, 100 * 366 * 86_400_000])
async def test_any_ttl_that_the_cache_may_send(subject: Subject, ttl: int) -> None:
    """From a millisecond to a hundred years: never more than was given, never immortal."""
    store = subject.store
    for verb, key in (
        (lambda key: store.set([(key, b"1")], ttl), subject.key(b"set")),
        (lambda key: store.add(key, b"1", ttl), subject.key(b"add")),
        (lambda key: store.increment(key, 1, ttl), subject.key(b"increment")),
    ):
        await verb(key)
        left = await store.ttl(key)
        assert left == MISSING_TTL or 0 <= left <= ttl
        if ttl > 10_000:
            assert left > ttl - 5_000


async def test_set_gives_its_ttl_to_each_item(subject: Subject) -> None:
    store, a, b = subject.store, subject.key(b"a"), subject.key(b"b")
    await store.set([(a, b"1"), (b, b"2")], LONG)
    assert await lasts(subject, a)
    assert await lasts(subject, b)
    await store.set([(a, b"1"), (b, b"2"), (a, b"3")], 2 * LONG)
    assert await lasts(subject, a, 2 * LONG)
    assert await lasts(subject, b, 2 * LONG)


async def test_set_replaces_the_ttl_and_none_removes_it(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    await store.set([(key, b"1")], SHORT)
    await store.set([(key, b"2")], LONG)
    assert await lasts(subject, key)
    await store.set([(key, b"3")], SHORT)
    assert 0 < await store.ttl(key) <= SHORT
    await store.set([(key, b"4")], None)
    assert await store.ttl(key) == NO_TTL
    await run_out(subject)
    assert await store.get(key) == b"4", "no TTL of an earlier set is left over"


async def test_add_gives_its_ttl_only_to_what_it_stores(subject: Subject) -> None:
    store, key, other = subject.store, subject.key(), subject.key(b"other")
    assert await store.add(key, b"1", LONG) is True
    assert await lasts(subject, key)
    assert await store.add(key, b"2", None) is False
    assert await lasts(subject, key)
    assert await store.add(other, b"1", None) is True
    assert await store.add(other, b"2", SHORT) is False
    assert await store.ttl(other) == NO_TTL


async def test_increment_gives_its_ttl_only_to_what_it_creates(subject: Subject) -> None:
    """A fixed window: the TTL is set with the first count and does not move."""
    store, key, other = subject.store, subject.key(), subject.key(b"other")
    await store.increment(key, 1, LONG)
    await store.increment(key, 1, 2 * LONG)
    await store.increment(key, 1, None)
    assert await lasts(subject, key)
    await store.increment(other, 1, None)
    await store.increment(other, 1, SHORT)
    assert await store.ttl(other) == NO_TTL


async def test_a_refused_increment_keeps_the_ttl(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    await store.set([(key, b"text")], LONG)
    with pytest.raises(ServerError):
        await store.increment(key, 1, SHORT)
    assert await lasts(subject, key)


async def test_a_counter_ends_with_its_window(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    assert await store.increment(key, 1, SHORT) == 1

    async def starts_again() -> bool:
        return await store.increment(key, 1, SHORT) == 1

    await subject.until(starts_again)


async def test_touch_gives_a_new_ttl_or_none(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    await store.set([(key, b"1")], None)
    assert await store.touch(key, LONG) is True
    assert await lasts(subject, key)
    assert await store.touch(key, 2 * LONG) is True
    assert await lasts(subject, key, 2 * LONG)
    assert await store.touch(key, None) is True
    assert await store.ttl(key) == NO_TTL
    assert await store.touch(key, None) is True, "also where there is no TTL to remove"
    assert await store.ttl(key) == NO_TTL
    assert await store.get(key) == b"1"


@pytest.mark.parametrize("ttl", [None, SHORT, LONG])
async def test_touch_of_what_is_not_there(subject: Subject, ttl: int | None) -> None:
    store, key = subject.store, subject.key()
    assert await store.touch(key, ttl) is False
    assert await store.contains(key) is False


async def test_reading_does_not_move_the_ttl(subject: Subject) -> None:
    store, key = subject.store, subject.key()
    await store.set([(key, b"1")], SHORT)

    async def is_gone() -> bool:
        await store.get_many([key])
        await store.contains(key)
        await store.add(key, b"2", LONG)
        return await store.get(key) == b"2"

    await subject.until(is_gone)


async def test_touch_shortens_and_lengthens_a_life(subject: Subject) -> None:
    store, short, long = subject.store, subject.key(b"short"), subject.key(b"long")
    await store.set([(short, b"1"), (long, b"1")], LONG)
    assert await store.touch(short, SHORT) is True
    assert await store.touch(long, SHORT) is True
    assert await store.touch(long, LONG) is True
    await run_out(subject)
    assert await store.get_many([short, long]) == [None, b"1"]


async def test_what_has_run_out_is_not_there_for_any_verb(subject: Subject) -> None:
    store = subject.store
    names = ("get", "get_many", "set", "add", "delete", "increment", "touch", "contains", "ttl")
    keys = {name: subject.key(name.encode()) for name in names}
    await store.set([(key, b"10") for key in keys.values()], SHORT)
    await run_out(subject)
    assert await store.get(keys["get"]) is None
    assert await store.get_many([keys["get_many"], keys["get"]]) == [None, None]
    assert await store.contains(keys["contains"]) is False
    assert await store.ttl(keys["ttl"]) == MISSING_TTL
    assert await store.touch(keys["touch"], LONG) is False
    assert await store.delete([keys["delete"]]) == 0
    assert await store.add(keys["add"], b"new", None) is True
    assert await store.ttl(keys["add"]) == NO_TTL
    assert await store.increment(keys["increment"], 1, LONG) == 1
    assert await lasts(subject, keys["increment"])
    await store.set([(keys["set"], b"new")], None)
    assert await store.ttl(keys["set"]) == NO_TTL
