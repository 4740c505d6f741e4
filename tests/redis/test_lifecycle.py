"""The life of a cache: connected, disconnected, shared by loops, inherited by forks, forgotten."""

from __future__ import annotations

import asyncio
import gc
import os
import subprocess
import sys
import textwrap
import threading
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from colours import app, connected
from fakes import FakeServer
from pevensie import AlreadyConnected, NotConnected, PevensieCache
from pevensie.redis import RedisConfig, ShutdownError, StartError


def until(check: Callable[[], bool], seconds: float = 2.0) -> None:
    """Wait until *check* holds."""
    deadline = time.monotonic() + seconds
    while not check():
        assert time.monotonic() < deadline, "still not so"
        time.sleep(0.005)


def descriptors() -> int:
    """How many this process has open."""
    folder = Path("/proc/self/fd")
    return len(list(folder.iterdir())) if folder.exists() else 0


# -- connect and disconnect ----------------------------------------------------------------------


@pytest.mark.anyio
async def test_after_disconnect_every_method_raises_and_connect_works_again(
    server: Any, colour: str
) -> None:
    described = app(server.config)
    async with connected(described, colour) as c:
        await c.set("ship", 1, "x")
        assert await c.disconnect() is described
        for call in (
            lambda: c.get("ship", 1),
            lambda: c.set("ship", 1, "y"),
            lambda: c.delete("ship", 1),
            lambda: c.get_many("ship", [1]),
            lambda: c.set_many("ship", {1: "y"}),
            lambda: c.delete_many("ship", [1]),
            lambda: c.add("ship", 2, "y"),
            lambda: c.increment("n", 1),
            lambda: c.contains("ship", 1),
            lambda: c.touch("ship", 1, 5),
            lambda: c.ttl("ship", 1),
            lambda: c.ping(),
        ):
            with pytest.raises(NotConnected, match="connect"):
                await call()
        assert await c.disconnect() is described
    async with connected(described, colour) as again:
        assert await again.get("ship", 1) == "x"
    until(lambda: server.clients() == [])


@pytest.mark.anyio
async def test_one_colour_is_open_once_and_both_may_be(server: Any) -> None:
    described = app(server.config)
    with described.connect() as c:
        with pytest.raises(AlreadyConnected):
            described.connect()
        with pytest.raises(AlreadyConnected):
            described.lazy()
        async with described.connect_async() as a:
            with pytest.raises(AlreadyConnected):
                await described.connect_async()
            with pytest.raises(AlreadyConnected):
                described.lazy_async()
            await a.set("ship", 1, "x")
            assert c.get("ship", 1) == "x"
    described.connect().disconnect()
    await (await described.connect_async()).disconnect()


def test_a_failed_connect_leaves_nothing_open(colour: str) -> None:
    described = app(RedisConfig(host="127.0.0.1", port=1, timeout=500))
    for _ in range(2):
        with pytest.raises(StartError):
            if colour == "sync":
                described.connect()
            else:
                asyncio.run(_connect(described))


async def _connect(described: PevensieCache) -> None:
    await described.connect_async()


def test_each_loop_may_have_its_own_and_closed_loops_do_not_count(server: Any) -> None:
    described = app(server.config)
    held = []

    async def hold() -> None:
        held.append(await described.connect_async())
        assert await held[-1].get("ship", 1) is None

    asyncio.run(hold())
    asyncio.run(hold())

    async def close() -> None:
        for cache in held:
            await cache.disconnect()

    asyncio.run(close())
    assert server.clients() == []


def test_a_cache_that_was_thrown_away_does_not_count(server: Any) -> None:
    described = app(server.config)
    described.connect()
    gc.collect()
    described.connect().disconnect()


def test_connect_async_that_nobody_awaited_warns(server: Any) -> None:
    with pytest.warns(RuntimeWarning, match="was never awaited"):
        app(server.config).connect_async()
        gc.collect()


def test_an_async_cache_needs_a_running_loop(server: Any) -> None:
    c = app(server.config).lazy_async()
    coroutine = c.get("ship", 1)
    with pytest.raises(RuntimeError, match="loop"):
        coroutine.send(None)


@pytest.mark.anyio
async def test_lazy_does_no_io_until_it_is_used(fake: FakeServer, colour: str) -> None:
    async with connected(fake.config, colour, lazy=True) as c:
        await asyncio.sleep(0.02)
        assert fake.accepted == 0
        assert await c.get("ship", 1) == "SHIP:1"
        assert fake.accepted == 1


@pytest.mark.anyio
async def test_disconnect_with_calls_in_flight(fake: FakeServer, colour: str) -> None:
    """Without force nothing is closed; with force those calls raise, soon."""
    fake.freeze()
    async with connected(fake.config, colour) as c:
        call = _in_background(c, colour)
        await asyncio.to_thread(until, lambda: bool(fake.commands(b"INCRBY")))
        with pytest.raises(ShutdownError, match="force=True"):
            await c.disconnect()
        began = time.monotonic()
        await c.disconnect(force=True)
        with pytest.raises(Exception, match="disconnected"):
            await call
        assert time.monotonic() - began < 0.5


@pytest.mark.anyio
async def test_leaving_with_waits_for_calls_in_flight(fake: FakeServer, colour: str) -> None:
    def slowly(answers: list[bytes]) -> bytes:
        time.sleep(0.1)
        return b"".join(answers)

    fake.transform = slowly
    described = app(fake.config)
    async with connected(described, colour) as c:
        call = _in_background(c, colour)
        await asyncio.to_thread(until, lambda: bool(fake.commands(b"INCRBY")))
        if colour == "sync":
            await asyncio.to_thread(c.cache.__exit__, None, None, None)
        else:
            await c.__aexit__(None, None, None)
        assert await call == 1


@pytest.mark.anyio
async def test_leaving_with_waits_no_longer_than_the_timeout(colour: str) -> None:
    with FakeServer() as fake:
        fake.freeze()
        config = RedisConfig(host=fake.config.host, port=fake.config.port, timeout=200)
        async with connected(config, colour) as c:
            call = _in_background(c, colour)
            await asyncio.to_thread(until, lambda: bool(fake.commands(b"INCRBY")))
            began = time.monotonic()
            if colour == "sync":
                await asyncio.to_thread(c.cache.__exit__, None, None, None)
            else:
                await c.__aexit__(None, None, None)
            assert time.monotonic() - began < 0.4
            with pytest.raises(Exception):  # noqa: B017 - whichever came first
                await call


def _in_background(c: Any, colour: str) -> asyncio.Future[Any]:
    if colour == "async":
        return asyncio.ensure_future(c.increment("n", 1))
    return asyncio.ensure_future(asyncio.to_thread(c.cache.increment, "n", 1))


@pytest.mark.anyio
async def test_leaving_with_never_replaces_the_bodys_exception(
    fake: FakeServer, colour: str
) -> None:
    described = app(fake.config)
    with pytest.raises(ZeroDivisionError):
        if colour == "sync":
            with described.connect() as c:
                c.get("ship", 1)
                raise ZeroDivisionError
        else:
            async with described.connect_async() as a:
                await a.get("ship", 1)
                raise ZeroDivisionError


# -- event loops ---------------------------------------------------------------------------------


def test_one_global_cache_and_many_loops_one_after_the_other(server: Any) -> None:
    c = app(server.config).lazy_async()

    async def use(n: int) -> None:
        await c.set("ship", n, str(n))
        assert await c.get("ship", n) == str(n)

    for n in range(50):
        asyncio.run(use(n))
    until(lambda: server.clients() == [])


def test_loops_side_by_side_in_threads(server: Any) -> None:
    c = app(server.config).lazy_async()
    failures: list[BaseException] = []

    async def use(thread: int) -> None:
        async def one(n: int) -> None:
            key = f"{thread}-{n}"
            await c.set("ship", key, key)
            assert await c.get("ship", key) == key

        await asyncio.gather(*(one(n) for n in range(100)))

    def run(thread: int) -> None:
        try:
            asyncio.run(use(thread))
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    until(lambda: server.clients() == [])


def test_a_loop_closed_without_ceremony(server: Any) -> None:
    """No asyncio.run, no shutdown_asyncgens: the next use lets go of the old socket."""
    c = app(server.config).lazy_async()
    for _ in range(3):
        loop = asyncio.new_event_loop()
        assert loop.run_until_complete(c.get("ship", 1)) is None
        loop.close()
    with asyncio.Runner() as runner:
        runner.run(c.ping())
        until(lambda: len(server.clients()) == 1)
        runner.run(c.disconnect())
    assert server.clients() == []


def test_a_cache_that_is_garbage_takes_its_connections_along(server: Any, colour: str) -> None:
    async def use() -> None:
        c = app(server.config).lazy_async()
        await c.get("ship", 1)
        until(lambda: len(server.clients()) == 1)
        del c
        gc.collect()
        for _ in range(200):
            await asyncio.sleep(0.005)
            if not server.clients():
                return
        raise AssertionError(server.clients())

    if colour == "async":
        asyncio.run(use())
        return
    c = app(server.config).connect()
    c.get("ship", 1)
    until(lambda: len(server.clients()) == 1)
    del c
    gc.collect()
    until(lambda: server.clients() == [])


# -- processes -----------------------------------------------------------------------------------


def run_python(source: str, config: RedisConfig) -> subprocess.CompletedProcess[str]:
    """Run a program as a developer would, with every warning an error."""
    program = (
        "import asyncio, os, sys, threading, time, pevensie\n"
        f"app = pevensie.from_url('redis://127.0.0.1:{config.port}?timeout=2s')\n"
        + textwrap.dedent(source)
    )
    return subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        timeout=30,
    )


QUIET_PROGRAMS = {
    "a sync global that is never disconnected": """
        c = app.connect()
        c.set("ship", 1, "x")
        """,
    "an async global that is never disconnected": """
        c = app.lazy_async()
        async def main():
            await c.set("ship", 1, "x")
        asyncio.run(main())
        """,
    "an async cache in a loop that is never closed": """
        c = app.lazy_async()
        loop = asyncio.new_event_loop()
        loop.run_until_complete(c.set("ship", 1, "x"))
        os._exit(0) if "uvloop" in sys.modules else loop.close()
        """,
    "exit with async calls in flight": """
        c = app.lazy_async()
        async def main():
            await c.ping()
            for n in range(100):
                asyncio.ensure_future(c.set("ship", n, "x"))
            await asyncio.sleep(0)
        asyncio.run(main())
        """,
    "exit with a daemon thread in a call": """
        c = app.connect()
        def work():
            while True:
                c.set("ship", 1, "x")
        for _ in range(4):
            threading.Thread(target=work, daemon=True).start()
        time.sleep(0.1)
        """,
    "threads that die without a word": """
        c = app.connect()
        for n in range(20):
            t = threading.Thread(target=c.set, args=("ship", n, "x"))
            t.start()
            t.join()
        """,
}


@pytest.mark.parametrize("program", QUIET_PROGRAMS)
def test_interpreter_exit_is_quiet(server: Any, program: str) -> None:
    done = run_python(QUIET_PROGRAMS[program], server.config)
    assert (done.returncode, done.stderr) == (0, "")
    until(lambda: server.clients() == [])


FORKS = {
    "sync, before and after": """
        c = app.connect()
        c.set("ship", 0, "parent")
        pids = []
        for n in range(4):
            pid = os.fork()
            if pid == 0:
                for i in range(200):
                    c.set("ship", f"{n}-{i}", f"{n} {i}")
                    assert c.get("ship", f"{n}-{i}") == f"{n} {i}"
                sys.exit(0)
            pids.append(pid)
        for i in range(200):
            c.set("ship", f"p-{i}", f"p {i}")
            assert c.get("ship", f"p-{i}") == f"p {i}"
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 4
        assert c.get("ship", 0) == "parent"
        """,
    "sync, while threads hold connections and locks": """
        c = app.connect()
        stop = threading.Event()
        def work(n):
            while not stop.is_set():
                c.set("ship", n, "x")
        threads = [threading.Thread(target=work, args=(n,)) for n in range(16)]
        for t in threads: t.start()
        import warnings
        warnings.simplefilter("ignore", DeprecationWarning)  # 3.12: fork with threads
        pids = []
        for n in range(10):
            pid = os.fork()
            if pid == 0:
                for i in range(50):
                    c.set("child", f"{n}-{i}", f"{n} {i}")
                    assert c.get("child", f"{n}-{i}") == f"{n} {i}"
                os._exit(0)
            pids.append(pid)
        assert [os.waitpid(pid, 0)[1] for pid in pids] == [0] * 10
        stop.set()
        for t in threads: t.join()
        """,
    "async, with a connection of the parent's loop": """
        c = app.lazy_async()
        async def use(name):
            for i in range(100):
                await c.set("ship", f"{name}-{i}", f"{name} {i}")
                assert await c.get("ship", f"{name}-{i}") == f"{name} {i}"
        loop = asyncio.new_event_loop()
        async def first():
            await use("before")
        loop.run_until_complete(first())
        pid = os.fork()
        if pid == 0:
            asyncio.run(use("child"))
            os._exit(0)
        loop.run_until_complete(use("parent"))
        assert os.waitpid(pid, 0)[1] == 0
        loop.run_until_complete(use("again"))
        loop.run_until_complete(c.disconnect())
        loop.close()
        """,
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
@pytest.mark.parametrize("program", FORKS)
def test_fork(server: Any, program: str) -> None:
    """Both sides go on; the parent sees no reset; nobody hangs."""
    resets = server.info("stats").get("total_error_replies")
    done = run_python(FORKS[program], server.config)
    assert (done.returncode, done.stderr) == (0, "")
    assert server.info("stats").get("total_error_replies") == resets
    until(lambda: server.clients() == [])


def test_keyboard_interrupt_in_a_call_leaves_no_half_read_reply(server: Any) -> None:
    program = """
        import random, signal
        rng = random.Random(int(time.time()))
        c = app.connect()
        for n in range(20):
            c.set("ship", n, str(n) * 1000)
        armed = False
        def handler(*_):
            global armed
            if armed:
                armed = False
                raise KeyboardInterrupt
        signal.signal(signal.SIGALRM, handler)
        def work():
            for i in range(20):
                assert c.get("ship", i) == str(i) * 1000
        interrupted = 0
        for n in range(400):
            signal.setitimer(signal.ITIMER_REAL, rng.random() * 0.0005 + 0.000001)
            try:
                armed = True
                work()
                armed = False
            except KeyboardInterrupt:
                interrupted += 1
        assert interrupted > 100, interrupted
        for i in range(20):
            assert c.get("ship", i) == str(i) * 1000
        pool = c._store._pool
        assert len(pool._open) == len(pool._idle) <= 10, pool
        assert len(pool._dials) == len(pool._waiters) == 0, pool
        c.disconnect()
        """
    done = run_python(program, server.config)
    # An interrupt inside a finalizer, or before a new socket has an owner, is Python's to report.
    lines = [line for line in done.stderr.splitlines() if not line.startswith(" ")]
    noise = ("Exception ignored", "Traceback", "KeyboardInterrupt", "ResourceWarning: unclosed")
    assert [line for line in lines if not line.startswith(noise)] == []
    assert done.returncode == 0


def test_nothing_is_left_behind(server: Any) -> None:
    """No descriptor, thread or warning after many connects and disconnects."""

    async def use() -> None:
        async with app(server.config).connect_async() as a:
            await a.get("ship", 1)

    def once() -> None:
        with app(server.config).connect() as c:
            c.get("ship", 1)
        asyncio.run(use())

    once()
    gc.collect()
    before = descriptors(), threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(20):
            once()
        gc.collect()
    assert (descriptors(), threading.active_count()) == before
