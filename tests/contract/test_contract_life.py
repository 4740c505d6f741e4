"""The contract: a store before its first verb, and after drain and close."""

from __future__ import annotations

import pytest
from contract_subject import VERBS, Subject

from pevensie.errors import NotConnected, PevensieError, ShutdownError

pytestmark = pytest.mark.anyio


async def test_start_and_ping_come_back(subject: Subject) -> None:
    await subject.store.start()
    await subject.store.ping()
    assert await subject.store.get(subject.key()) is None


@pytest.mark.parametrize("verb", VERBS)
async def test_every_verb_works_without_start(subject: Subject, verb: str) -> None:
    await VERBS[verb](subject.open(), subject.key())


async def test_making_a_store_and_closing_it_needs_no_use(subject: Subject) -> None:
    await subject.open().close(force=False)
    await subject.open().drain()


@pytest.mark.parametrize("end", ["close", "close by force", "drain", "drain and close"])
@pytest.mark.parametrize("used", [False, True], ids=["unused", "used"])
async def test_each_verb_of_a_closed_store_raises(subject: Subject, end: str, used: bool) -> None:
    store, key = subject.open(), subject.key()
    if used:
        await store.set([(key, b"1")], None)
    if "drain" in end:
        await store.drain()
    if "close" in end:
        await store.close(force="force" in end)
    for name, verb in VERBS.items():
        with pytest.raises(NotConnected) as raised:
            await verb(store, key)
        assert "connect" in str(raised.value), f"{name}: the message says what to do"
    assert await subject.store.get(key) == (b"1" if used else None), "refused, not executed"


async def test_closing_and_draining_again_is_fine(subject: Subject) -> None:
    store = subject.open()
    await store.ping()
    await store.drain()
    await store.drain()
    await store.close(force=False)
    await store.close(force=False)
    await store.close(force=True)
    await store.drain()
    with pytest.raises(NotConnected):
        await store.ping()


async def test_a_store_opened_again_sees_the_entries(subject: Subject) -> None:
    store, key, counter = subject.open(), subject.key(), subject.key(b"counter")
    await store.set([(key, b"1")], 60_000)
    await store.increment(counter, 5, None)
    await store.drain()
    await store.close(force=False)
    again = subject.open()
    assert await again.get(key) == b"1"
    assert 0 < await again.ttl(key) <= 60_000
    assert await again.increment(counter, 1, None) == 6


async def test_stores_of_one_driver_see_each_others_entries(subject: Subject) -> None:
    """Also across the colours; and closing one leaves the others open."""
    blocking, awaited = subject.open("sync"), subject.open("async")
    key = subject.key()
    await blocking.set([(key, b"from sync")], None)
    assert await awaited.get(key) == b"from sync"
    await awaited.set([(key, b"from async")], None)
    assert await blocking.get(key) == b"from async"
    await blocking.close(force=False)
    assert await awaited.get(key) == b"from async"
    await awaited.close(force=False)
    assert await subject.store.get(key) == b"from async"


@pytest.mark.parametrize("end", ["drain", "close", "close by force"])
async def test_ending_a_store_in_use(subject: Subject, end: str) -> None:
    """Calls under way give the right answer or an error of ours; later ones NotConnected.

    A close without force may refuse; then the store stays open.
    """
    store, key = subject.open(), subject.key()
    await store.set([(key, b"1")], None)

    async def use() -> int:
        answers = 0
        for _ in range(50):
            try:
                assert await store.get(key) == b"1"
                answers += 1
            except PevensieError:
                pass
            await subject.breathe()
        return answers

    async def finish() -> int:
        for _ in range(3):
            await subject.breathe()
        try:
            await (store.drain() if end == "drain" else store.close(force="force" in end))
        except ShutdownError:
            assert end == "close"
            return 0
        with pytest.raises(NotConnected):
            await store.get(key)
        return 1

    *_, ended = await subject.at_once(*[use] * 6, finish)
    if ended:
        with pytest.raises(NotConnected):
            await store.get(key)
    else:
        assert await store.get(key) == b"1"
        await store.close(force=False)
