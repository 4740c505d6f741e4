"""The in-process driver: what the contract leaves open. The contract itself: tests/contract."""

from __future__ import annotations

import asyncio
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from types import FrameType
from typing import Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    rule,
    run_state_machine_as_test,
)

from pevensie import memory
from pevensie.drivers import MISSING_TTL, NO_TTL, AsyncStore, Driver, Store
from pevensie.errors import NotConnected, ServerError
from pevensie.memory import MemoryDriver, driver_from_url, new_cache_driver


class Clock:
    """Seconds that pass when the test says so."""

    def __init__(self, now: float = 1_000.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def there(store: Store, *keys: bytes) -> list[bytes]:
    """Which of *keys* are there; asking is no use of them."""
    return [key for key in keys if store.contains(key)]


# The description


def test_a_driver_and_its_stores_are_what_the_protocols_ask_for() -> None:
    driver: Driver = new_cache_driver()
    store: Store = driver.open()
    async_store: AsyncStore = driver.open_async()
    assert repr(driver) == "<MemoryDriver max_entries=10000 namespace=None: 0 entries>"
    assert repr(store) == "<memory store: open, 0 of 10000 entries>"
    assert repr(async_store) == "<async <memory store: open, 0 of 10000 entries>>"
    store.close(force=False)
    assert repr(store) == "<memory store: closed, 0 of 10000 entries>"


def test_a_driver_shows_what_it_was_made_with() -> None:
    driver = new_cache_driver(max_entries=5, namespace="narnia/west")
    assert (driver.max_entries, driver.namespace) == (5, "narnia/west")
    driver.open().set([(b"a", b"1"), (b"b", b"2")], None)
    assert repr(driver) == "<MemoryDriver max_entries=5 namespace='narnia/west': 2 entries>"
    with pytest.raises(AttributeError):
        driver.namespace = "calormen"  # type: ignore[misc]


def test_an_empty_driver_is_not_false() -> None:
    assert new_cache_driver()


@pytest.mark.parametrize("value", [True, False, "10", 10.0, None, [10]], ids=repr)
def test_max_entries_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(
        TypeError, match=r"max_entries must be an int .*not " + type(value).__name__
    ):
        new_cache_driver(max_entries=value)


@pytest.mark.parametrize("value", [0, -1])
def test_max_entries_below_one(value: int) -> None:
    with pytest.raises(ValueError, match=f"max_entries must be at least 1, not {value}"):
        new_cache_driver(max_entries=value)


@pytest.mark.parametrize("value", ["", "a:b", ":", "\ud800"], ids=ascii)
def test_a_namespace_that_cannot_be(value: str) -> None:
    with pytest.raises(ValueError, match="namespace must"):
        new_cache_driver(namespace=value)


@pytest.mark.parametrize("value", [b"a", 1, True], ids=repr)
def test_a_namespace_of_a_wrong_type(value: Any) -> None:
    with pytest.raises(TypeError, match="namespace must be a str or None"):
        new_cache_driver(namespace=value)


def test_a_clock_that_is_none() -> None:
    wrong: Any = 12.5
    with pytest.raises(TypeError, match="clock must be a function"):
        new_cache_driver(clock=wrong)


def test_making_a_driver_does_not_ask_the_clock() -> None:
    def clock() -> float:
        raise AssertionError

    driver = MemoryDriver(clock=clock)
    driver.open().ping()


# Whose the entries are


def test_both_colours_and_all_stores_share_the_entries() -> None:
    driver = new_cache_driver()
    first, second, awaited = driver.open(), driver.open(), driver.open_async()
    first.set([(b"a", b"1")], None)
    assert second.get(b"a") == b"1"
    assert asyncio.run(_get(awaited, b"a")) == b"1"
    asyncio.run(_close(awaited))
    first.close(force=True)
    assert second.increment(b"a", 1, None) == 2
    second.drain()
    assert driver.open().get(b"a") == b"2"
    assert asyncio.run(_get(driver.open_async(), b"a")) == b"2"


def test_two_drivers_share_nothing() -> None:
    one, other = new_cache_driver().open(), new_cache_driver().open()
    one.set([(b"a", b"1")], None)
    assert other.get(b"a") is None
    assert driver_from_url("memory://").open().get(b"a") is None


async def _get(store: AsyncStore, key: bytes) -> bytes | None:
    return await store.get(key)


async def _close(store: AsyncStore) -> None:
    await store.close(force=False)


# The end of a store


def test_a_closed_store_says_what_to_do() -> None:
    store = new_cache_driver().open()
    store.close(force=False)
    with pytest.raises(NotConnected, match=r"connect again with connect\(\) or connect_async\(\)"):
        store.get(b"a")


VERBS: dict[str, Callable[[Any], Any]] = {
    "start": lambda store: store.start(),
    "get": lambda store: store.get(b"a"),
    "get_many": lambda store: store.get_many([b"a"]),
    "set": lambda store: store.set([(b"a", b"1")], None),
    "add": lambda store: store.add(b"a", b"1", None),
    "delete": lambda store: store.delete([b"a"]),
    "increment": lambda store: store.increment(b"a", 1, None),
    "touch": lambda store: store.touch(b"a", None),
    "contains": lambda store: store.contains(b"a"),
    "ttl": lambda store: store.ttl(b"a"),
    "ping": lambda store: store.ping(),
}


@pytest.mark.parametrize("verb", VERBS)
@pytest.mark.parametrize("closed", [False, True], ids=["open", "closed"])
def test_an_async_verb_does_nothing_until_it_is_awaited(verb: str, closed: bool) -> None:
    """Then it ends, or raises, without ever suspending; no event loop is needed."""
    driver = new_cache_driver()
    store = driver.open_async()
    if closed:
        with pytest.raises(StopIteration):
            _step(store.drain())
    call = VERBS[verb](store)
    assert repr(driver).endswith(": 0 entries>")
    with pytest.raises(NotConnected if closed else StopIteration):
        _step(call)


def _step(call: Any) -> None:
    call.send(None)


# The bound


def test_over_the_bound_the_least_recently_used_goes(clock: Clock) -> None:
    store = new_cache_driver(max_entries=3, clock=clock).open()
    for key in (b"a", b"b", b"c", b"d"):
        store.set([(key, b"1")], None)
    assert there(store, b"a", b"b", b"c", b"d") == [b"b", b"c", b"d"]


USES: dict[str, Callable[[Store], object]] = {
    "get": lambda store: store.get(b"a"),
    "get_many": lambda store: store.get_many([b"a"]),
    "set": lambda store: store.set([(b"a", b"2")], None),
    "add": lambda store: store.add(b"a", b"2", None),
    "increment": lambda store: store.increment(b"a", 1, None),
    "touch": lambda store: store.touch(b"a", 60_000),
}


@pytest.mark.parametrize("verb", USES)
def test_what_counts_as_use(verb: str) -> None:
    store = new_cache_driver(max_entries=2).open()
    store.set([(b"a", b"1"), (b"b", b"1")], None)
    USES[verb](store)
    store.set([(b"c", b"1")], None)
    assert there(store, b"a", b"b", b"c") == [b"a", b"c"]


LOOKS: dict[str, Callable[[Store], object]] = {
    "contains": lambda store: store.contains(b"a"),
    "ttl": lambda store: store.ttl(b"a"),
    "get another": lambda store: store.get(b"z"),
    "delete another": lambda store: store.delete([b"z"]),
}


@pytest.mark.parametrize("verb", LOOKS)
def test_what_is_no_use(verb: str) -> None:
    store = new_cache_driver(max_entries=2).open()
    store.set([(b"a", b"1"), (b"b", b"1")], None)
    LOOKS[verb](store)
    store.set([(b"c", b"1")], None)
    assert there(store, b"a", b"b", b"c") == [b"b", b"c"]


def test_get_many_uses_its_keys_in_their_order() -> None:
    store = new_cache_driver(max_entries=3).open()
    store.set([(b"a", b"1"), (b"b", b"1"), (b"c", b"1")], None)
    store.get_many([b"c", b"z", b"a", b"c", b"b"])
    store.set([(b"d", b"1")], None)
    assert there(store, b"a", b"b", b"c", b"d") == [b"b", b"c", b"d"]


def test_of_more_items_than_the_bound_the_last_stay() -> None:
    driver = new_cache_driver(max_entries=3)
    store = driver.open()
    store.set([(b"%d" % n, b"1") for n in range(10)], None)
    assert there(store, *(b"%d" % n for n in range(10))) == [b"7", b"8", b"9"]
    assert repr(driver).endswith(": 3 entries>")


def test_a_bound_of_one() -> None:
    store = new_cache_driver(max_entries=1).open()
    store.set([(b"a", b"1")], None)
    assert store.increment(b"b", 1, 1_000) == 1
    assert store.add(b"b", b"2", None) is False
    assert store.add(b"c", b"3", None) is True
    assert there(store, b"a", b"b", b"c") == [b"c"]


def test_replacing_an_entry_pushes_nothing_out() -> None:
    store = new_cache_driver(max_entries=2).open()
    store.set([(b"a", b"1"), (b"b", b"1")], None)
    for _ in range(5):
        store.set([(b"b", b"2")], 1_000)
        store.touch(b"b", None)
        store.increment(b"b", 1, None)
    assert there(store, b"a", b"b") == [b"a", b"b"]


def test_what_has_expired_goes_before_what_is_live(clock: Clock) -> None:
    store = new_cache_driver(max_entries=3, clock=clock).open()
    store.set([(b"oldest", b"1")], None)
    store.set([(b"brief", b"1")], 1_000)
    store.set([(b"newest", b"1")], 5_000)
    clock.now += 1
    store.set([(b"more", b"1")], None)
    assert there(store, b"oldest", b"brief", b"newest", b"more") == [b"oldest", b"newest", b"more"]
    store.set([(b"again", b"1")], None)
    assert there(store, b"oldest", b"newest", b"more", b"again") == [b"newest", b"more", b"again"]


def test_a_flood_of_brief_entries_leaves_the_lasting_ones(clock: Clock) -> None:
    """Half of the room is live at any time, so nothing that is live has to go."""
    store = new_cache_driver(max_entries=100, clock=clock).open()
    lasting = [b"lasting %d" % n for n in range(40)]
    store.set([(key, b"1") for key in lasting], 3_600_000)
    for n in range(2_000):
        store.set([(b"brief %d" % n, b"1")], 50)
        clock.now += 0.001
    assert there(store, *lasting) == lasting


def test_what_has_expired_does_not_pile_up(clock: Clock) -> None:
    driver = new_cache_driver(clock=clock)
    store = driver.open()
    store.set([(b"old %d" % n, b"1") for n in range(500)], 1_000)
    clock.now += 1
    for n in range(500):
        store.set([(b"new %d" % n, b"1")], None)
        assert repr(driver).endswith(": 500 entries>")


def test_deadlines_that_are_out_of_date_do_not_pile_up(clock: Clock) -> None:
    """Neither with time that stands still nor with time that passes."""
    driver = new_cache_driver(max_entries=10, clock=clock)
    store = driver.open()
    for n in range(5_000):
        store.set([(b"%d" % (n % 7), b"1")], 3_600_000 - n)
        store.touch(b"3", 3_600_000)
        if n % 3 == 0:
            store.delete([b"%d" % (n % 5)])
        if n > 2_500:
            clock.now += 0.001
    assert len(driver._entries._due) <= 2 * 10 + memory._DUE_SLACK + 1


# Time


def test_an_entry_ends_at_its_deadline_exactly(clock: Clock) -> None:
    store = new_cache_driver(clock=clock).open()
    store.set([(b"a", b"1")], 1_500)
    clock.now = 1_001.499_999
    assert store.get(b"a") == b"1"
    assert store.ttl(b"a") == 1
    clock.now = 1_001.5
    assert store.get(b"a") is None
    assert store.ttl(b"a") == MISSING_TTL


@pytest.mark.parametrize("start", [0, 0.1, 1_000.001, 123_456.789, 1e7 + 0.3, 1.7e9 + 0.7])
@pytest.mark.parametrize("ttl", [1, 100, 200, 999, 1_001, 3_600_000, 100 * 366 * 86_400_000])
def test_a_ttl_reads_as_it_was_given(start: float, ttl: int) -> None:
    """Whatever the clock shows: floats do not add a millisecond, nor take one."""
    clock = Clock(start)
    store = new_cache_driver(clock=clock).open()
    store.set([(b"a", b"1")], ttl)
    assert store.ttl(b"a") == ttl
    clock.now = start + (ttl - 0.5) / 1000
    assert store.ttl(b"a") == 1
    clock.now = start + ttl / 1000
    assert store.contains(b"a") is False


def test_ttl_is_rounded_up_and_the_clock_may_count_in_ints(clock: Clock) -> None:
    store = new_cache_driver(clock=clock).open()
    clock.now = 7
    store.set([(b"a", b"1")], 2_000)
    clock.now = 8
    assert store.ttl(b"a") == 1_000
    clock.now = 8.0001
    assert store.ttl(b"a") == 1_000


def test_the_clock_is_asked_once_for_each_verb() -> None:
    """So that what ends at one moment is never half there."""
    ticks = iter(range(1, 100))
    store = new_cache_driver(clock=lambda: float(next(ticks))).open()
    store.set([(b"a", b"1"), (b"b", b"1"), (b"c", b"1")], 3_000)
    assert store.get_many([b"a", b"b", b"c"]) == [b"1"] * 3
    assert store.get_many([b"a", b"b", b"c"]) == [b"1"] * 3
    assert store.get_many([b"a", b"b", b"c"]) == [None] * 3


def test_an_entry_without_ttl_outlives_everything(clock: Clock) -> None:
    store = new_cache_driver(clock=clock).open()
    store.set([(b"a", b"1")], None)
    clock.now += 1e9
    assert store.ttl(b"a") == NO_TTL
    assert store.get(b"a") == b"1"


# INCRBY


def test_what_increment_refuses_is_said_in_the_words_of_redis() -> None:
    store = new_cache_driver().open()
    store.set([(b"text", b"x"), (b"most", b"%d" % (2**63 - 1))], None)
    with pytest.raises(ServerError) as raised:
        store.increment(b"text", 1, None)
    assert str(raised.value) == "ERR value is not an integer or out of range"
    assert raised.value.code == "ERR"
    with pytest.raises(ServerError) as raised:
        store.increment(b"most", 1, None)
    assert str(raised.value) == "ERR increment or decrement would overflow"
    assert raised.value.code == "ERR"


@pytest.mark.parametrize("delta", [2**63, -(2**63) - 1, 2**70])
def test_a_delta_outside_64_bits_is_refused(delta: int) -> None:
    """Also where the sum would fit."""
    store = new_cache_driver().open()
    store.set([(b"a", b"-5" if delta > 0 else b"5")], None)
    with pytest.raises(ServerError, match="not an integer or out of range"):
        store.increment(b"a", delta, None)
    with pytest.raises(ServerError, match="not an integer or out of range"):
        store.increment(b"gone", delta, None)
    assert store.contains(b"gone") is False


# URLs


def test_a_url_describes_a_driver() -> None:
    driver = driver_from_url("memory://")
    assert (driver.max_entries, driver.namespace) == (10_000, None)
    driver = driver_from_url("memory://?max_entries=500&namespace=nar%6Eia")
    assert (driver.max_entries, driver.namespace) == (500, "narnia")
    assert driver_from_url("MEMORY://?").max_entries == 10_000
    assert driver_from_url("memory://?namespace=x").namespace == "x"


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", "must begin with memory://"),
        ("memory", "must begin with memory://"),
        ("memory:", "must begin with memory://"),
        ("memory:?max_entries=5", "must begin with memory://"),
        (" memory://", "must begin with memory://"),
        ("redis://u:hunter2@host/0", "must begin with memory://"),
        ("memory://host", "no host, path or fragment"),
        ("memory://u:hunter2@host", "no host, path or fragment"),
        ("memory:///", "no host, path or fragment"),
        ("memory://#x", "no host, path or fragment"),
        ("memory://[", "cannot be read"),
        ("memory://?namespace=%ff", "cannot be read"),
        ("memory://?max_entries=5&max_entries=6", "'max_entries' twice"),
        ("memory://?max_entries=", "max_entries in the memory URL must be a whole number"),
        ("memory://?max_entries", "max_entries in the memory URL must be a whole number"),
        ("memory://?max_entries=1e3", "max_entries in the memory URL must be a whole number"),
        ("memory://?max_entries=1_000", "max_entries in the memory URL must be a whole number"),
        ("memory://?max_entries=-1", "max_entries in the memory URL must be a whole number"),
        ("memory://?max_entries=%D9%A1", "max_entries in the memory URL must be a whole number"),
        ("memory://?max_entries=" + "9" * 5000, "max_entries in the memory URL must be"),
        ("memory://?max_entries=0", "max_entries must be at least 1"),
        ("memory://?namespace=", "namespace must not be empty"),
        ("memory://?namespace=a:b", "namespace must not contain ':'"),
        ("memory://?max_entry=5", "unknown parameter 'max_entry'.*did you mean 'max_entries'"),
        ("memory://?MAX_ENTRIES=5", "'MAX_ENTRIES'.*did you mean 'max_entries'"),
        ("memory://?maxsize=5", "'maxsize'.*there are: max_entries, namespace"),
        ("memory://?name_space=x", "'name_space'.*did you mean 'namespace'"),
        ("memory://?qqq=hunter2", "'qqq' in the memory URL; there are: max_entries, namespace"),
    ],
    ids=lambda value: value[:40],
)  # fmt: skip
def test_a_url_that_is_wrong(url: str, message: str) -> None:
    with pytest.raises(ValueError, match=message) as raised:
        driver_from_url(url)
    assert type(raised.value) is ValueError
    assert "hunter2" not in str(raised.value)


def test_a_url_of_a_wrong_type() -> None:
    wrong: Any = b"memory://"
    with pytest.raises(TypeError, match="the URL must be a str"):
        driver_from_url(wrong)


# Threads


@pytest.fixture
def seed() -> int:
    seed = random.randrange(2**32)
    print(f"seed {seed}")
    return seed


@pytest.fixture
def eager_threads() -> Iterator[None]:
    """Threads are switched far more often than usual."""
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


def test_threads_do_not_disturb_each_other(seed: int, eager_threads: None) -> None:
    """Each thread checks every reply on its own keys against a model, and all share a counter."""
    driver = new_cache_driver(max_entries=1_000)
    shared = driver.open()

    def work(number: int) -> int:
        rng = random.Random(seed + number)
        store = shared if number % 2 else driver.open()
        keys = [b"%d/%d" % (number, n) for n in range(6)]
        model: dict[bytes, bytes] = {}
        added = 0
        for turn in range(400):
            key, value = rng.choice(keys), b"%d" % rng.randrange(1_000)
            match rng.randrange(8):
                case 0:
                    store.set([(key, value)], rng.choice([None, 60_000]))
                    model[key] = value
                case 1:
                    assert store.add(key, value, 60_000) == (key not in model), turn
                    model.setdefault(key, value)
                case 2:
                    assert store.delete([key]) == (model.pop(key, None) is not None), turn
                case 3:
                    model[key] = b"%d" % (int(model.get(key, b"0")) + 3)
                    assert store.increment(key, 3, 60_000) == int(model[key]), turn
                case 4:
                    assert store.touch(key, rng.choice([None, 60_000])) == (key in model), turn
                case 5:
                    assert store.get_many(keys) == [model.get(k) for k in keys], turn
                case 6:
                    added += (amount := rng.randrange(-5, 6))
                    store.increment(b"shared", amount, None)
                case _:
                    assert store.get(key) == model.get(key), turn
        return added

    with ThreadPoolExecutor(8) as pool:
        added = sum(pool.map(work, range(8)))
    assert driver.open().increment(b"shared", 0, None) == added


def test_threads_over_the_bound(seed: int, eager_threads: None) -> None:
    """The bound holds, values stay with their keys, items of one set are seen together."""
    driver = new_cache_driver(max_entries=20)

    def work(number: int) -> None:
        rng, store = random.Random(seed + number), driver.open()
        for turn in range(300):
            n = rng.randrange(30)
            value = b"%d/%d/%d" % (n, number, turn)
            ttl = rng.choice([None, 1, 5, 60_000])
            store.set([(b"%d/left" % n, value), (b"%d/right" % n, value)], ttl)
            n = rng.randrange(30)
            left, right = store.get_many([b"%d/left" % n, b"%d/right" % n])
            assert left is None or left.startswith(b"%d/" % n)
            assert right is None or left is None or left == right
            with memory._lock:  # a set in progress may be over the bound for a moment
                assert len(driver._entries) <= 20

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(8)))
    entries = driver._entries
    live = {key: entry[1] for key, entry in entries._held.items() if entry[1] is not None}
    assert set(live.items()) <= {(key, deadline) for deadline, key in entries._due}


@pytest.mark.parametrize("verb", [verb for verb in VERBS if verb not in ("start", "ping")])
def test_close_waits_for_the_verb_under_way(verb: str) -> None:
    """A verb is one step: once close has returned, nothing more happens through that store."""
    inside, go_on = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread() is user:
            inside.set()
            assert go_on.wait(10)
        return 0.0

    driver = new_cache_driver(clock=clock)
    store = driver.open()
    user = threading.Thread(target=lambda: VERBS[verb](store))
    closer = threading.Thread(target=lambda: store.close(force=True))
    user.start()
    assert inside.wait(10)
    closer.start()
    closer.join(0.02)
    assert closer.is_alive()
    go_on.set()
    user.join(10)
    closer.join(10)
    with pytest.raises(NotConnected):
        store.ping()


# One thread that interrupts itself


def test_a_store_may_be_used_in_the_middle_of_a_verb() -> None:
    """As by a signal handler or a finalizer: it does not wait for its own thread."""
    depth = 0

    def clock() -> float:
        nonlocal depth
        depth += 1
        if depth == 1:
            store.set([(b"inner", b"1")], None)
        return 0.0

    store = new_cache_driver(clock=clock).open()
    store.set([(b"outer", b"1")], None)
    assert there(store, b"inner", b"outer") == [b"inner", b"outer"]


INTERRUPTERS: dict[str, Callable[[Store], object]] = {
    "delete": lambda store: store.delete([b"a", b"b", b"c", b"d"]),
    "set": lambda store: store.set([(b"x", b"1"), (b"y", b"2"), (b"z", b"3")], 60_000),
    "replace": lambda store: store.set([(b"a", b"1"), (b"b", b"2")], 1),
}


@pytest.mark.parametrize("state", ["live", "expired", "absent"])
@pytest.mark.parametrize("interrupter", INTERRUPTERS)
@pytest.mark.parametrize("verb", ["get", "get_many", "set", "add", "delete", "increment", "touch"])
def test_a_signal_handler_may_use_the_store_at_any_moment(
    clock: Clock, verb: str, interrupter: str, state: str
) -> None:
    """It is put before each single instruction of a verb, one after the other.

    Nothing raises, and what comes after finds the entries whole and within the bound.
    """
    moment = 0
    interrupted = True
    while interrupted:
        driver = new_cache_driver(max_entries=3, clock=clock)
        store = driver.open()
        store.set([(b"d" if state == "absent" else b"a", b"1"), (b"b", b"1")], 500)
        store.set([(b"c", b"1")], None)
        if state == "expired":
            clock.now += 1
        interrupted = _interrupt(
            partial(VERBS[verb], store), moment, partial(INTERRUPTERS[interrupter], store)
        )
        if interrupted and interrupter == "set" and state == "expired":
            assert len(driver._entries) >= 3, "no live entry is taken for an expired one"
        store.set([(b"last", b"1")], 1_000)
        assert store.get(b"last") == b"1"
        assert len(driver._entries) <= 3
        assert not memory._lock._is_owned()  # type: ignore[attr-defined]
        moment += 1
    assert moment > 20, "there were moments to interrupt"


def _interrupt(call: Callable[[], object], moment: int, handler: Callable[[], object]) -> bool:
    """Call, and run *handler* before instruction number *moment* of it; ``False``: it has fewer."""
    instructions = 0

    def trace(frame: FrameType, event: str, arg: object) -> Any:
        nonlocal instructions
        if frame.f_code.co_filename != memory.__file__:
            return None
        frame.f_trace_opcodes = True
        if event == "opcode":
            instructions += 1
            if instructions == moment + 1:
                handler()
        return trace

    before = sys.gettrace()
    sys._getframe().f_trace_opcodes = True  # or CPython 3.12 reports none the first time
    sys.settrace(trace)
    try:
        call()
    finally:
        sys.settrace(before)
    return instructions > moment


# Fork


def in_child(job: Callable[[], object]) -> int:
    """Fork; the child's exit code: 0 if *job* ended well within seconds."""
    pid = os.fork()
    if pid == 0:  # pragma: no cover - not seen from here
        code = 1
        try:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            job()
            code = 0
        finally:
            os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


can_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
# What Python 3.12 says of a fork with threads; that is what these tests are about.
ignore_fork_warning = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")


@can_fork
@ignore_fork_warning
def test_a_child_forked_at_any_moment_finds_no_half_of_a_verb(eager_threads: None) -> None:
    driver = new_cache_driver()
    store = driver.open()
    pair = [b"left", b"right"]
    store.set([(key, b"0") for key in pair], None)
    stop = threading.Event()

    def write() -> None:
        n = 0
        while not stop.is_set():
            n += 1
            store.set([(key, b"%d" % n) for key in pair], 60_000)

    def check() -> None:
        left, right = store.get_many(pair)
        assert left == right
        store.set([(b"child", b"1")], None)
        assert driver.open().get(b"child") == b"1"
        in_thread = threading.Thread(target=store.increment, args=(b"child", 1, None))
        in_thread.start()
        in_thread.join()
        assert store.get(b"child") == b"2"

    writers = [threading.Thread(target=write) for _ in range(2)]
    for writer in writers:
        writer.start()
    try:
        codes = [in_child(check) for _ in range(15)]
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    assert codes == [0] * 15
    assert store.get(b"child") is None, "the parent goes on with entries of its own"


@can_fork
@ignore_fork_warning
def test_a_fork_does_not_wait_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does the child, though the lock's owner is not there any more."""
    monkeypatch.setattr(memory, "_FORK_WAIT", 0.05)
    inside, go_on = threading.Event(), threading.Event()

    def clock() -> float:
        if threading.current_thread() is stuck:
            inside.set()
            assert go_on.wait(10)
        return 0.0

    store = new_cache_driver(clock=clock).open()
    stuck = threading.Thread(target=store.get, args=(b"a",))
    stuck.start()
    assert inside.wait(10)
    try:
        assert in_child(lambda: store.set([(b"a", b"1")], None)) == 0
    finally:
        go_on.set()
        stuck.join(10)
    store.set([(b"a", b"2")], None)
    assert store.get(b"a") == b"2", "the parent's lock is free again"


@can_fork
@ignore_fork_warning
def test_a_fork_in_the_middle_of_a_verb() -> None:
    """Both sides finish that verb, and go on."""
    codes: list[int] = []

    def use_again() -> None:
        assert store.get(b"a") is None

    def clock() -> float:
        if not codes:
            codes.append(-1)
            codes.append(in_child(use_again))
        return 0.0

    store = new_cache_driver(clock=clock).open()
    store.set([(b"a", b"1")], None)
    assert codes == [-1, 0]
    thread = threading.Thread(target=store.set, args=([(b"a", b"2")], None))
    thread.start()
    thread.join(10)
    assert store.get(b"a") == b"2"


# A model


BOUND = 3
KEYS = [b"a", b"b", b"c", b"d", b"e"]
TTLS = st.none() | st.sampled_from([1, 2, 5, 1_000])


class Model(RuleBasedStateMachine):
    """A store against a plain dict from live key to (value, deadline), least recently used first.

    The model knows nothing of expired entries, because none may ever be seen, nor push one out.
    """

    @initialize(start=st.sampled_from([0, 41, 10**9]))
    def open(self, start: int) -> None:
        self.now = start  # milliseconds
        self.driver = new_cache_driver(max_entries=BOUND, clock=lambda: self.now / 1000)
        self.store = self.driver.open()
        self.model: dict[bytes, tuple[bytes, int | None]] = {}

    def use(self, key: bytes) -> bytes | None:
        if key not in self.model:
            return None
        self.model[key] = self.model.pop(key)
        return self.model[key][0]

    def put(self, key: bytes, value: bytes, ttl: int | None) -> None:
        self.model.pop(key, None)
        self.model[key] = (value, None if ttl is None else self.now + ttl)
        if len(self.model) > BOUND:
            del self.model[next(iter(self.model))]

    @rule(milliseconds=st.sampled_from([1, 2, 3, 999]))
    def wait(self, milliseconds: int) -> None:
        self.now += milliseconds
        self.model = {
            key: (value, deadline)
            for key, (value, deadline) in self.model.items()
            if deadline is None or deadline > self.now
        }

    @rule(again=st.booleans())
    def reopen(self, again: bool) -> None:
        self.store.close(force=again)
        self.store = self.driver.open()

    @rule(key=st.sampled_from(KEYS))
    def get(self, key: bytes) -> None:
        assert self.store.get(key) == self.use(key)

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=6))
    def get_many(self, keys: list[bytes]) -> None:
        assert self.store.get_many(keys) == [self.use(key) for key in keys]

    @rule(
        keys=st.lists(st.sampled_from(KEYS), min_size=1, max_size=4),
        value=st.sampled_from([b"", b"x", b"7", b"-3", b"%d" % (2**63 - 1)]),
        ttl=TTLS,
    )
    def set(self, keys: list[bytes], value: bytes, ttl: int | None) -> None:
        self.store.set([(key, value) for key in keys], ttl)
        for key in keys:
            self.put(key, value, ttl)

    @rule(key=st.sampled_from(KEYS), ttl=TTLS)
    def add(self, key: bytes, ttl: int | None) -> None:
        absent = self.use(key) is None
        assert self.store.add(key, b"1", ttl) is absent
        if absent:
            self.put(key, b"1", ttl)

    @rule(keys=st.lists(st.sampled_from(KEYS), min_size=1, unique=True))
    def delete(self, keys: list[bytes]) -> None:
        found = [key for key in keys if self.model.pop(key, None) is not None]
        assert self.store.delete(keys) == len(found)

    @rule(key=st.sampled_from(KEYS), delta=st.sampled_from([0, 1, -1, 2**62]), ttl=TTLS)
    def increment(self, key: bytes, delta: int, ttl: int | None) -> None:
        value = self.use(key)
        text = b"0" if value is None else value
        fits = text not in (b"", b"x") and int(text) + delta < 2**63
        if not fits:
            with pytest.raises(ServerError):
                self.store.increment(key, delta, ttl)
            return
        result = int(text) + delta
        assert self.store.increment(key, delta, ttl) == result
        if value is None:
            self.put(key, b"%d" % result, ttl)
        else:
            self.model[key] = (b"%d" % result, self.model[key][1])

    @rule(key=st.sampled_from(KEYS), ttl=TTLS)
    def touch(self, key: bytes, ttl: int | None) -> None:
        value = self.use(key)
        assert self.store.touch(key, ttl) is (value is not None)
        if value is not None:
            self.put(key, value, ttl)

    @invariant()
    def is_as_the_model_says(self) -> None:
        for key in KEYS:
            assert self.store.contains(key) is (key in self.model)
            _, deadline = self.model.get(key, (b"", None))
            left = NO_TTL if deadline is None else deadline - self.now
            assert self.store.ttl(key) == (left if key in self.model else MISSING_TTL)
        assert len(self.driver._entries) <= BOUND


@pytest.mark.parametrize("blind", [False, True], ids=["watched", "blind"])
def test_the_store_does_what_a_dict_would(blind: bool) -> None:
    """Blind: without the checks between the steps, which remove what has expired by looking."""

    class Blind(Model):
        @invariant()
        def is_as_the_model_says(self) -> None:
            assert len(self.driver._entries) <= BOUND

    run_state_machine_as_test(
        Blind if blind else Model,
        settings=settings(max_examples=60, stateful_step_count=30, deadline=None, database=None),
    )
