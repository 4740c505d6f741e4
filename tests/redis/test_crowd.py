"""Threads whose calls travel together: each gets its own reply, or an error, in time.

Most of it is scripted: :class:`Crowd` lines threads up, one behind the other, on a pool of one
connection, and lets the server answer one write at a time. What goes wrong goes wrong at a chosen
point, not at a chosen moment.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import random
import signal
import sys
import textwrap
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from functools import partial
from types import FrameType, SimpleNamespace
from typing import Any, Self

import pytest
from test_lifecycle import run_python, until

from fakes import CLOSE, RESET, FakeServer, bulk
from pevensie.errors import RedisError
from pevensie.redis import (
    ConnectionLost,
    DeadlineExceeded,
    NotConnected,
    PoolError,
    ServerError,
    UnknownResponseError,
    _ops,
)
from pevensie.redis._sync import client, connection, crowd
from pevensie.redis._sync import pool as pools
from pevensie.redis._sync.client import RedisStore
from pevensie.redis._sync.crowd import BATCH_BYTES
from pevensie.redis._sync.pool import Pool

PATIENT = 10_000
"""Milliseconds, for calls that nothing holds up. Whoever is still there after :data:`SOON` waits
for a wake-up that was lost."""
SOON = 4.0


class Call(threading.Thread):
    """A call in a thread of its own; its outcome is a result or an exception, without frames."""

    def __init__(self, function: Callable[[], Any]) -> None:
        super().__init__(daemon=True)
        self._function = function
        self._outcome: Any = None
        self.seconds = 0.0
        self.start()

    def run(self) -> None:
        began = time.monotonic()
        try:
            self._outcome = self._function()
        except BaseException as error:
            self._outcome = error.with_traceback(None)
        self.seconds = time.monotonic() - began

    @property
    def outcome(self) -> Any:
        self.join(SOON)
        assert not self.is_alive(), "still waiting"
        return self._outcome


class Crowd:
    """A store on *fake*, which answers a write only when it is told to."""

    def __init__(self, fake: FakeServer, **changes: Any) -> None:
        self.fake = fake
        self.config = dataclasses.replace(
            fake.config, **{"timeout": PATIENT, "pool_size": 1, **changes}
        )
        self.store = RedisStore(self.config)
        self.store.start()
        self.pool = self.store._pool
        self.transform: Callable[[list[bytes]], bytes] = b"".join
        self.calls: list[Call] = []
        self._permits = threading.Semaphore(0)
        fake.transform = self._held

    def _held(self, answers: list[bytes]) -> bytes:
        self._permits.acquire()
        return self.transform(answers)

    def answer(self, writes: int = 1) -> None:
        """Let the server answer so many writes more."""
        self._permits.release(writes)

    def call(self, function: Callable[[], Any]) -> Call:
        self.calls.append(Call(function))
        return self.calls[-1]

    def queue(self, function: Callable[[], Any]) -> Call:
        """A call that waits behind those that wait already."""
        waiting = set(self.pool._waiters)
        call = self.call(function)
        until(lambda: bool(set(self.pool._waiters) - waiting) or not call.is_alive())
        return call

    def get(self, key: str, seconds: float | None = None) -> Callable[[], Any]:
        """A GET, as the retry layer runs it, or once and within so many *seconds*."""
        if seconds is None:
            return lambda: self.store.get(key.encode())
        return lambda: self.pool.execute(_ops.get(key.encode()), time.monotonic() + seconds)

    def occupy(self) -> Call:
        """A call that keeps the one connection until it is answered."""
        before = len(self.fake.commands(b"GET"))
        call = self.call(self.get("first"))
        until(lambda: len(self.fake.commands(b"GET")) > before)
        return call

    def depart(self) -> None:
        """Answer the first call, so that those who wait travel; return when they do."""
        before = len(self.fake.commands(b"ECHO"))
        self.answer()
        until(lambda: len(self.fake.commands(b"ECHO")) > before)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: object, *_: object) -> None:
        self.answer(10_000)
        for call in self.calls:
            call.join(SOON)
        try:
            if kind is None:
                assert not any(call.is_alive() for call in self.calls), "still waiting"
                self.settle()
        finally:
            self.store.close(force=True)

    def settle(self) -> None:
        """What must hold once all is over: see :func:`check_sums`; and the next call is right."""
        check_sums(self.pool)
        if self.pool._refuses:
            return
        for key in ("later", "still later"):
            call = Call(self.get(key))
            assert call.outcome == key.upper().encode()
        check_sums(self.pool)


def under_way(pool: Pool) -> object:
    batch: Any = pool._batch
    return batch() if isinstance(batch, weakref.ref) else batch


def check_sums(pool: Pool) -> None:
    until(lambda: len(pool._open) == len(pool._idle))
    assert len({id(connection) for connection in pool._idle}) == len(pool._idle)
    assert len(pool._open) <= pool._config.pool_size
    assert (len(pool._dials), len(pool._pauses), len(pool._waiters)) == (0, 0, 0)
    assert not any(connection.dirty for connection in pool._idle)
    assert under_way(pool) is None


def ordered(outcomes: list[Any]) -> list[bytes]:
    """What a fake server answers to the calls of :func:`lined_up`."""
    return [b"K%d" % n for n in range(len(outcomes))]


def lined_up(c: Crowd, count: int, **deadlines: float) -> list[Call]:
    """So many calls that wait, in order; the first will lead. *deadlines*: by ``k<n>``."""
    return [c.queue(c.get(f"k{n}", deadlines.get(f"k{n}"))) for n in range(count)]


# -- travelling together -------------------------------------------------------------------------


def test_calls_that_wait_travel_in_one_write_in_their_order(fake: FakeServer) -> None:
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 6)
        c.depart()
        assert [words[1] for words in fake.seen[-7:-1]] == [b"k%d" % n for n in range(6)]
        assert fake.seen[-1][0] == b"ECHO"
        c.answer()
        outcomes = [call.outcome for call in calls]
        assert outcomes == ordered(outcomes)
    assert fake.accepted == 1


def test_who_comes_while_others_travel_takes_the_next_ride(fake: FakeServer) -> None:
    with Crowd(fake) as c:
        c.occupy()
        lined_up(c, 3)
        c.depart()
        later = [c.queue(c.get(f"later{n}")) for n in range(3)]
        c.answer()
        until(lambda: len(fake.commands(b"GET")) == 7)
        assert [words[1] for words in fake.commands(b"GET")[4:]] == [
            b"later0",
            b"later1",
            b"later2",
        ]
        c.answer()
        assert [call.outcome for call in later] == [b"LATER0", b"LATER1", b"LATER2"]
    assert fake.accepted == 1


def test_a_large_call_travels_alone_and_keeps_its_place(fake: FakeServer) -> None:
    fake.answer[b"SET"] = lambda words: b"+OK\r\n"
    with Crowd(fake, set_mode="single") as c:
        c.occupy()
        large = b"x" * BATCH_BYTES
        lined_up(c, 2)
        c.queue(lambda: c.store.set([(b"large", large)], None))
        c.queue(c.get("k2"))
        c.queue(c.get("k3"))
        c.answer(4)
        assert [call.outcome for call in c.calls] == [b"FIRST", b"K0", b"K1", None, b"K2", b"K3"]
        order = [words[1] if words[0] != b"ECHO" else b"|" for words in fake.seen[2:]]
        assert order == [b"first", b"|", b"k0", b"k1", b"|", b"large", b"|", b"k2", b"k3", b"|"]


def test_calls_of_several_replies_and_of_one_travel_together(fake: FakeServer) -> None:
    fake.answer[b"EXPIRE"] = lambda words: b"+QUEUED\r\n"
    with Crowd(fake) as c:
        c.occupy()
        calls = [
            c.queue(lambda: c.store.set([(b"a", b"1")], 1000)),
            c.queue(c.get("a")),
            c.queue(lambda: c.store.increment(b"n", 1, None)),
            c.queue(lambda: c.store.set([(b"b", b"2")], 1000)),
            c.queue(c.get("b")),
        ]
        c.depart()
        c.answer()
        assert [call.outcome for call in calls] == [None, b"A", 1, None, b"B"]


# -- who leaves ----------------------------------------------------------------------------------


def test_a_leader_that_times_out_is_followed_by_the_next(fake: FakeServer) -> None:
    """It costs no reconnect, and the others get their own."""
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 5, k0=0.4, k1=0.5)
        c.depart()
        for call in calls[:2]:
            assert isinstance(call.outcome, DeadlineExceeded)
            assert call.outcome.sent
        c.answer()
        assert [call.outcome for call in calls[2:]] == [b"K2", b"K3", b"K4"]
    assert fake.accepted == 1


@pytest.mark.parametrize("who", [1, 2, 4])
def test_a_follower_that_times_out_gives_up_its_reply_not_its_place(
    fake: FakeServer, who: int
) -> None:
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 5, **{f"k{who}": 0.4})
        c.depart()
        assert isinstance(calls[who].outcome, DeadlineExceeded)
        assert calls[who].outcome.sent
        c.answer()
        for n in {0, 1, 2, 3, 4} - {who}:
            assert calls[n].outcome == b"K%d" % n
    assert fake.accepted == 1


def test_who_times_out_in_the_queue_was_not_sent(fake: FakeServer) -> None:
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 3, k1=0.1)
        with pytest.raises(PoolError) as caught:
            raise calls[1].outcome
        assert not caught.value.sent
        c.depart()
        c.answer()
        assert [calls[0].outcome, calls[2].outcome] == [b"K0", b"K2"]
    assert [b"k1"] not in [words[1:] for words in fake.seen]


def test_when_all_have_timed_out_the_connection_is_closed(fake: FakeServer) -> None:
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 4, **{f"k{n}": 0.4 + n / 50 for n in range(4)})
        c.depart()
        assert {type(call.outcome) for call in calls} == {DeadlineExceeded}
        until(lambda: len(c.pool._open) == 0)
        c.answer(10)
    assert fake.accepted == 2


def test_every_call_ends_by_its_own_deadline(fake: FakeServer) -> None:
    with Crowd(fake) as c:
        c.occupy()
        deadlines = {f"k{n}": 0.4 + 0.04 * (n * 7 % 10) for n in range(10)}
        calls = lined_up(c, 10, **deadlines)
        c.depart()
        for name, call in zip(deadlines, calls, strict=True):
            assert isinstance(call.outcome, DeadlineExceeded)
            assert deadlines[name] - 0.01 < call.seconds < deadlines[name] + 0.1 + slack()
        c.answer(10)


def slack() -> float:
    """Seconds that a busy machine may add."""
    return 0.0 if os.getloadavg()[0] < 1 else 0.5


# -- replies that go wrong -----------------------------------------------------------------------


def lost(at: int) -> Any:
    return lambda answers: b"".join(answers[:at] + answers[at + 1 :])


def doubled(at: int) -> Any:
    return lambda answers: b"".join(answers[: at + 1] + answers[at : at + 1] + answers[at + 1 :])


def injected(at: int) -> Any:
    return lambda answers: b"".join([*answers[:at], bulk(b"STRANGER"), *answers[at:]])


@pytest.mark.parametrize("at", range(6))
@pytest.mark.parametrize("fault", [lost, doubled, injected])
def test_a_reply_that_is_not_ours_is_nobodys(fake: FakeServer, fault: Any, at: int) -> None:
    """Five reads and a token: read again over another connection."""
    with Crowd(fake, timeout=600 if (fault, at) == (lost, 5) else PATIENT) as c:
        c.occupy()
        calls = lined_up(c, 5)
        faults = iter([b"".join, fault(at)])
        c.transform = lambda answers: next(faults, b"".join)(answers)
        c.answer(100)
        outcomes = [call.outcome for call in calls]
        if (fault, at) == (lost, 5):  # of a lost token there is nothing to notice but silence
            assert {type(outcome) for outcome in outcomes} <= {DeadlineExceeded, bytes}
            outcomes = [o if isinstance(o, bytes) else b"K%d" % n for n, o in enumerate(outcomes)]
        assert outcomes == ordered(outcomes)
    assert fake.accepted == 2


def test_a_lost_reply_is_an_error_for_what_is_not_idempotent(fake: FakeServer) -> None:
    with Crowd(fake) as c:
        c.occupy()
        calls = [c.queue(lambda: c.store.increment(b"n", 1, None)) for _ in range(4)]
        reads = lined_up(c, 2)
        faults = iter([b"".join, lost(1)])
        c.transform = lambda answers: next(faults, b"".join)(answers)
        c.answer(100)
        assert {type(call.outcome) for call in calls} == {ConnectionLost}
        assert all(call.outcome.sent and not call.outcome.closed_by_server for call in calls)
        assert [call.outcome for call in reads] == [b"K0", b"K1"]
    assert len(fake.commands(b"INCRBY")) == 4


@pytest.mark.parametrize("end", [CLOSE, RESET])
@pytest.mark.parametrize("at", [0, 2, 4])
def test_a_connection_that_ends_under_several(fake: FakeServer, end: bytes, at: int) -> None:
    """Reads are sent again; increments are not, and their outcome is unknown."""
    ends = iter([end])
    fake.answer[b"GET"] = lambda words: (
        (next(ends, None) if words[1] == b"k%d" % at else None) or bulk(words[1].upper())
    )
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 5)
        writes = [c.queue(lambda: c.store.increment(b"n", 1, None)) for _ in range(2)]
        c.answer(100)
        outcomes = [call.outcome for call in calls]
        assert outcomes == ordered(outcomes)
        for call in writes:
            assert isinstance(call.outcome, ConnectionLost)
            assert call.outcome.sent
    assert fake.accepted == 2


def test_an_error_reply_reaches_only_its_call(fake: FakeServer) -> None:
    errors = {b"k1": b"-WRONGTYPE no\r\n", b"k3": b"-NOPERM no\r\n"}
    fake.answer[b"GET"] = lambda words: errors.get(words[1]) or bulk(words[1].upper())
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 5)
        c.answer(100)
        assert [calls[n].outcome for n in (0, 2, 4)] == [b"K0", b"K2", b"K4"]
        for n, code in ((1, "WRONGTYPE"), (3, "NOPERM")):
            assert isinstance(calls[n].outcome, ServerError)
            assert calls[n].outcome.code == code
    assert fake.accepted == 1


def test_a_refusal_in_a_batch_is_tried_again_by_its_call_alone(fake: FakeServer) -> None:
    refusals = iter([b"-LOADING wait\r\n"])
    fake.answer[b"INCRBY"] = lambda words: next(refusals, b":7\r\n")
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 2)
        write = c.queue(lambda: c.store.increment(b"n", 1, None))
        last = c.queue(c.get("k2"))
        c.answer(100)
        assert [call.outcome for call in [*calls, last]] == [b"K0", b"K1", b"K2"]
        assert write.outcome == 7
        assert len(fake.commands(b"GET")) == 4
    assert fake.accepted == 1


def test_a_replica_is_left_even_if_its_connection_is_never_idle(fake: FakeServer) -> None:
    """After a failover the same name leads to another server."""
    fake.answer[b"INCRBY"] = lambda words: (
        b"-READONLY replica\r\n" if fake.accepted == 1 else b":7\r\n"
    )
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 2)
        write = c.queue(lambda: c.store.increment(b"n", 1, None))
        c.depart()
        calls += [c.queue(c.get(f"k{n}")) for n in (2, 3)]
        c.answer()
        until(lambda: len(fake.commands(b"GET")) == 5)
        until(lambda: len(c.pool._waiters) == 1)  # it waits behind those, to try again
        c.answer(100)
        assert write.outcome == 7
        assert [call.outcome for call in calls] == [b"K0", b"K1", b"K2", b"K3"]
    assert fake.accepted == 2


def test_a_reply_of_the_wrong_kind_closes_the_connection_but_spares_the_others(
    fake: FakeServer,
) -> None:
    fake.answer[b"GET"] = lambda words: b":5\r\n" if words[1] == b"k1" else bulk(words[1].upper())
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 4)
        c.answer(100)
        assert [calls[n].outcome for n in (0, 2, 3)] == [b"K0", b"K2", b"K3"]
        assert isinstance(calls[1].outcome, UnknownResponseError)
    assert fake.accepted == 2


def test_what_is_not_resp_is_an_error_for_all_who_travel(fake: FakeServer) -> None:
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 3)
        answers = iter([None, b"?what\r\n"])
        c.transform = lambda given: next(answers, None) or b"".join(given)
        c.answer(100)
        assert {type(call.outcome) for call in calls} == {UnknownResponseError}
        assert len({id(call.outcome) for call in calls}) == 3


def test_replies_in_small_pieces(fake: FakeServer) -> None:
    def trickle(answers: list[bytes]) -> bytes:
        data = b"".join(answers)
        for at in range(len(data) - 1):
            fake.push(data[at : at + 1])
        return data[-1:]

    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 5)
        c.transform = trickle
        c.answer(100)
        outcomes = [call.outcome for call in calls]
        assert outcomes == ordered(outcomes)
    assert fake.accepted == 1


# -- without tokens ------------------------------------------------------------------------------


@pytest.fixture(params=["integrity_checks=False", "ECHO refused"])
def unchecked(fake: FakeServer, request: pytest.FixtureRequest) -> Iterator[Crowd]:
    """Where nothing keeps replies in step."""
    if request.param == "ECHO refused":
        fake.answer[b"ECHO"] = lambda words: b"-NOPERM no permission to run 'echo'\r\n"
    with Crowd(fake, integrity_checks=request.param == "ECHO refused") as c:
        yield c


def departed(c: Crowd, gets: int) -> None:
    c.answer()
    until(lambda: len(c.fake.commands(b"GET")) == gets)


def test_without_tokens_too_calls_travel_together(unchecked: Crowd) -> None:
    unchecked.occupy()
    calls = lined_up(unchecked, 4)
    unchecked.answer(100)
    outcomes = [call.outcome for call in calls]
    assert outcomes == ordered(outcomes)


def test_without_tokens_a_leader_that_times_out_closes_the_connection(unchecked: Crowd) -> None:
    """The others read again, over another one."""
    c = unchecked
    c.occupy()
    calls = lined_up(c, 4, k0=0.4)
    write = c.queue(lambda: c.store.increment(b"n", 1, None))
    departed(c, 5)
    assert isinstance(calls[0].outcome, DeadlineExceeded)
    c.answer(100)
    assert [call.outcome for call in calls[1:]] == [b"K1", b"K2", b"K3"]
    assert isinstance(write.outcome, ConnectionLost)
    assert c.fake.accepted == 2
    assert len(c.fake.commands(b"INCRBY")) == 1


def test_without_tokens_a_follower_may_time_out(unchecked: Crowd) -> None:
    c = unchecked
    c.occupy()
    calls = lined_up(c, 4, k1=0.4)
    departed(c, 5)
    assert isinstance(calls[1].outcome, DeadlineExceeded)
    c.answer(100)
    assert [calls[n].outcome for n in (0, 2, 3)] == [b"K0", b"K2", b"K3"]
    assert c.fake.accepted == 1


def test_without_tokens_a_miss_is_no_token(unchecked: Crowd) -> None:
    """A batch in two pieces, the first of which ends with a nil."""
    c = unchecked
    c.fake.answer[b"GET"] = lambda words: (
        b"$-1\r\n" if words[1].startswith(b"k") else bulk(words[1].upper())
    )

    def halves(answers: list[bytes]) -> bytes:
        if len(answers) < 4:
            return b"".join(answers)
        c.fake.push(b"".join(answers[:2]))
        time.sleep(0.05)
        return b"".join(answers[2:])

    c.transform = halves
    c.occupy()
    calls = lined_up(c, 4)
    writes = [c.queue(lambda: c.store.increment(b"n", 1, None)) for _ in range(2)]
    c.answer(100)
    assert [call.outcome for call in [*calls, *writes]] == [None] * 4 + [1] * 2
    assert c.fake.accepted == 1


# -- interrupted ---------------------------------------------------------------------------------


class Interrupt(BaseException):
    """As KeyboardInterrupt, which pytest would take for its own."""


SHELL = {module.__file__ for module in (client, connection, crowd, pools)}


class Saboteur:
    """Interrupts a thread at the *nth* chance in the blocking shell.

    CPython looks for interrupts when it enters a function and after it has called one in C. A
    profiler is called just there, too.
    """

    def __init__(self, nth: int) -> None:
        self._left = nth
        self.where = ""

    def run(self, function: Callable[[], Any]) -> Any:
        sys.setprofile(self._profile)
        try:
            return function()
        finally:
            sys.setprofile(None)

    def _profile(self, frame: FrameType, event: str, argument: Any) -> None:
        code = frame.f_code
        if event not in ("call", "c_return") or code.co_filename not in SHELL:
            return
        if code.co_name == "__del__":  # Python would report it, and go on
            return
        self._left -= 1
        if self._left == 0:
            name = f" {argument.__name__}" if event == "c_return" else ""
            self.where = f"{code.co_qualname}:{frame.f_lineno} {event}{name}"
            raise Interrupt


@pytest.mark.slow
@pytest.mark.parametrize("who", [0, 1, 2, 4], ids=["leader", "heir", "middle", "last"])
def test_an_interrupt_at_any_point(fake: FakeServer, who: int) -> None:
    """Nobody else waits for longer, or gets another's reply; the pool gets over it. One that
    strikes half-way through a write or a read costs the connection: reads are sent again, and of
    an increment the outcome is unknown."""
    for nth in range(1, 1000):
        saboteur = Saboteur(nth)
        increments = len(fake.commands(b"INCRBY"))
        with Crowd(fake) as c:
            c.occupy()
            calls: list[Call] = []
            for n in range(5):
                get = c.get(f"k{n}")
                calls.append(c.queue(partial(saboteur.run, get) if n == who else get))
            write = c.queue(lambda: c.store.increment(b"n", 1, None))
            c.answer(100)
            for n, call in enumerate(calls):
                if n == who:
                    assert isinstance(call.outcome, (bytes, Interrupt)), saboteur.where
                else:
                    assert call.outcome == b"K%d" % n, saboteur.where
                assert call.seconds < SOON, saboteur.where
            assert write.outcome == 1 or isinstance(write.outcome, ConnectionLost), saboteur.where
            assert len(fake.commands(b"INCRBY")) <= increments + 1, saboteur.where
        if not saboteur.where:
            return
    raise AssertionError("there was always one more")


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to threads")
@pytest.mark.parametrize("who", ["leader", "follower"])
def test_a_signal_handler_that_raises_while_the_main_thread_waits(
    fake: FakeServer, who: str
) -> None:
    """It costs neither the others nor the connection anything."""

    def handler(*_: object) -> None:
        raise Interrupt

    polling = threading.Event()
    before = signal.signal(signal.SIGUSR1, handler)
    try:
        with Crowd(fake) as c:
            (only,) = c.pool._idle
            real = only._poll

            def poll(milliseconds: float) -> object:
                polling.set()
                return real(milliseconds)

            only._poll = poll
            c.occupy()
            polling.clear()
            others: list[Call] = []

            def direct() -> None:
                until(lambda: len(c.pool._waiters) == len(others) + 1)
                others.extend(c.queue(c.get(f"k{n}")) for n in range(len(others), 5))
                c.depart()
                polling.wait(SOON)
                signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGUSR1)

            if who == "follower":
                others.append(c.queue(c.get("k0")))
            director = Call(direct)
            with pytest.raises(Interrupt):
                c.get("main")()
            assert director.outcome is None
            c.answer()
            outcomes = [call.outcome for call in others]
            assert outcomes == ordered(outcomes)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert fake.accepted == 1


# -- at the delicate points ----------------------------------------------------------------------


class Hooked:
    """A lock that calls ``hooks[thread name]`` each time that thread has waited for it."""

    hooks: dict[str, Callable[[bool], None]]

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.release = self._lock.release

    def acquire(self, timeout: float = -1) -> bool:
        acquired = self._lock.acquire(timeout=timeout)
        hook = self.hooks.get(threading.current_thread().name)
        if hook is not None and timeout >= 0:
            hook(acquired)
        return acquired


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> dict[str, Callable[[bool], None]]:
    """By the name of a thread: what it does when its wait has ended, before it goes on."""
    Hooked.hooks = {}
    monkeypatch.setattr(crowd, "threading", SimpleNamespace(Lock=Hooked))
    return Hooked.hooks


def named(call: Callable[[], Any], name: str) -> Callable[[], Any]:
    def run() -> Any:
        threading.current_thread().name = name
        return call()

    return run


def when_late(action: Callable[[], object]) -> Callable[[bool], None]:
    """Do *action* once the second, longer wait has ended in vain."""
    ended: list[bool] = []

    def hook(acquired: bool) -> None:
        ended.append(acquired)
        if ended == [False, False]:
            action()

    return hook


def test_the_heir_has_just_timed_out(
    fake: FakeServer, hooks: dict[str, Callable[[bool], None]]
) -> None:
    """The reader leaves to one whose wait is over but who has not said so yet."""
    with Crowd(fake) as c:
        c.occupy()
        leader = c.queue(c.get("k0", 0.7))
        hooks["heir"] = when_late(lambda: leader.join(SOON))
        heir = c.queue(named(c.get("k1", 0.5), "heir"))
        last = c.queue(c.get("k2"))
        c.depart()
        assert isinstance(leader.outcome, DeadlineExceeded)
        assert isinstance(heir.outcome, DeadlineExceeded)
        c.answer()
        assert last.outcome == b"K2"
    assert fake.accepted == 1


def test_answered_just_as_it_times_out(
    fake: FakeServer, hooks: dict[str, Callable[[bool], None]]
) -> None:
    """Its reply is there, so it gets it; and those whose turn is after it are woken."""
    with Crowd(fake) as c:
        c.occupy()
        leader = c.queue(c.get("k0"))

        def answered() -> None:
            c.answer()
            leader.join(SOON)

        hooks["late"] = when_late(answered)
        late = c.queue(named(c.get("k1", 0.5), "late"))
        others = [c.queue(c.get(f"k{n}")) for n in range(2, 8)]
        c.depart()
        outcomes = [call.outcome for call in [leader, late, *others]]
        assert outcomes == ordered(outcomes)
    assert fake.accepted == 1


def test_given_a_connection_just_as_it_times_out(
    fake: FakeServer, hooks: dict[str, Callable[[bool], None]]
) -> None:
    """It may use it, too late, or pass it on; the one behind it gets its reply."""
    with Crowd(fake) as c:
        first = c.occupy()

        def given() -> None:
            c.answer(100)
            first.join(SOON)

        hooks["late"] = when_late(given)
        late = c.queue(named(c.get("k0", 0.5), "late"))
        last = c.queue(c.get("k1"))
        assert isinstance(late.outcome, (DeadlineExceeded, bytes))
        assert last.outcome == b"K1"


@pytest.mark.parametrize("given", ["connection", "dial", "reading", "reply"])
def test_interrupted_just_as_it_was_given_something(
    fake: FakeServer, hooks: dict[str, Callable[[bool], None]], given: str
) -> None:
    """What it was given goes to the next."""

    def interrupt(acquired: bool) -> None:
        if acquired:
            raise Interrupt

    with Crowd(fake) as c:
        first = c.occupy()
        hooks["victim"] = interrupt
        place = {"connection": 0, "dial": 0, "reading": 1, "reply": 1}[given]
        calls = []
        for n in range(5):
            get = c.get(f"k{n}", 0.5 if given == "reading" and n == 0 else None)
            calls.append(c.queue(named(get, "victim") if n == place else get))
        if given == "dial":
            fake.close_connections()
        else:
            c.depart()
        if given == "reading":
            assert isinstance(calls[0].outcome, DeadlineExceeded)
        c.answer(100)
        assert first.outcome == b"FIRST"
        assert isinstance(calls[place].outcome, Interrupt)
        for n, call in enumerate(calls):
            if n != place and (n, given) != (0, "reading"):
                assert call.outcome == b"K%d" % n
    assert fake.accepted == (2 if given == "dial" else 1)


# -- closing and forking -------------------------------------------------------------------------


def test_force_ends_those_who_travel_and_those_who_wait(fake: FakeServer) -> None:
    with Crowd(fake) as c:
        c.occupy()
        travelling = [*lined_up(c, 3), c.queue(lambda: c.store.increment(b"n", 1, None))]
        c.depart()
        waiting = [c.queue(c.get(f"w{n}")) for n in range(3)]
        assert not c.pool.close(force=False)
        assert c.pool.close(force=True)
        assert {type(call.outcome) for call in waiting} == {NotConnected}
        for call in travelling:
            assert isinstance(call.outcome, (ConnectionLost, NotConnected))
        until(lambda: len(c.pool._open) == 0)


def test_draining_waits_for_those_who_travel(fake: FakeServer) -> None:
    with Crowd(fake) as c:
        c.occupy()
        calls = lined_up(c, 4)
        c.depart()
        drain = c.call(lambda: c.store.drain())
        until(lambda: c.pool._closing)
        late = c.call(c.get("late"))
        assert isinstance(late.outcome, NotConnected)
        assert drain.is_alive()
        c.answer()
        outcomes = [call.outcome for call in calls]
        assert outcomes == ordered(outcomes)
        assert drain.outcome is None
        assert len(c.pool._open) == 0


def test_a_closed_pool_keeps_nobody_waiting(fake: FakeServer) -> None:
    with Crowd(fake) as c:
        c.store.close(force=True)
        for _ in range(2):
            assert isinstance(c.call(c.get("k")).outcome, NotConnected)


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_a_fork_while_calls_travel(server: Any) -> None:
    """The child starts with a pool of its own; the parent's calls go on."""
    program = """
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
        c = app.connect()
        c._store._pool._limit = 1
        stop = threading.Event()
        wrong = []
        def work(n):
            i = 0
            while not stop.is_set():
                i += 1
                c.set("ship", n, f"{n} {i}")
                if c.get("ship", n) != f"{n} {i}":
                    wrong.append(n)
        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for t in threads: t.start()
        pool = c._store._pool
        while pool._batch is None: pass
        for n in range(10):
            pid = os.fork()
            if pid == 0:
                assert (len(pool._open), len(pool._waiters), pool._batch) == (0, 0, None)
                for i in range(50):
                    c.set("child", f"{n}-{i}", f"{n} {i}")
                    assert c.get("child", f"{n}-{i}") == f"{n} {i}"
                os._exit(0)
            assert os.waitpid(pid, 0)[1] == 0
        stop.set()
        for t in threads: t.join()
        assert wrong == []
        c.disconnect()
        """
    done = run_python(textwrap.dedent(program), server.config)
    assert (done.returncode, done.stderr) == (0, "")
    until(lambda: server.clients() == [])


# -- real servers --------------------------------------------------------------------------------


def all_ended(threads: list[threading.Thread], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    for thread in threads:
        thread.join(max(0.0, deadline - time.monotonic()))
    assert not any(thread.is_alive() for thread in threads), "somebody waits for ever"


@pytest.mark.parametrize("pool_size", [1, 2, 10])
def test_many_threads(server: Any, pool_size: int) -> None:
    """Sets, gets and increments mixed: none gets another's reply, they do travel together, and
    there are never more connections than allowed."""
    threads, rounds = 32, 60
    before = {name: server.number(name) for name in ("echo", "get", "incrby")}
    dialled = int(server.info("stats")["total_connections_received"])
    store = RedisStore(dataclasses.replace(server.config, pool_size=pool_size, timeout=30_000))
    wrong: list[Any] = []
    sums: list[int] = []
    start = threading.Barrier(threads)

    def work(n: int) -> None:
        key = b"key-%d" % n
        start.wait()
        for i in range(rounds):
            value = b"%b %d %b" % (key, i, b"x" * (i * n % 500))
            try:
                store.set([(key, value)], 60_000 if i % 2 else None)
                sums.append(store.increment(b"sum", 1, None))
                read = store.get(key)
                both = store.get_many([key, b"key-none"])
            except RedisError as error:
                wrong.append(error)
                return
            if read != value or both != [value, None]:
                wrong.append((key, value, read, both))

    crew = [threading.Thread(target=work, args=(n,), daemon=True) for n in range(threads)]
    for thread in crew:
        thread.start()
    all_ended(crew, 40)
    assert wrong == []
    assert sorted(sums) == list(range(1, threads * rounds + 1))
    check_sums(store._pool)
    calls = {name: server.number(name) - before[name] for name in before}
    assert (calls["get"], calls["incrby"]) == (threads * rounds,) * 2
    assert calls["echo"] < 4 * threads * rounds / 2, calls
    assert int(server.info("stats")["total_connections_received"]) - dialled <= pool_size
    store.close(force=True)


SET_ASYNC_EXC = ctypes.pythonapi.PyThreadState_SetAsyncExc


class Worker(threading.Thread):
    """Calls, and checks what it gets, however often it is interrupted."""

    def __init__(self, store: RedisStore, n: int, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self._store = store
        self._key = b"key-%d" % n
        self._stop_event = stop
        self._sequence = 0
        self.wrong: list[Any] = []
        self.errors: set[type] = set()
        self.sums: list[int] = []
        self.slowest = 0.0
        self.done = 0

    def run(self) -> None:
        while not self._stop_event.is_set():
            try:
                try:
                    self._work()
                except Interrupt:
                    pass
            except Interrupt:
                pass

    def _work(self) -> None:
        while not self._stop_event.is_set():
            began = time.monotonic()
            try:
                self._once()
                self.done += 1
            except RedisError as error:
                self.errors.add(type(error))
            finally:
                self.slowest = max(self.slowest, time.monotonic() - began)

    def _once(self) -> None:
        kind = self._sequence % 3
        self._sequence += 1
        if kind == 0:
            self._store.set([(self._key, b"%b %d" % (self._key, self._sequence))], None)
        elif kind == 1:
            value = self._store.get(self._key)
            if value is not None and not value.startswith(self._key + b" "):
                self.wrong.append((self._key, value))
        else:
            self.sums.append(self._store.increment(b"sum", 1, None))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")  # in finalizers
@pytest.mark.parametrize("pool_size", [1, 3])
@pytest.mark.parametrize("trouble", ["interrupts", "lost connections", "all"])
def test_chaos(fresh_server: Any, trouble: str, pool_size: int) -> None:
    """Threads are interrupted at random, connections killed, the server paused: none gets another's
    reply, each call ends in time, and afterwards the pool is as new."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    timeout = 200 if trouble == "all" else 30_000
    config = dataclasses.replace(fresh_server.config, pool_size=pool_size, timeout=timeout)
    store = RedisStore(config)
    stop = threading.Event()
    workers = [Worker(store, n, stop) for n in range(16)]
    for worker in workers:
        worker.start()
    ends = time.monotonic() + 1.5
    while time.monotonic() < ends:
        time.sleep(rng.random() * 0.004)
        dice = rng.random()
        if trouble != "lost connections":
            victim = rng.choice(workers)
            SET_ASYNC_EXC(ctypes.c_ulong(victim.ident or 0), ctypes.py_object(Interrupt))
        if trouble != "interrupts" and dice < 0.05:
            fresh_server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        if trouble == "all" and dice > 0.995:
            fresh_server.command("CLIENT", "PAUSE", 250)
            time.sleep(0.25)
    time.sleep(0.3)
    stop.set()
    all_ended(list(workers), 5)
    assert [wrong for worker in workers for wrong in worker.wrong] == []
    sums = [total for worker in workers for total in worker.sums]
    assert len(set(sums)) == len(sums)
    assert max(sums) <= int(fresh_server.command("GET", "sum"))
    errors = {error for worker in workers for error in worker.errors}
    if trouble != "all":
        assert errors <= {ConnectionLost}
    assert max(worker.slowest for worker in workers) < timeout / 1000 + SOON
    assert min(worker.done for worker in workers) > 0
    check_sums(store._pool)
    for n in range(20):
        store.set([(b"after", b"%d" % n)], None)
        assert store.get(b"after") == b"%d" % n
    assert len(fresh_server.clients()) <= pool_size
    store.close(force=True)
