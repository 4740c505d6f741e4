"""What callers get when a server, or what is between, does wrong: their own reply or an error."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import time
from typing import Any

import pytest

from colours import concurrently, connected
from fakes import CLOSE, RESET, FakeServer, bulk
from pevensie.redis import (
    CodecError,
    ConnectionLost,
    DeadlineExceeded,
    PevensieError,
    PoolError,
    RedisConfig,
    ServerError,
    ShutdownError,
    StartError,
    UnknownResponseError,
    _ops,
)

pytestmark = pytest.mark.anyio

CALLERS = 40


def lost(at: int) -> Any:
    return lambda answers: b"".join(answers[:at] + answers[at + 1 :])


def doubled(at: int) -> Any:
    return lambda answers: b"".join(answers[: at + 1] + answers[at : at + 1] + answers[at + 1 :])


def injected(at: int) -> Any:
    return lambda answers: b"".join([*answers[:at], bulk(b"SHIP:STRANGER"), *answers[at:]])


@pytest.mark.parametrize("fault", [lost, doubled, injected])
@pytest.mark.parametrize("integrity_checks", [True, False])
async def test_lost_reply(fake: FakeServer, fault: Any, integrity_checks: bool) -> None:
    """With 40 calls in flight, one reply is lost, doubled or injected, at every position: nobody
    gets another's value, it costs one reconnect, and afterwards all is well.

    Without integrity checks, what is shifted before any timeout is handed out (architecture.md,
    rule 5): only that a call after a timeout is right is checked then.
    """
    config = dataclasses.replace(fake.config, timeout=400, integrity_checks=integrity_checks)
    for at in range(CALLERS + 1) if integrity_checks else [CALLERS // 2]:
        async with connected(config, "async") as c:
            before = fake.accepted
            faults = iter([fault(at)])
            fake.transform = lambda answers, faults=faults: (
                next(faults, b"".join)(answers) if len(answers) >= CALLERS else b"".join(answers)
            )
            outcomes = await asyncio.gather(
                *(c.get("ship", n) for n in range(CALLERS)), return_exceptions=True
            )
            if integrity_checks:
                for n, outcome in enumerate(outcomes):
                    # Only where the token itself was lost is there nothing to notice but silence.
                    assert outcome == f"SHIP:{n}" or isinstance(outcome, DeadlineExceeded), at
                    assert outcome == f"SHIP:{n}" or at >= CALLERS - 1
                assert fake.accepted - before <= 1
            fake.transform = b"".join
            await asyncio.sleep(0 if integrity_checks else 0.1)
            for n in range(100, 110):
                try:
                    assert await c.get("ship", n) == f"SHIP:{n}"
                except PevensieError:
                    assert not integrity_checks


async def test_a_lost_reply_of_a_write_is_an_error_and_not_sent_again(fake: FakeServer) -> None:
    async with connected(fake.config, "async") as c:
        # Several calls at once, so that what follows is one write too.
        await asyncio.gather(*(c.get("ship", n) for n in range(5)))
        fake.transform = lost(3)
        outcomes = await asyncio.gather(
            *(c.increment("n", n) for n in range(10)), return_exceptions=True
        )
    assert [type(outcome) for outcome in outcomes] == [ConnectionLost] * 10
    assert all(outcome.sent and not outcome.closed_by_server for outcome in outcomes)
    assert len(fake.commands(b"INCRBY")) == 10


async def test_an_extra_reply_between_calls_closes_the_connection(
    fake: FakeServer, colour: str
) -> None:
    async with connected(fake.config, colour) as c:
        assert await c.get("ship", 1) == "SHIP:1"
        fake.push(bulk(b"STRANGER"))
        await asyncio.sleep(0.05)
        assert await c.get("ship", 2) == "SHIP:2"
    assert fake.accepted == 2


async def test_more_replies_than_asked_for_are_not_handed_out(
    fake: FakeServer, colour: str
) -> None:
    fake.transform = lambda answers: bulk(b"STRANGER") + b"".join(answers)
    async with connected(fake.config, colour) as c:
        with pytest.raises(ConnectionLost, match="given up"):
            await c.get("ship", 1)
    assert len(fake.commands(b"GET")) == 3  # a read is tried again, but not for ever


@pytest.mark.parametrize(
    "answer",
    [
        b":5\r\n",
        b"*1\r\n$1\r\nx\r\n",
        b"#t\r\n",
        b",1.5\r\n",
        b"%1\r\n+a\r\n+b\r\n",
        b">1\r\n+a\r\n",
        b"!5\r\nERR x\r\n",
        b"?what\r\n",
        b"$-5\r\n",
        b"*1\r\n" * 50_000,
        b"*4294967294\r\n",
    ],
)
async def test_nonsense_is_an_error_and_that_connection_is_gone(
    fake: FakeServer, colour: str, answer: bytes
) -> None:
    fake.answer[b"GET"] = lambda words: answer if words[1] == b"ship:bad" else bulk(b"fine")
    async with connected(fake.config, colour) as c:
        with pytest.raises((UnknownResponseError, ConnectionLost)):
            await c.get("ship", "bad")
        accepted = fake.accepted
        assert await c.get("ship", "good") == "fine"
        assert accepted <= fake.accepted <= accepted + 1
        assert fake.accepted > 1


async def test_a_reply_of_the_wrong_kind_is_named(fake: FakeServer, colour: str) -> None:
    fake.answer[b"GET"] = lambda words: b":5\r\n"
    async with connected(fake.config, colour) as c:
        with pytest.raises(UnknownResponseError, match="expected a string or nil") as caught:
            await c.get("ship", "secret-key")
    assert "secret-key" not in str(caught.value)
    assert fake.config.address in str(caught.value)


async def test_a_server_error_carries_its_code_and_harms_nothing(
    fake: FakeServer, colour: str
) -> None:
    fake.answer[b"GET"] = lambda words: b"-OOM command not allowed\r\n"
    async with connected(fake.config, colour) as c:
        with pytest.raises(ServerError) as caught:
            await c.get("ship", 1)
        assert caught.value.code == "OOM"
        fake.answer[b"GET"] = lambda words: bulk(b"x")
        assert await c.get("ship", 1) == "x"
    assert fake.accepted == 1


async def test_an_unknown_command_does_not_put_the_key_into_the_message(
    fake: FakeServer, colour: str
) -> None:
    fake.answer[b"GET"] = lambda words: (
        b"-ERR unknown command 'GET', with args beginning with: 'ship:secret-key' \r\n"
    )
    async with connected(fake.config, colour) as c:
        with pytest.raises(ServerError) as caught:
            await c.get("ship", "secret-key")
    assert "secret-key" not in str(caught.value)


async def test_bytes_that_are_no_text_are_a_codec_error(server: Any, colour: str) -> None:
    server.command("SET", "ship:1", b"\xff\xfe")
    async with connected(server.config, colour) as c:
        with pytest.raises(CodecError, match="not UTF-8"):
            await c.get("ship", 1)
        with pytest.raises(CodecError):
            await c.get_many("ship", [1, 2])
        await c.set("ship", 1, "text")
        assert await c.get("ship", 1) == "text"


async def test_one_bad_argument_among_many_calls_harms_only_itself(
    server: Any, colour: str
) -> None:
    async with connected(server.config, colour) as c:
        calls: list[Any] = [lambda c, n=n: c.set("ship", n, str(n)) for n in range(50)]
        calls[25] = lambda c: c.set("ship", "\ud800", "x")
        outcomes = await concurrently(colour, c, calls)
        assert [n for n, outcome in enumerate(outcomes) if outcome is not None] == [25]
        assert isinstance(outcomes[25], ValueError)
        assert len(await c.get_many("ship", range(50))) == 49


# -- a connection that goes away -----------------------------------------------------------------


async def test_an_idle_connection_that_was_closed_is_noticed_before_use(
    fake: FakeServer, colour: str
) -> None:
    async with connected(fake.config, colour) as c:
        await c.increment("n", 1)
        fake.close_connections()
        await asyncio.sleep(0.02)
        assert await c.increment("n", 1) == 1  # INCRBY is never sent twice: so it was not lost
    assert fake.accepted == 2
    assert len(fake.commands(b"INCRBY")) == 2


@pytest.mark.parametrize("end", [CLOSE, RESET])
async def test_reads_and_overwrites_are_sent_again_when_the_server_closed(
    fake: FakeServer, colour: str, end: bytes
) -> None:
    async with connected(fake.config, colour) as c:
        for name, call, result in [
            (b"GET", lambda: c.get("ship", 1), "SHIP:1"),
            (b"SET", lambda: c.set("ship", 1, "x", ttl_seconds=5), None),
            (b"DEL", lambda: c.delete("ship", 1), True),
        ]:
            real = fake.answer[name]
            answers = iter([end])
            fake.answer[name] = lambda words, real=real, answers=answers: (
                next(answers, None) or real(words)
            )
            before = len(fake.commands(name))
            assert await call() == result
            assert len(fake.commands(name)) == before + 2


@pytest.mark.parametrize("end", [CLOSE, RESET])
async def test_what_is_not_idempotent_is_never_sent_twice(
    fake: FakeServer, colour: str, end: bytes
) -> None:
    async with connected(fake.config, colour) as c:
        fake.answer[b"INCRBY"] = lambda words: end
        with pytest.raises(ConnectionLost) as caught:
            await c.increment("n", 1)
        assert caught.value.sent
        fake.answer[b"SET"] = lambda words: end
        with pytest.raises(ConnectionLost):
            await c.add("ship", 1, "x")
    assert len(fake.commands(b"INCRBY")) == 1
    assert len(fake.commands(b"SET")) == 1


@pytest.mark.parametrize("code", [b"LOADING", b"TRYAGAIN", b"CLUSTERDOWN", b"MASTERDOWN"])
async def test_a_refusal_is_tried_again_whatever_the_command(
    fake: FakeServer, colour: str, code: bytes
) -> None:
    answers = iter([b"-%b wait\r\n" % code, b":7\r\n"])
    fake.answer[b"INCRBY"] = lambda words: next(answers)
    async with connected(fake.config, colour) as c:
        assert await c.increment("n", 1) == 7


async def test_a_refusal_that_lasts_is_an_error_and_no_hot_loop(
    fake: FakeServer, colour: str
) -> None:
    fake.answer[b"GET"] = lambda words: b"-LOADING wait\r\n"
    async with connected(fake.config, colour) as c:
        with pytest.raises(ServerError) as caught:
            await c.get("ship", 1)
        assert caught.value.code == "LOADING"
    assert len(fake.commands(b"GET")) == 3


async def test_readonly_dials_again_before_it_tries_again(fake: FakeServer, colour: str) -> None:
    """After a failover the same name leads to another server."""
    answers = iter([b"-READONLY You can't write against a read only replica.\r\n", b":1\r\n"])
    fake.answer[b"INCRBY"] = lambda words: next(answers)
    async with connected(fake.config, colour) as c:
        assert await c.increment("n", 1) == 1
    assert fake.accepted == 2


async def test_a_refusal_inside_a_transaction_is_tried_again_only_if_multi_said_ok(
    fake: FakeServer, colour: str
) -> None:
    fake.answer[b"SET"] = lambda words: b"-LOADING wait\r\n"
    fake.answer[b"EXEC"] = lambda words: b"-EXECABORT Transaction discarded\r\n"
    async with connected(dataclasses.replace(fake.config, set_mode="single"), colour) as c:
        expire = c.cache._store if colour == "sync" else c._store
        expire._single = False
        with pytest.raises(ServerError) as caught:
            await c.set("ship", 1, "x", ttl_seconds=5)
        assert caught.value.code == "LOADING"
        assert len(fake.commands(b"SET")) == 3
        fake.answer[b"MULTI"] = lambda words: b"-LOADING wait\r\n"
        with pytest.raises(ServerError) as caught:
            await c.set("ship", 1, "x", ttl_seconds=5)
        assert not caught.value.refused
        assert len(fake.commands(b"SET")) == 4


async def test_after_a_server_is_back_calls_work_again(fresh_server: Any, colour: str) -> None:
    async with connected(fresh_server.config, colour) as c:
        await c.set("ship", 1, "x")
        fresh_server.kill()
        with pytest.raises((StartError, ConnectionLost)):
            await c.get("ship", 1)
        fresh_server.start()
        deadline = time.monotonic() + 2
        while True:
            try:
                assert await c.get("ship", 1) is None
                break
            except StartError:
                assert time.monotonic() < deadline
                await asyncio.sleep(0.01)


async def test_while_a_server_is_away_calls_fail_fast_and_dial_seldom(colour: str) -> None:
    with FakeServer() as fake:
        config = fake.config
        async with connected(config, colour) as c:
            fake.stop()
            with pytest.raises((StartError, ConnectionLost)):
                await c.get("ship", 1)
            began = time.monotonic()
            for _ in range(200):
                with pytest.raises(StartError):
                    await c.get("ship", 1)
            assert time.monotonic() - began < 1.5


# -- deadlines -----------------------------------------------------------------------------------


async def test_a_call_ends_by_its_deadline(fake: FakeServer, colour: str) -> None:
    fake.freeze()
    config = dataclasses.replace(fake.config, timeout=150)
    async with connected(config, colour) as c:
        for attempt in range(3):
            began = time.monotonic()
            with pytest.raises(DeadlineExceeded, match="within 150 ms") as caught:
                await c.get("ship", 1)
            assert 0.14 < time.monotonic() - began < 0.25
            assert caught.value.sent or attempt > 0
            assert isinstance(caught.value, TimeoutError)


async def test_a_late_reply_is_nobodys(fake: FakeServer, colour: str) -> None:
    """A reply that comes after its caller's deadline is not handed to the next caller."""
    config = dataclasses.replace(fake.config, timeout=100)
    fake.answer[b"GET"] = lambda words: (
        (time.sleep(0.15) if words[1] == b"ship:slow" else None) or bulk(words[1].upper())
    )
    async with connected(config, colour) as c:
        with pytest.raises(DeadlineExceeded):
            await c.get("ship", "slow")
        for n in range(20):
            assert await c.get("ship", n) == f"SHIP:{n}"


async def test_a_frozen_server(fresh_server: Any, colour: str) -> None:
    """Every call ends by its deadline; soon after the server goes on, so do calls."""
    config = dataclasses.replace(fresh_server.config, timeout=300)
    async with connected(config, colour) as c:
        await c.set("ship", 1, "x")
        fresh_server.pause()
        began = time.monotonic()
        outcomes = await concurrently(colour, c, [lambda c: c.get("ship", 1)] * 20)
        assert time.monotonic() - began < 0.45
        assert all(isinstance(o, (DeadlineExceeded, PoolError, StartError)) for o in outcomes)
        fresh_server.resume()
        deadline = time.monotonic() + 1
        while True:
            try:
                assert await c.get("ship", 1) == "x"
                break
            except PevensieError:
                assert time.monotonic() < deadline


async def test_a_connection_that_stays_dead_is_replaced(fake: FakeServer) -> None:
    """Async: after a timeout and one more without any sign of life, one reconnect."""
    config = dataclasses.replace(fake.config, timeout=100)
    fake.freeze()
    async with connected(config, "async") as c:
        with pytest.raises(DeadlineExceeded):
            await c.get("ship", 1)
        assert fake.accepted == 1
        await asyncio.sleep(0.15)
        fake.transform = b"".join
        assert await c.get("ship", 1) == "SHIP:1"
        assert fake.accepted == 2


async def test_a_connection_that_is_still_receiving_is_not_killed(fake: FakeServer) -> None:
    """Async: one slow, large reply makes calls time out, but is life enough."""
    config = dataclasses.replace(fake.config, timeout=100)

    def slowly(answers: list[bytes]) -> bytes:
        if b"$100000\r\n" in answers[0][:9]:
            for _ in range(50):
                fake.push(b"y" * 2000)
                time.sleep(0.01)
            return b"\r\n" + b"".join(answers[1:])
        return b"".join(answers)

    fake.answer[b"GET"] = lambda words: (
        b"$100000\r\n" if words[1] == b"ship:large" else bulk(b"small")
    )
    fake.transform = lambda answers: (
        (fake.push(answers[0]) or slowly(answers))
        if answers[0] == b"$100000\r\n"
        else b"".join(answers)
    )
    async with connected(config, "async") as c:
        with pytest.raises(DeadlineExceeded):
            await c.get("ship", "large")
        await asyncio.sleep(0.55)
        assert await c.get("ship", 1) == "small"
        assert fake.accepted == 1


async def test_waiting_for_a_connection_ends_by_the_deadline(fake: FakeServer) -> None:
    """Sync: more threads than connections, and a server that does not answer."""
    fake.freeze()
    config = dataclasses.replace(fake.config, timeout=150, pool_size=2)
    async with connected(config, "sync") as c:
        began = time.monotonic()
        outcomes = await concurrently("sync", c, [lambda c: c.get("ship", 1)] * 8)
        assert time.monotonic() - began < 0.4
    kinds = {type(outcome) for outcome in outcomes}
    assert DeadlineExceeded in kinds
    assert kinds <= {DeadlineExceeded, PoolError}


async def test_the_pool_never_opens_more_than_pool_size(fresh_server: Any) -> None:
    config = dataclasses.replace(fresh_server.config, pool_size=3)
    async with connected(config, "sync") as c:
        calls: list[Any] = [lambda c, n=n: c.increment("n", "x") for n in range(64)]
        outcomes = await concurrently("sync", c, calls)
        assert sorted(outcomes) == list(range(1, 65))
        assert len(fresh_server.clients()) <= 3


async def test_async_uses_one_connection_and_a_second_for_large_values(server: Any) -> None:
    async with connected(server.config, "async") as c:
        await asyncio.gather(*(c.set("ship", n, "x" * 1000) for n in range(200)))
        assert len(server.clients()) == 1
        await c.set("ship", "large", "x" * 2_000_000)
        assert len(server.clients()) == 2
        assert await c.get("ship", "large") == "x" * 2_000_000
    config = dataclasses.replace(server.config, pool_size=1)
    async with connected(config, "async") as c:
        await c.set("ship", "large", "x" * 2_000_000)
        assert len(server.clients()) == 1


# -- cancelling ----------------------------------------------------------------------------------


async def test_cancel_storm(fresh_server: Any) -> None:
    """Half of many calls are cancelled at random moments: nothing wrong, no reconnect."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    async with connected(fresh_server.config, "async") as c:
        await c.set_many("ship", {n: f"value {n}" for n in range(64)})
        before = fresh_server.info("stats")["total_connections_received"]

        async def one(n: int) -> None:
            assert await c.get("ship", n) == f"value {n}"

        for _ in range(50):
            tasks = [asyncio.create_task(one(n)) for n in range(64)]
            for _ in range(rng.randrange(4)):
                await asyncio.sleep(0)
            for task in tasks:
                if rng.random() < 0.5:
                    task.cancel()
            outcomes = await asyncio.gather(*tasks, return_exceptions=True)
            assert {type(o) for o in outcomes} <= {type(None), asyncio.CancelledError}
        for n in range(64):
            await one(n)
        assert fresh_server.info("stats")["total_connections_received"] == before


async def test_a_call_cancelled_before_it_is_written_is_never_sent(fake: FakeServer) -> None:
    async with connected(fake.config, "async") as c:
        tasks = [asyncio.create_task(c.increment("n", n)) for n in range(3)]
        await asyncio.sleep(0)
        tasks[1].cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    assert [words[1] for words in fake.commands(b"INCRBY")] == [b"n:0", b"n:2"]


async def test_cancelling_who_waits_for_the_dial_does_not_cancel_the_dial(
    fake: FakeServer,
) -> None:
    async with connected(fake.config, "async", lazy=True) as c:
        tasks = [asyncio.create_task(c.get("ship", n)) for n in range(3)]
        await asyncio.sleep(0)
        tasks[0].cancel()
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
    assert outcomes[1:] == ["SHIP:1", "SHIP:2"]
    assert isinstance(outcomes[0], asyncio.CancelledError)
    assert fake.accepted == 1


# -- bounds --------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_memory_wall(fresh_server: Any) -> None:
    """A frozen server and very many calls: memory is bounded, the excess fails fast."""
    config = dataclasses.replace(fresh_server.config, timeout=1000)
    value = "x" * 1000
    async with connected(config, "async") as c:
        await c.ping()
        fresh_server.pause()
        tasks = [asyncio.create_task(c.set("ship", n, value)) for n in range(50_000)]
        began = time.monotonic()
        refused = 0
        for _ in range(200):
            await asyncio.sleep(0.001)
            refused = sum(task.done() for task in tasks)
            if refused:
                break
        assert refused > 50_000 - 2 * 16_384 - 1, refused
        outcomes = await asyncio.gather(*tasks, return_exceptions=True)
        assert time.monotonic() - began < 10  # 50,000 tasks on one loop
        assert {type(o) for o in outcomes} == {PoolError, DeadlineExceeded}
        line = c._store._homes[asyncio.get_running_loop()].lines.main
        assert line.callers == 0
        fresh_server.resume()


async def test_calls_that_wait_for_room_get_it(fake: FakeServer, monkeypatch: Any) -> None:
    monkeypatch.setattr("pevensie.redis._async.connection.MAX_CALLS", 8)
    async with connected(fake.config, "async") as c:
        outcomes = await asyncio.gather(*(c.get("ship", n) for n in range(500)))
        assert outcomes == [f"SHIP:{n}" for n in range(500)]


async def test_bytes_are_bounded_too_and_a_large_call_is_let_in(
    server: Any, monkeypatch: Any
) -> None:
    monkeypatch.setattr("pevensie.redis._async.connection.MAX_BYTES", 10_000)
    async with connected(server.config, "async") as c:
        await asyncio.gather(*(c.set("ship", n, str(n) * 8_000) for n in range(50)))
        values = await asyncio.gather(*(c.get("ship", n) for n in range(50)))
        assert values == [str(n) * 8_000 for n in range(50)]


@pytest.mark.slow
async def test_threads_share_a_pool_under_constant_garbage_collection(server: Any) -> None:
    import gc

    config: RedisConfig = dataclasses.replace(server.config, pool_size=8)
    before = gc.get_threshold()
    gc.set_threshold(1)
    try:
        async with connected(config, "sync") as c:

            async def mix(c: Any, n: int) -> None:
                for i in range(30):
                    await c.set("ship", f"{n}-{i}", f"value {n} {i}", ttl_seconds=60)
                    assert await c.get("ship", f"{n}-{i}") == f"value {n} {i}"

            calls: list[Any] = [lambda c, n=n: mix(c, n) for n in range(32)]
            assert await concurrently("sync", c, calls) == [None] * 32
            pool = c.cache._store._pool
            assert len(pool._open) == len(pool._idle) <= 8
    finally:
        gc.set_threshold(*before)


# -- what a review found, so that it stays found ---------------------------------------------------


async def test_two_timeouts_without_integrity_checks_shift_nothing(fake: FakeServer) -> None:
    """The second merges what is in flight again; tokens must not be handed out as values."""
    config = dataclasses.replace(fake.config, timeout=100, integrity_checks=False)
    slow = {b"ship:0", b"ship:20"}

    def answer(words: list[bytes]) -> bytes:
        if words[1] in slow:
            time.sleep(0.15)
        return bulk(words[1].upper())

    fake.answer[b"GET"] = answer
    async with connected(config, "async") as c:
        for n in range(60):
            calls = (c.get("ship", f"{n}") for n in range(n, n + 3))
            for m, outcome in enumerate(await asyncio.gather(*calls, return_exceptions=True)):
                assert outcome == f"SHIP:{n + m}" or isinstance(outcome, PevensieError)
            if n in (0, 20, 21):
                await asyncio.sleep(0.25)


async def test_who_leaves_while_waiting_for_room_does_not_stop_the_line(
    fake: FakeServer, monkeypatch: Any
) -> None:
    monkeypatch.setattr("pevensie.redis._async.connection.MAX_CALLS", 4)
    fake.freeze()
    async with connected(fake.config, "async") as c:
        calls = [asyncio.create_task(c.get("ship", n)) for n in range(8)]
        await asyncio.sleep(0.05)
        for call in calls:
            call.cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        fake.transform = b"".join
        fake.close_connections()
        await asyncio.sleep(0.05)
        assert await asyncio.gather(*(c.get("ship", n) for n in range(20))) == [
            f"SHIP:{n}" for n in range(20)
        ]
        line = c._store._here.lines.main
        assert (line.callers, len(line._waiting), line.connection.queued) == (0, 0, False)


async def test_callers_with_shorter_timeouts_of_their_own_do_not_keep_a_dead_connection(
    fake: FakeServer,
) -> None:
    config = dataclasses.replace(fake.config, timeout=100)
    async with connected(config, "async") as c:
        fake.freeze()
        for _ in range(20):
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(c.get("ship", 1), 0.02)
        assert fake.accepted > 1


async def test_a_reply_that_never_ends_does_not_outlive_the_deadline(
    fake: FakeServer, colour: str
) -> None:
    def endless(words: list[bytes]) -> bytes:
        fake.push(b"$500000000\r\n")
        until = time.monotonic() + 1.0
        while time.monotonic() < until:
            fake.push(bytes(65_536))
        return CLOSE

    fake.answer[b"GET"] = endless
    async with connected(dataclasses.replace(fake.config, timeout=100), colour) as c:
        began = time.monotonic()
        with pytest.raises(DeadlineExceeded):
            await c.get("ship", 1)
        assert time.monotonic() - began < 0.3


async def test_a_server_that_stays_a_replica_is_not_dialled_for_every_call(
    fake: FakeServer, colour: str
) -> None:
    fake.answer[b"INCRBY"] = lambda words: b"-READONLY no\r\n"
    async with connected(fake.config, colour) as c:
        for _ in range(5):
            with pytest.raises(ServerError):
                await c.increment("n", 1)
    assert fake.accepted <= 3


async def test_a_dial_that_was_cancelled_from_outside_is_begun_again(fake: FakeServer) -> None:
    async with connected(fake.config, "async", lazy=True) as c:
        call = asyncio.create_task(c.get("ship", 1))
        await asyncio.sleep(0)
        c._store._here.lines.main._dialling.cancel()
        assert await call == "SHIP:1"


async def test_nobody_starves_while_others_are_busy(server: Any) -> None:
    """Sync: fewer connections than threads, each of which asks again at once."""
    config = dataclasses.replace(server.config, pool_size=2)
    async with connected(config, "sync") as c:
        counts = dict.fromkeys(range(8), 0)
        until = time.monotonic() + 0.5

        async def work(c: Any, n: int) -> None:
            while time.monotonic() < until:
                await c.ping()
                counts[n] += 1

        calls: list[Any] = [lambda c, n=n: work(c, n) for n in counts]
        assert await concurrently("sync", c, calls) == [None] * 8
    assert min(counts.values()) > max(counts.values()) / 10, counts


@pytest.mark.parametrize("reply", ["AUTH", "GET"])
async def test_what_a_server_repeats_of_a_command_is_in_no_message(
    fake: FakeServer, colour: str, reply: str
) -> None:
    leak = b"-ERR unknown command 'X', with args beginning with: 'canary' \r\n"
    fake.answer[reply.encode()] = lambda words: leak
    config = dataclasses.replace(fake.config, password="canary")
    with pytest.raises(PevensieError) as caught:
        async with connected(config, colour) as c:
            await c.get("ship", "canary")
    error: BaseException | None = caught.value
    while error is not None:
        assert "canary" not in f"{error!r} {error}"
        error = error.__cause__ or error.__context__


async def test_a_call_between_two_attempts_is_in_flight(fake: FakeServer, colour: str) -> None:
    fake.answer[b"GET"] = lambda words: b"-LOADING wait\r\n"
    async with connected(fake.config, colour) as c:
        if colour == "async":
            call = asyncio.ensure_future(c.get("ship", 1))
        else:
            call = asyncio.ensure_future(asyncio.to_thread(c.cache.get, "ship", 1))
        while not fake.commands(b"GET"):  # noqa: ASYNC110
            await asyncio.sleep(0.001)
        await asyncio.sleep(0.01)
        with pytest.raises(ShutdownError):
            await c.disconnect()
        with pytest.raises(ServerError):
            await call


async def refused_once(fake: FakeServer, c: Any) -> tuple[asyncio.Task[Any], set[Any]]:
    """A call that the server refused for now, and the tasks that try it again."""
    before = asyncio.all_tasks()
    call = asyncio.create_task(c.get("ship", 1))
    while not (attempts := asyncio.all_tasks() - before - {call}):  # noqa: ASYNC110
        await asyncio.sleep(0)
    return call, attempts


async def test_a_caller_that_leaves_between_two_attempts_takes_its_call_along(
    fake: FakeServer,
) -> None:
    fake.answer[b"GET"] = lambda words: b"-LOADING wait\r\n"
    async with connected(fake.config, "async") as c:
        call, attempts = await refused_once(fake, c)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        await asyncio.wait(attempts)
        assert len(fake.commands(b"GET")) == 1
        assert not c._store._in_use()


async def test_a_call_whose_next_attempt_is_cancelled_from_outside_is_told_why(
    fake: FakeServer,
) -> None:
    """By a framework that cancels all tasks it does not know, say."""
    fake.answer[b"GET"] = lambda words: b"-LOADING wait\r\n"
    async with connected(fake.config, "async") as c:
        call, attempts = await refused_once(fake, c)
        for attempt in attempts:
            attempt.cancel()
        with pytest.raises(ServerError) as caught:
            await call
        assert caught.value.code == "LOADING"
        assert not c._store._in_use()


async def test_an_exception_while_a_reply_is_read_is_its_callers_alone(fake: FakeServer) -> None:
    """However it came about: those behind it in the same batch get their own."""
    async with connected(fake.config, "async") as c:

        def read(reply: Any) -> Any:
            raise ZeroDivisionError

        op = _ops.ping()._replace(read=read)
        calls = [c.get("ship", 1), c._store._run_op(op), c.get("ship", 2)]
        first, bad, last = await asyncio.gather(*calls, return_exceptions=True)
        assert (first, last) == ("SHIP:1", "SHIP:2")
        assert isinstance(bad, ZeroDivisionError)
        assert fake.accepted == 1


async def test_replies_of_all_sizes_in_one_burst(server: Any) -> None:
    """Around the bytes that the parser is given at a time, and around those from which values
    travel as parts of their own."""
    random.seed(seed := random.randrange(2**32))
    around = [n + d for n in (0, 1, 1023, 16 * 1024, 64 * 1024, 1024 * 1024) for d in (-1, 0, 1)]
    sizes = [max(0, size) for size in around for _ in range(4)]
    random.shuffle(sizes)
    async with connected(server.config, "async") as c:
        values = [f"{number}/".ljust(size, "x")[:size] for number, size in enumerate(sizes)]
        sets = (c.set("burst", n, value, ttl_seconds=60) for n, value in enumerate(values))
        await asyncio.gather(*sets)
        gets = (c.get("burst", number) for number in range(len(values)))
        assert await asyncio.gather(*gets) == values, f"seed {seed}"
