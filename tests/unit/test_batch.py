"""The wake-up tree, the sharing out of replies, and who travels with whom."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import Any

import hiredis
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pevensie.errors import ConnectionLost, ServerError, UnknownResponseError
from pevensie.redis import RedisConfig, _ops
from pevensie.redis._ops import Op
from pevensie.redis._resp import LARGE
from pevensie.redis._retry import Retry
from pevensie.redis._sync.crowd import BATCH_BYTES, Batch, Caller
from pevensie.redis._sync.pool import Pool


class Counted(Caller):
    """Counts how often it is woken."""

    __slots__ = ("woken",)

    def __init__(self, op: Op[Any]) -> None:
        super().__init__(op, 0.0)
        self.woken = 0

    def wake(self) -> None:
        self.woken += 1
        super().wake()


def batch_of(ops: list[Op[Any]]) -> Batch:
    connection: Any = SimpleNamespace(dirty=False)
    leader, *others = [Counted(op) for op in ops]
    batch = Batch(connection, leader)
    for caller in others:
        batch.add(caller)
    return batch


def woken(batch: Batch) -> list[int]:
    return [caller.woken for caller in batch.callers if isinstance(caller, Counted)]


def wake_all(size: int, left: set[int]) -> None:
    """Each who was woken wakes others in turn, until nobody is left to do so."""
    batch = batch_of([_ops.ping()] * size)
    batch.left |= {batch.callers[place] for place in left}
    reached = [batch.wake_after(0)]
    done: set[int] = set()
    while turn := [place for place in range(size) if woken(batch)[place] and place not in done]:
        done.add(turn[-1])
        reached.append(batch.wake_after(turn[-1]))
    assert woken(batch) == [0 if place in left else 1 for place in range(size)]
    assert reached.count(True) == 1


@pytest.mark.parametrize("size", range(2, 10))
def test_everybody_is_woken_once_and_the_last_place_reached_once(size: int) -> None:
    """Whoever has left; the leader always has."""
    for stay in itertools.product([False, True], repeat=size - 1):
        wake_all(size, {0} | {place for place, stays in enumerate(stay, 1) if not stays})


@given(st.integers(10, 60), st.data())
def test_the_same_for_larger_batches(size: int, data: st.DataObject) -> None:
    wake_all(size, {0} | data.draw(st.sets(st.integers(1, size - 1))))


def test_who_is_woken_twice_is_awake() -> None:
    caller = Caller(_ops.ping(), 0.0)
    caller.wake()
    caller.wake()
    assert caller.ready.acquire(timeout=0)


# -- replies -------------------------------------------------------------------------------------


SHARES: dict[str, tuple[Op[Any], list[Any], Any]] = {
    "get": (_ops.get(b"k"), [b"v"], b"v"),
    "miss": (_ops.get(b"k"), [None], None),
    "set": (
        _ops.set_entries([(b"k", b"v")], 1000, single=False),
        [b"OK", b"QUEUED", b"QUEUED", [b"OK", 1]],
        None,
    ),
    "touch": (_ops.touch(b"k", None), [0, 1], True),
    "refused": (_ops.get(b"k"), [hiredis.ReplyError("WRONGTYPE no")], ServerError),
    "nonsense": (_ops.get(b"k"), [5], UnknownResponseError),
}


def outcome(batch: Batch, caller: Caller) -> Any:
    try:
        return batch.outcome(caller)
    except Exception as error:
        return type(error)


@given(st.lists(st.sampled_from(sorted(SHARES)), min_size=2, max_size=20))
def test_each_caller_gets_its_share_of_the_replies(names: list[str]) -> None:
    """Whatever kind the calls around it are, and whatever they end in."""
    shares = [SHARES[name] for name in names]
    batch = batch_of([op for op, _, _ in shares])
    batch.answer([reply for _, replies, _ in shares for reply in replies])
    outcomes = [outcome(batch, caller) for caller in batch.callers]
    assert outcomes == [expected for _, _, expected in shares]
    assert batch.connection.dirty == ("nonsense" in names)


def test_a_reader_that_breaks_harms_only_its_own_call() -> None:
    def broken(reply: Any) -> None:
        raise MemoryError

    ops: list[Op[Any]] = [_ops.get(b"a"), Op((b"x",), 1, broken, Retry.READ), _ops.get(b"b")]
    batch = batch_of(ops)
    batch.answer([b"A", b"x", b"B"])
    assert [outcome(batch, caller) for caller in batch.callers] == [b"A", MemoryError, b"B"]


def test_what_fails_for_all_is_an_exception_of_its_own_for_each() -> None:
    batch = batch_of([_ops.ping()] * 3)
    batch.fail(ConnectionLost("gone", sent=False, closed_by_server=False))
    raised = []
    for caller in batch.callers:
        with pytest.raises(ConnectionLost, match="gone") as caught:
            batch.outcome(caller)
        raised.append(caught.value)
    assert len({id(error) for error in raised}) == 3
    assert not any(error.sent or error.closed_by_server for error in raised)


# -- who travels together ------------------------------------------------------------------------


def op_of(size: int) -> Op[Any]:
    return Op((b"x" * size,), 1, bytes, Retry.READ)


SIZES = st.sampled_from([1, 40, 1000, BATCH_BYTES // 2, BATCH_BYTES - 1, BATCH_BYTES, LARGE])


@given(st.lists(SIZES, min_size=1, max_size=40))
def test_a_batch_is_a_prefix_of_the_queue_and_no_larger_than_it_may_be(sizes: list[int]) -> None:
    pool = Pool(RedisConfig())
    callers = [Caller(op_of(size), 0.0) for size in sizes]
    pool._waiters.extend(callers[1:])
    batch = Batch(SimpleNamespace(dirty=False), callers[0])  # type: ignore[arg-type]
    pool._gather(batch)
    count = len(batch.callers)
    assert batch.callers == callers[:count]
    assert list(pool._waiters) == callers[count:]
    assert count == 1 or sum(sizes[:count]) <= BATCH_BYTES
    assert count == len(sizes) or sum(sizes[: count + 1]) > BATCH_BYTES
    assert [caller.place for caller in batch.callers] == list(range(count))


def test_a_call_in_several_parts_travels_alone() -> None:
    pool = Pool(RedisConfig())
    large = _ops.set_entries([(b"k", b"v" * LARGE)], None, single=True)
    assert len(large.data) > 1
    for first, second in [(large, _ops.ping()), (_ops.ping(), large)]:
        batch = Batch(SimpleNamespace(dirty=False), Caller(first, 0.0))  # type: ignore[arg-type]
        pool._waiters.append(Caller(second, 0.0))
        pool._gather(batch)
        assert len(batch.callers) == 1
        assert len(pool._waiters) == 1
        pool._waiters.clear()


# -- growing -------------------------------------------------------------------------------------


def test_a_connection_taken_while_it_is_counted_as_free_is_not_dialled_again() -> None:
    """Taking from the stack needs no lock, so it may happen between looking and taking."""
    pool = Pool(RedisConfig(pool_size=1))
    connection: Any = type("Weak", (), {})()
    pool._open.add(connection)

    class Stolen(list[Any]):
        def pop(self, *_: Any) -> Any:
            super().clear()
            raise IndexError

    pool._idle = Stolen([connection])
    caller = Caller(_ops.ping(), 0.0)
    pool._waiters.append(caller)
    with pool._lock:
        pool._serve()
    assert caller.given is None
    assert list(pool._waiters) == [caller]


def test_threads_of_a_pool_are_served_in_order_of_arrival() -> None:
    pool = Pool(RedisConfig(pool_size=2))
    callers = [Caller(_ops.ping(), 0.0) for _ in range(5)]
    pool._waiters.extend(callers)
    with pool._lock:
        pool._serve()
    assert [caller.given is not None for caller in callers] == [True, True, False, False, False]
    assert list(pool._waiters) == callers[2:]
