"""The scenarios: a fault, made; calls, checked by their ledger. Each is told by its docstring.

They judge nothing: what came of it is in the ledger and in ``stage.notes``, and the tests judge
that of our clients. So they can be played with any client of :mod:`faults.clients`.
"""

from __future__ import annotations

import asyncio
import gc
import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from fakes import FakeServer, bulk
from faults.clients import stored
from faults.ledger import Ledger, all_of, value_of
from faults.proxy import FaultProxy, contexts
from faults.run import Scenario, Stage, resident

ALL: Final[dict[str, Scenario]] = {}

CALLERS: Final = 40


def scenario(function: Scenario) -> Scenario:
    ALL[function.__name__] = function
    return function


def kind(outcome: Any) -> str:
    """``"fine"``, a server's error code, or the type of another error."""
    if not isinstance(outcome, Exception):
        return "fine"
    return getattr(outcome, "code", type(outcome).__name__)


async def filled(ledger: Ledger, count: int, size: int = 0) -> list[str]:
    """So many keys, each with its first value."""
    keys = [f"k{n}" for n in range(count)]
    await all_of(ledger.set(key, size=size) for key in keys)
    return keys


@scenario
async def lost_reply(stage: Stage) -> None:
    """With 40 calls in flight the proxy loses, doubles or injects one reply, at every position."""
    ledger = await stage.client(timeout=400)
    keys = await filled(ledger, CALLERS)
    stranger = value_of("k1", "stranger", 1).encode()
    worst = 0
    after: list[Any] = []
    for action in ("swallow", "duplicate", "inject"):
        for at in range(0, CALLERS + 1, 3 if ledger.client.blocking else 1):
            await all_of(ledger.get(key) for key in keys)  # whatever it takes to be connected
            before = stage.proxy.accepted
            stage.proxy.at_reply(at, action, data=b"$%d\r\n%b\r\n" % (len(stranger), stranger))
            await all_of(ledger.get(key) for key in keys)
            stage.proxy.disarm()
            after += [await ledger.get(key) for key in keys[:5]]
            worst = max(worst, stage.proxy.accepted - before)
    stage.notes["reconnects for one fault"] = worst
    stage.notes["errors afterwards"] = sum(isinstance(value, Exception) for value in after)


@scenario
async def cancel_storm(stage: Stage) -> None:
    """The proxy delays by 0 to 5 ms; 64 tasks make calls, half of them cancelled at any await."""
    ledger = await stage.client()
    keys = await filled(ledger, 64)
    before = stage.proxy.accepted
    stage.proxy.delay = (0.0, 0.005)
    cancelled = 0

    async def caller(key: str, calls: int) -> None:
        nonlocal cancelled
        for n in range(calls):
            kind = stage.rng.random()
            call = ledger.get(key) if kind < 0.7 else ledger.incr(key + "n")
            task = asyncio.create_task(call)
            if n % 2:
                if stage.rng.random() < 0.5:
                    for _ in range(stage.rng.randrange(5)):
                        await asyncio.sleep(0)
                else:
                    await asyncio.sleep(stage.rng.random() * 0.012)
                cancelled += task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    await all_of(caller(key, stage.sized(5000) // len(keys)) for key in keys)
    stage.proxy.delay = (0.0, 0.0)
    last = [await ledger.get(keys[n % len(keys)]) for n in range(100)]
    stage.notes["cancelled"] = cancelled
    stage.notes["reconnects"] = stage.proxy.accepted - before
    stage.notes["errors afterwards"] = sum(isinstance(value, Exception) for value in last)


@scenario
async def late_reply(stage: Stage) -> None:
    """The server sleeps past the timeout; 200 calls are made while the late replies come in. Then
    an idle connection is killed."""
    ledger = await stage.client(timeout=300)
    keys = await filled(ledger, CALLERS)
    for _ in range(stage.sized(3)):
        with stage.server.dial() as other:
            other.send("DEBUG", "SLEEP", "0.45")
            await asyncio.sleep(0.02)
            late = await all_of(ledger.get(key) for key in keys)
            await asyncio.gather(*(ledger.get(keys[n % len(keys)]) for n in range(200)))
            other.read()
        stage.notes["late"] = stage.notes.get("late", 0) + sum(
            isinstance(value, TimeoutError) for value in late
        )
    if not await stage.until(lambda: stage.server.command("CLIENT", "LIST") is not None):
        return
    await all_of(ledger.get(key) for key in keys)
    for client in stage.server.clients():
        stage.server.command("CLIENT", "KILL", "ID", client["id"])
    await asyncio.sleep(0.05)
    stage.notes["after the kill"] = repr(await ledger.incr("after"))


@scenario
async def handshake_stall(stage: Stage) -> None:
    """The proxy withholds the k-th reply of the handshake, for every k, and lets it go late."""
    published = []  # from some k on, it is not the handshake's reply any more
    for k in range(8):
        ledger = await stage.client(timeout=250, database=1)
        stage.proxy.at_reply(k, "hold", new=True)
        await ledger.incr("stalled")
        armed = stage.proxy.disarm()
        links = stage.proxy.accepted
        stage.proxy.lift()
        await ledger.set(f"k{k}")
        if not armed and stage.proxy.accepted == links:
            published.append(k)
        await all_of(ledger.get(f"k{k}") for _ in range(20))
        await stage.close(ledger)
    stage.notes["published"] = published


@scenario
async def poison_argument(stage: Stage) -> None:
    """50 calls in flight, one with a key that cannot be encoded."""
    ledger = await stage.client()
    keys = await filled(ledger, 50)
    before = stage.proxy.accepted
    outcomes = await all_of(ledger.get("\ud800" if n == 25 else keys[n]) for n in range(50))
    errors = [n for n, outcome in enumerate(outcomes) if isinstance(outcome, Exception)]
    stage.notes["errors at"] = errors
    stage.notes["reconnects"] = stage.proxy.accepted - before


async def _torn(stage: Stage, ledger: Ledger, step: int) -> None:
    keys = [f"{n}" for n in range(4)]
    await all_of(ledger.set(key, "") for key in keys)

    def calls() -> list[Callable[[], Any]]:
        """Eleven replies and tokens: strings, nil, numbers, arrays with nil, status."""
        return [
            lambda: ledger.get(keys[0]),
            lambda: ledger.get(keys[1]),
            lambda: ledger.get("-"),
            lambda: ledger.incr("n"),
            lambda: ledger.get_many([keys[2], "-"]),
            lambda: ledger.incr("m"),
            lambda: ledger.set(keys[3], ""),
            lambda: ledger.get(keys[2]),
        ]

    async def pipeline() -> None:
        if ledger.client.blocking:
            for call in calls():  # one connection: the offset is what it says
                await call()
        else:
            await all_of(call() for call in calls())

    stage.proxy.chunk = 1
    await pipeline()
    stage.proxy.chunk = 0
    cuts = 0
    for how in ("fin", "rst"):
        at = stage.rng.randrange(step)
        while True:
            await ledger.get("-")  # whatever it takes to be connected
            stage.proxy.at_byte(at, how)
            await pipeline()
            if stage.proxy.disarm():
                break  # behind the last byte
            cuts += 1
            at += step
    stage.notes["cuts"] = stage.notes.get("cuts", 0) + cuts


@scenario
async def torn_reply(stage: Stage) -> None:
    """Every reply type in pieces of one byte; FIN and RST at every byte offset of a pipeline."""
    await _torn(stage, await stage.client(), 1)


@scenario
async def torn_reply_tls(stage: Stage) -> None:
    """The same behind TLS."""
    await _torn(stage, await stage.client(), 1)


@scenario
async def lost_reply_write(stage: Stage) -> None:
    """The proxy swallows replies of increments; it resets after the server has executed."""
    ledger = await stage.client(timeout=200)
    for n in range(stage.sized(20)):
        await all_of(ledger.incr("warm") for _ in range(3))
        at = stage.rng.randrange(10)
        stage.proxy.at_reply(at, ("swallow", "rst", "fin")[n % 3], count=1 + n % 2)
        await all_of(ledger.incr(f"n{m}") for m in range(10))
        stage.proxy.disarm()
    stage.notes["executed"] = stage.server.number("incrby")


@scenario
async def frozen_server(stage: Stage) -> None:
    """SIGSTOP under load; SIGCONT."""
    ledger = await stage.client(timeout=500)
    keys = await filled(ledger, 50)
    going = True
    healthy: dict[str, float] = {}

    async def caller(key: str) -> None:
        while going:
            outcome = await ledger.get(key)
            if not isinstance(outcome, Exception):
                healthy[key] = time.monotonic()
                await asyncio.sleep(0.002)
            elif not isinstance(outcome, TimeoutError):
                await asyncio.sleep(0.02)  # a caller that gives it a moment

    tasks = [asyncio.create_task(caller(key)) for key in keys]
    await asyncio.sleep(0.3)
    stage.server.pause()
    await asyncio.sleep(3.0 if stage.scale >= 1 else 1.5)
    stage.server.resume()
    resumed = time.monotonic()
    await stage.until(lambda: len(healthy) == 50 and min(healthy.values()) > resumed, 10)
    stage.notes["healthy after"] = round(time.monotonic() - resumed, 3)
    going = False
    await all_of(tasks)


UNENDING: Final[dict[str, bytes]] = {
    "wide nesting": b"*1000000\r\n" * 9,
    "the longest string": b"$9223372036854775807\r\nx",
    "an array of ten million": b"*10000000\r\n",
    "a string of some megabytes": b"$9000000\r\nx",
}
"""Replies that swallow those that follow, for as long as the connection lives."""

BOMBS: Final[dict[str, bytes]] = {
    "nesting": b"*1\r\n" * 100_000,
    "an endless line": b"+" + b"x" * 10_000_000,
    "the longest array": b"*4294967294\r\n",
    "a long array": b"*2147483647\r\n",
    "a map keyed by an array": b"%1\r\n*1\r\n:1\r\n+x\r\n",
    "a set of arrays": b"~1\r\n*0\r\n",
    "a string that goes on": b"$3\r\nabcdef\r\n",
    "a large string that goes on": b"$70000\r\n" + b"x" * 70_010,
    "an extra reply": b"$1\r\nx\r\n" * 2,
    "an attribute": b"|1\r\n+ttl\r\n:3\r\n$1\r\nx\r\n",
    "a push": b">2\r\n+invalidate\r\n*0\r\n",
    "a verbatim string": b"=7\r\ntxt:abc\r\n",
    "a big number": b"(" + b"9" * 100_000 + b"\r\n",
    "not a number": b",nan\r\n",
    "a negative length": b"$-7\r\n",
    "no length": b"$\r\n",
    "letters for a length": b"*abc\r\n",
    "moved to itself": b"-MOVED 1 127.0.0.1:1\r\n",
    "a page": b"HTTP/1.1 200 OK\r\n\r\n<html>",
}


@scenario
async def hostile_server(stage: Stage) -> None:
    """A server answers one call with a bomb, and the next ones well."""
    await _bombed(stage, BOMBS)


@scenario
async def unending_reply(stage: Stage) -> None:
    """A server begins a reply that has no end, and goes on as if nothing had happened."""
    await _bombed(stage, UNENDING)


async def _bombed(stage: Stage, bombs: dict[str, bytes]) -> None:
    value = value_of("good", "w", 1)
    slowest = ("", 0.0)
    with FakeServer() as fake:
        ledger = await stage.client(
            timeout=500, host="127.0.0.1", port=fake.config.port, username=None, password=None
        )
        ledger.lossy = True  # nobody has written what it answers
        fake.answer[b"GET"] = lambda words: (
            bombs.get(words[1].decode().partition(":")[2]) or bulk(value.encode())
        )
        ledger.checks = False  # it may make up values, as any server may
        outcomes: dict[str, str] = {}
        broken: list[str] = []
        for bomb in bombs:
            await ledger.get("good")
            began = time.monotonic()
            outcome = await ledger.get(bomb)
            slowest = max(slowest, (bomb, time.monotonic() - began), key=lambda pair: pair[1])
            outcomes[bomb] = kind(outcome)
            for _ in range(6):  # seconds until it is usable again: of the timeout, and of silence
                after = await ledger.get("good")
                if not isinstance(after, Exception):
                    break
            else:
                broken.append(bomb)
                await stage.renew(ledger)
        stage.notes["outcomes"] = outcomes
        stage.notes["not usable after"] = broken
        stage.notes["slowest"] = slowest
        await stage.close(ledger)


@scenario
async def thread_pile(stage: Stage) -> None:
    """32 callers on 8 connections, replies in small pieces, garbage collected all the time."""
    ledger = await stage.client(timeout=5000, pool_size=8)
    keys = await filled(ledger, 32)
    stage.proxy.chunk = 11
    before = gc.get_threshold()

    async def caller(key: str) -> None:
        for n in range(stage.sized(6)):
            await ledger.set(key)
            await ledger.get(key)
            await ledger.incr(f"n{n}")

    gc.set_threshold(1)
    try:
        await all_of(caller(key) for key in keys)
    finally:
        gc.set_threshold(*before)
    stage.notes["connections"] = ledger.client.connections()


async def _workers(stage: Stage, task: str, count: int, *words: str) -> list[Any]:
    """Start :mod:`faults.worker` so many times; its processes."""
    proxy = stage.proxy.config
    described = {
        "client": stage.client_name,
        "port": proxy.port,
        "authority": stage.proxy.authority.decode(),
        "password": proxy.password,
    }
    started = []
    for n in range(count):
        worker = await asyncio.create_subprocess_exec(
            sys.executable, *("-X", "dev", "-W", "error", "-m", "faults.worker"),
            task, str(n), *words,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(described).encode() + b"\n")
        await worker.stdin.drain()
        started.append(worker)
    return started


async def _ended(stage: Stage, workers: list[Any]) -> list[dict[str, Any]]:
    """What each worker has to tell, and its ledger added to the stage's."""
    told = []
    for worker in workers:
        out, err = await worker.communicate()
        if err or worker.returncode:
            stage.left.append(f"a worker ended in {worker.returncode}: {err.decode()[-1500:]}")
        for line in out.decode().splitlines():
            report = json.loads(line)
            stage.add(report["ledger"])
            told.append(report)
    return told


@scenario
async def fork(stage: Stage) -> None:
    """Behind TLS a process forks twice with calls in flight; all three make a thousand calls."""
    stage.proxy.delay = (0.0, 0.001)
    told = await _ended(stage, await _workers(stage, "fork", 1, str(stage.sized(1000))))
    stage.notes["processes"] = len(told)


@scenario
async def reconnect_storm(stage: Stage) -> None:
    """SIGKILL the server under 4 processes of many callers each, for seconds; then start it."""
    blocking = stage.client_name.rpartition("-")[2] == "sync"
    callers = 50 if blocking else 200
    away = stage.sized(3)
    workers = await _workers(stage, "load", 4, str(callers))
    ready = [await worker.stdout.readline() for worker in workers]
    await asyncio.sleep(0.5)
    dialled = stage.proxy.accepted
    stage.server.kill()
    began = time.monotonic()
    await asyncio.sleep(away)
    seconds = time.monotonic() - began
    stage.notes["dials per second and process"] = round(
        (stage.proxy.accepted - dialled) / seconds / len(ready), 2
    )
    stage.server.start()
    started = time.monotonic()
    await asyncio.sleep(2.5)
    for worker in workers:
        worker.stdin.close()
    told = await _ended(stage, workers)
    stage.notes["healthy after"] = round(max(t["last failure"] for t in told) - started, 3)
    stage.notes["calls afterwards"] = sum(t["successes at the end"] for t in told)


@scenario
async def not_ready(stage: Stage) -> None:
    """OOM, MISCONF, no more clients, a replica; and in :func:`busy_script`, BUSY."""
    ledger = await stage.client(timeout=400)
    keys = await filled(ledger, 5)
    server = stage.server
    outcomes: dict[str, Any] = {}

    async def ask(name: str) -> None:
        executed = int(server.info("stats")["total_commands_processed"])
        read = await ledger.get(keys[0])
        wrote = await ledger.set("other")
        counted = await ledger.incr("n")
        total = int(server.info("stats")["total_commands_processed"]) - executed
        outcomes[name] = [kind(outcome) for outcome in (read, wrote, counted)]
        stage.notes["most commands"] = max(stage.notes.get("most commands", 0), total)

    await ask("ready")
    stage.config("maxmemory", "1")
    await ask("OOM")
    stage.config("maxmemory", "0")
    server.command("REPLICAOF", "127.0.0.1", "1")
    stage.config("replica-serve-stale-data", "yes")
    await ask("READONLY")
    stage.config("replica-serve-stale-data", "no")
    await ask("MASTERDOWN")
    stage.config("replica-serve-stale-data", "yes")
    server.command("REPLICAOF", "NO", "ONE")
    await asyncio.sleep(1.1)
    folder = Path(server.command("CONFIG", "GET", "dir")[1].decode())
    name = server.command("CONFIG", "GET", "dbfilename")[1].decode()
    (folder / name).mkdir()  # so that a snapshot fails
    stage.config("save", "3600 1000000")
    server.command("BGSAVE")
    await stage.until(lambda: server.info("persistence")["rdb_last_bgsave_status"] == "err", 5)
    await ask("MISCONF")
    (folder / name).rmdir()
    stage.config("save", "")
    stage.config("maxclients", "1")
    for client in server.clients():
        server.command("CLIENT", "KILL", "ID", client["id"])
    await asyncio.sleep(0.05)
    before = stage.proxy.accepted
    refused = await all_of(ledger.get(keys[0]) for _ in range(20))
    outcomes["no more clients"] = sorted(set(map(kind, refused)))
    stage.notes["dials while full"] = stage.proxy.accepted - before
    stage.config("maxclients", "10000")
    await asyncio.sleep(1.1)
    await ask("ready again")
    stage.notes["outcomes"] = outcomes


@scenario
async def auth_and_tls(stage: Stage) -> None:
    """Wrong and rotated passwords, lost rights; certificates that are not right."""
    outcomes: dict[str, list[str]] = {}
    dials: dict[str, int] = {}
    server = stage.server

    async def ask(name: str, ledger: Ledger, proxy: FaultProxy) -> None:
        before = proxy.accepted
        began = time.monotonic()
        replies = [await ledger.get("x") for _ in range(10)]
        outcomes[name] = sorted(set(map(kind, replies)))
        dials[name] = proxy.accepted - before
        stage.notes["slowest"] = max(stage.notes.get("slowest", 0), time.monotonic() - began)

    wrong = await stage.client(password="wrong")
    await ask("a wrong password", wrong, stage.proxy)
    right = await stage.client()
    await ask("the right password", right, stage.proxy)
    server.command("ACL", "SETUSER", "faults", "-get")
    await ask("rights lost", right, stage.proxy)
    server.command("ACL", "SETUSER", "faults", "+get", "resetpass", ">another")
    stage.proxy.cut("fin")
    await asyncio.sleep(0.05)
    await ask("a rotated password", right, stage.proxy)
    server.command("ACL", "SETUSER", "faults", f">{stage.proxy.config.password}")
    await asyncio.sleep(1.1)
    await ask("rotated back", right, stage.proxy)
    for shown in ("stranger", "wrong-host", "expired"):
        with FaultProxy(stage.proxy.config, stage.seed, tls=contexts(shown)) as proxy:
            behind = await stage.client(port=proxy.port, tls=proxy.config.tls)
            await ask(shown, behind, proxy)
            await stage.close(behind)
    tls = await stage.client(timeout=300, tls=contexts()[1])
    await ask("TLS to a plain port", tls, stage.proxy)
    stage.notes["outcomes"] = outcomes
    stage.notes["dials"] = dials


@scenario
async def memory_wall(stage: Stage) -> None:
    """The server is frozen; very many sets of 1 KB are offered."""
    address = stage.server.config
    ledger = await stage.client(timeout=2000, host=address.host, port=address.port)
    ledger.samples = 0
    await ledger.get("x")
    stage.server.pause()
    before = resident()
    offered = stage.sized(50_000)
    largest = 0.0
    tasks: set[asyncio.Task[Any]] = set()
    for n in range(offered):
        tasks.add(asyncio.create_task(ledger.set(f"k{n}", size=1000)))
        if n % 1000 == 999:
            await asyncio.sleep(0)
            tasks -= {task for task in tasks if task.done()}
            largest = max(largest, resident())
    await asyncio.wait(tasks)
    stage.server.resume()
    stage.notes["offered"] = offered
    stage.notes["megabytes"] = round(largest - before, 1)
    await stage.close(ledger)


HOSTILE: Final = (
    "\r\n",
    "\0",
    ":",
    "*",
    "{",
    "}",
    "$3\r\nGET",
    " ",
    "\u00e9",
    "\U0001f9ed",
    "a",
    "%",
)


@scenario
async def hostile_input(stage: Stage) -> None:
    """Keys and values with CRLF, NUL and the like: what the server has is what was sent. What
    cannot be sent is an error, and nothing was sent."""
    ledger = await stage.client()
    client, rng = ledger.client, stage.rng
    different: list[str] = []

    def text(longest: int) -> str:
        return "".join(rng.choice(HOSTILE) for _ in range(rng.randrange(1, longest)))

    for n in range(stage.sized(200)):
        key, value = text(12), text(3000 if n % 10 == 0 else 20)
        await client.set(key, value)
        if stage.server.command("GET", stored(key).encode()) != value.encode():
            different.append(key)
        if await client.get(key) != value:
            different.append(key)
    ledger.wrong += different
    executed = int(stage.server.info("stats")["total_commands_processed"])
    bad = ["\ud800", "a\udfff"]
    outcomes = await all_of(ledger.get(key) for key in bad)
    stage.notes["illegal"] = [type(outcome).__name__ for outcome in outcomes]
    after = int(stage.server.info("stats")["total_commands_processed"])
    stage.notes["commands sent for them"] = after - executed - 1  # but for INFO itself


@scenario
async def busy_script(stage: Stage) -> None:
    """A script does not end; it is killed."""
    ledger = await stage.client(timeout=400)
    keys = await filled(ledger, 1)
    before = stage.proxy.accepted
    stage.config("busy-reply-threshold", "10")
    with stage.server.dial() as other:
        other.send("EVAL", "while true do end", "0")
        await asyncio.sleep(0.1)
        calls = (ledger.get(keys[0]), ledger.set("other"), ledger.incr("n"))
        stage.notes["outcomes"] = [kind(await call) for call in calls]
        stage.server.command("SCRIPT", "KILL")
    stage.notes["reconnects"] = stage.proxy.accepted - before
    await asyncio.sleep(1.1)
    stage.notes["afterwards"] = kind(await ledger.get(keys[0]))
