"""Play one scenario, in a process of its own, and print its :class:`~faults.ledger.Result` as JSON.

::

    cd tests
    python -X dev -W error -m faults.run lost_reply --client pevensie-async --seed 7

The same seed makes the same decisions again; what the operating system decides, it does not.

A process of its own, since then memory, descriptors, threads and whatever is said on stderr are
this scenario's and this client's, and a client that hangs or crashes takes nothing along. Around
each scenario go the oracles: nothing is left behind (:func:`_left`), and no secret is let out: the
password is :data:`CANARY`, logging is at DEBUG, and the tracebacks of the first errors of each kind
are rendered with the variables of every frame.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import dataclasses
import gc
import io
import json
import logging
import random
import resource
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any, Final

import servers
from faults.clients import CLIENTS, Client, stored
from faults.ledger import Ledger, Result
from faults.proxy import FaultProxy, contexts
from pevensie.redis.config import RedisConfig

CANARY: Final = "c4n4ry-" + "p4ssw0rd"
"""The password. In two halves, or a traceback that shows this line would show it."""

LOGIN: Final = ("--user", "faults", "on", f">{CANARY}", "~*", "&*", "+@all")

TLS: Final = ("torn_reply_tls", "fork")
"""Played with a proxy that speaks TLS."""

DEBUGGED: Final = ("cancel_storm", "late_reply", "poison_argument")
"""Played in asyncio's debug mode, which checks more, and makes everything four times as slow."""

SETTLING: Final = 2.0
"""Seconds until what has ended must be gone: closed sockets, from the server's list too."""

MEMORY: Final = 4 * 1024**3
"""Bytes of address space: a bomb must not take the machine along."""


class Stage:
    """What a scenario is played on: a server, the proxy before it, chance, a client, its books."""

    def __init__(
        self, server: servers.LocalServer, client_name: str, seed: int, scale: float, tls: bool
    ) -> None:
        """*tls*: the proxy speaks TLS to clients."""
        self.server = server
        self.seed = seed
        self.rng = random.Random(seed)
        self.scale = scale
        """1: small, for scripts/test."""
        self.closing = contextlib.AsyncExitStack()
        target = dataclasses.replace(
            server.config, username="faults", password=CANARY, client_name="pevensie"
        )
        self.proxy = self.closing.enter_context(
            FaultProxy(target, seed, tls=contexts() if tls else None)
        )
        self._make = CLIENTS[client_name]
        self.ledgers: list[Ledger] = []
        self._configs: dict[int, RedisConfig] = {}
        self.clients: list[Client] = []
        self.client_name = client_name
        self.left: list[str] = []
        """What was left behind, elsewhere."""
        self.notes: dict[str, Any] = {}
        self.said = io.StringIO()

    def sized(self, number: int) -> int:
        return max(1, int(number * self.scale))

    async def client(
        self, *, timeout: int = 1000, client: str | None = None, **fields: Any
    ) -> Ledger:
        """A new client with no connection yet, through the proxy unless *fields* say otherwise."""
        config = dataclasses.replace(self.proxy.config, timeout=timeout, **fields)
        make = CLIENTS[client] if client else self._make
        ledger = Ledger(await make(config), timeout / 1000)
        self.clients.append(ledger.client)
        self.ledgers.append(ledger)
        self._configs[id(ledger)] = config
        return ledger

    async def renew(self, ledger: Ledger) -> None:
        """Give it a new client of the same configuration, in place of one that is broken."""
        await self.close(ledger)
        ledger.client = await self._make(self._configs[id(ledger)])
        self.clients.append(ledger.client)

    def add(self, told: dict[str, Any]) -> None:
        """The ledger of another process."""
        ledger = Ledger(None, 1.0)
        ledger.add(told)
        self.ledgers.append(ledger)

    async def close(self, ledger: Ledger) -> None:
        """Close that client now, before the end."""
        self.clients.remove(ledger.client)
        await ledger.client.close()

    def counter(self, key: str) -> int:
        return int(self.server.command("GET", stored(key)) or 0)

    def config(self, *words: str) -> None:
        """CONFIG SET."""
        self.server.command("CONFIG", "SET", *words)

    async def until(self, check: Callable[[], bool], seconds: float = SETTLING) -> bool:
        """Wait until *check* holds; whether it did in time."""
        deadline = time.monotonic() + seconds
        while not check():
            if time.monotonic() > deadline:
                return False
            await asyncio.sleep(0.005)
        return True


def resident() -> float:
    """Megabytes of memory of this process, now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 1024**2


Scenario = Callable[[Stage], Awaitable[None]]


async def play(scenario: Scenario, stage: Stage, result: Result, *, strict: bool) -> None:
    """*strict*: look at what the client's own books say too."""
    before = _footprint()
    began = time.monotonic()
    try:
        await scenario(stage)
        if strict:
            result.left += await unsettled(stage)
    finally:
        for client in stage.clients:
            await client.close()
    result.seconds = round(time.monotonic() - began, 2)
    stage.clients.clear()
    ledgers = stage.ledgers
    for ledger in ledgers:
        executions, allowed = ledger.executed(stage.counter)
        result.executions += executions
        result.allowed += allowed
        result.calls += ledger.calls
        result.wrong += ledger.wrong[:10]
        for name, count in ledger.errors.items():
            result.errors[name] = result.errors.get(name, 0) + count
    result.over = round(max(each.slowest - each.timeout for each in ledgers), 3)
    for ledger in ledgers:
        ledger.client = None
    result.faults = stage.proxy.faults
    result.notes = stage.notes
    result.left += stage.left
    result.left += await _left(stage, before)
    secret = sum(CANARY in said for each in ledgers for said in each.said)
    if secret:
        result.notes["tracebacks with the password"] = secret
    if CANARY in stage.said.getvalue():
        result.left.append("the password, in the log")


async def unsettled(stage: Stage) -> list[str]:
    """What the books of the clients, the proxy and the server do not agree on, at rest."""

    def books() -> list[str]:
        found = [line for client in stage.clients for line in client.left()]
        believed = sum(client.connections() or 0 for client in stage.clients)
        listed = len(stage.server.clients())
        if not believed == listed == stage.proxy.open:
            found.append(
                f"{believed} connections in the books, {stage.proxy.open} through the proxy, "
                f"{listed} in CLIENT LIST"
            )
        return found

    await stage.until(lambda: not books())
    return books()


def _footprint() -> tuple[int, int, int]:
    """Descriptors, threads and tasks."""
    descriptors = len(list(Path("/proc/self/fd").iterdir()))
    return descriptors, threading.active_count(), len(asyncio.all_tasks())


async def _left(stage: Stage, before: tuple[int, int, int]) -> list[str]:
    """What is left behind now that all clients are closed."""
    stage.server.command("PING")
    gc.collect()
    found: list[str] = []
    if not await stage.until(lambda: stage.proxy.open == 0 and not stage.server.clients()):
        found.append(f"connections: {stage.server.clients()}")
    names = ("descriptors", "threads", "tasks")
    if not await stage.until(
        lambda: all(a <= b for a, b in zip(_footprint(), before, strict=True))
    ):
        after = _footprint()
        found += [
            f"{now - then} {name}"
            for name, now, then in zip(names, after, before, strict=True)
            if now > then
        ]
    return found


@contextlib.contextmanager
def _logging(stream: io.StringIO) -> Iterator[None]:
    """Everything that is logged, at DEBUG, goes to *stream*; warnings of asyncio also to stderr."""
    handler = logging.StreamHandler(stream)
    loud = logging.StreamHandler()
    loud.setLevel(logging.WARNING)
    logging.basicConfig(level=logging.DEBUG, handlers=[handler])
    logging.getLogger("asyncio").addHandler(loud)
    yield


def main() -> None:
    from faults import scenarios

    parser = argparse.ArgumentParser(prog="faults.run", description=__doc__.partition("\n")[0])
    parser.add_argument("scenario", choices=sorted(scenarios.ALL))
    parser.add_argument("--client", choices=sorted(CLIENTS), default="pevensie-async")
    parser.add_argument("--server", choices=sorted(servers.INSTALL), default="valkey-9")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--scale", type=float, default=1.0)
    given = parser.parse_args()
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    result = Result(given.scenario, given.client, given.server, given.seed)
    with servers.running(given.server, *LOGIN) as server:
        server.command("PING")
        stage = Stage(server, given.client, given.seed, given.scale, given.scenario in TLS)

        async def run() -> None:
            loop = asyncio.get_running_loop()
            loop.slow_callback_duration = 60.0  # a busy machine is no fault of the client
            with _logging(stage.said):
                async with stage.closing:
                    await play(
                        scenarios.ALL[given.scenario],
                        stage,
                        result,
                        strict=given.client.startswith("pevensie"),
                    )

        with asyncio.Runner(debug=given.scenario in DEBUGGED) as runner:
            runner.run(run())
    result.peak = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)
    print(json.dumps(dataclasses.asdict(result)))


if __name__ == "__main__":
    main()
