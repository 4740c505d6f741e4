"""The contract: many callers at once, in threads, in tasks and in event loops of their own."""

from __future__ import annotations

import asyncio
import random

import pytest
from contract_subject import Job, Subject

from pevensie.drivers import MISSING_TTL

pytestmark = pytest.mark.anyio


def tagged_users(subject: Subject, tags: range, rounds: int) -> list[Job[None]]:
    """Jobs that each use keys of their own, and fail if they see another's value."""

    def user(tag: int) -> Job[None]:
        store, rng = subject.store, random.Random(tag)
        keys = [subject.key(b"%d/%d" % (tag, n)) for n in range(3)]
        counter = subject.key(b"%d/counter" % tag)

        async def use() -> None:
            for turn in range(1, rounds + 1):
                values = [b"%d/%d/%d " % (tag, turn, n) * rng.randrange(1, 40) for n in range(3)]
                await store.set(list(zip(keys, values, strict=True)), 60_000)
                await subject.breathe()
                assert await store.get(keys[1]) == values[1]
                assert await store.get_many(keys) == values
                await subject.breathe()
                assert await store.increment(counter, tag, None) == tag * turn
                assert await store.contains(keys[2]) is True
                assert 0 < await store.ttl(keys[0]) <= 60_000
                assert await store.delete(keys[:2]) == 2
                assert await store.add(keys[0], values[0], None) is True
                assert await store.add(keys[2], values[0], None) is False

        return use

    return [user(tag) for tag in tags]


async def test_each_of_many_callers_gets_its_own_values(subject: Subject) -> None:
    await subject.at_once(*tagged_users(subject, range(1, 17), rounds=10))


async def test_threads_share_a_store(subject: Subject) -> None:
    """In the async colour each thread has an event loop of its own."""
    await subject.at_once(*tagged_users(subject, range(1, 3), rounds=2))
    subject.in_threads(*tagged_users(subject, range(3, 9), rounds=10))
    await subject.at_once(*tagged_users(subject, range(9, 11), rounds=2))


async def test_of_many_adds_at_once_one_stores(subject: Subject) -> None:
    for turn in range(10):
        key = subject.key(b"%d" % turn)

        def adder(tag: int, key: bytes = key) -> Job[bool]:
            async def add() -> bool:
                await subject.breathe()
                return await subject.store.add(key, b"%d" % tag, 60_000)

            return add

        stored = await subject.at_once(*[adder(tag) for tag in range(12)])
        assert stored.count(True) == 1
        assert stored.count(False) == 11
        assert await subject.store.get(key) == b"%d" % stored.index(True)


async def test_of_many_increments_at_once_none_is_lost(subject: Subject) -> None:
    """One step: each caller sees a sum that no other sees."""
    key = subject.key()

    async def count() -> list[int]:
        sums: list[int] = []
        for _ in range(20):
            sums.append(await subject.store.increment(key, 1, 60_000))
            await subject.breathe()
        return sums

    sums = await subject.at_once(*[count] * 8)
    assert sorted(number for own in sums for number in own) == list(range(1, 161))
    assert all(own == sorted(own) for own in sums)
    assert await subject.store.get(key) == b"160"


async def test_of_many_deletes_at_once_one_counts(subject: Subject) -> None:
    keys = [subject.key(b"%d" % n) for n in range(5)]
    await subject.store.set([(key, b"1") for key in keys], None)

    async def remove() -> int:
        await subject.breathe()
        return await subject.store.delete(keys)

    assert sum(await subject.at_once(*[remove] * 8)) == 5


async def test_get_many_sees_one_moment(subject: Subject) -> None:
    """First is counted before second, so at no moment is second ahead of first."""
    first, second = subject.key(b"first"), subject.key(b"second")
    store = subject.store
    await store.set([(first, b"0"), (second, b"0")], None)

    async def write() -> None:
        for _ in range(60):
            await store.increment(first, 1, None)
            await subject.breathe()
            await store.increment(second, 1, None)
            await subject.breathe()

    async def read() -> None:
        for _ in range(60):
            ahead, behind = await store.get_many([first, second])
            assert ahead is not None
            assert behind is not None
            assert 0 <= int(ahead) - int(behind) <= 1
            await subject.breathe()

    await subject.at_once(write, read, read)


async def test_an_entry_is_never_seen_without_its_ttl(subject: Subject) -> None:
    key, counter = subject.key(), subject.key(b"counter")
    store = subject.store

    async def write() -> None:
        for n in range(60):
            await store.set([(key, b"1")], 60_000)
            await store.increment(counter, 1, 60_000)
            await subject.breathe()
            await store.delete([key, counter])
            if n % 2:
                await store.add(key, b"1", 60_000)
            await subject.breathe()

    async def read() -> None:
        for _ in range(60):
            for watched in (key, counter):
                left = await store.ttl(watched)
                assert left == MISSING_TTL or 0 < left <= 60_000
            await subject.breathe()

    await subject.at_once(write, read, read)


# Cancelling: only the async colour can be


@pytest.mark.parametrize("round_", range(5))
async def test_cancelling_a_verb_leaves_the_store_usable(
    async_subject: Subject, round_: int
) -> None:
    """Whoever is cancelled, the others get their own values, during and after."""
    store = async_subject.store
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    keys = [async_subject.key(b"%d" % n) for n in range(60)]
    values = [b"value %d " % n * rng.randrange(1, 200) for n in range(60)]
    await store.set(list(zip(keys, values, strict=True)), 60_000)

    async def read(n: int) -> None:
        for _ in range(5):
            assert await store.get(keys[n]) == values[n]
            assert await store.get_many(keys[n:]) == values[n:]
            await async_subject.breathe()

    tasks = [asyncio.ensure_future(read(n)) for n in range(60)]
    cancelled = rng.sample(tasks, 30)
    for task in cancelled:
        for _ in range(rng.randrange(2)):
            await asyncio.sleep(0)
        task.cancel()
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    for task, outcome in zip(tasks, done, strict=True):
        if isinstance(outcome, asyncio.CancelledError):
            assert task in cancelled
        else:
            assert outcome is None
    assert await store.get_many(keys) == values
    await store.ping()


async def test_cancelling_writes_leaves_each_entry_whole(async_subject: Subject) -> None:
    """A cancelled write happened or it did not; other entries and TTLs are untouched."""
    store = async_subject.store
    keys = [async_subject.key(b"%d" % n) for n in range(40)]
    other = async_subject.key(b"other")
    await store.set([(key, b"old") for key in keys], 60_000)
    await store.set([(other, b"other")], None)

    async def write(key: bytes) -> None:
        await store.set([(key, b"new")], 120_000)

    tasks = [asyncio.ensure_future(write(key)) for key in keys]
    await asyncio.sleep(0)
    for task in tasks[::2]:
        task.cancel()
    done = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 10)
    await store.ping()
    for key, outcome in zip(keys, done, strict=True):
        value, left = await store.get(key), await store.ttl(key)
        assert value in ((b"old", b"new") if outcome else (b"new",))
        assert (60_000 < left <= 120_000) if value == b"new" else (0 < left <= 60_000)
    assert await store.get(other) == b"other"
