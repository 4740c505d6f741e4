"""Both clients, for minutes, while faults come at random: see ``scripts/soak``.

Forty tasks and twelve threads read and write, each with a key of its own and everybody's to read;
some tasks are cancelled. Meanwhile one fault after the other is done: replies lost, doubled,
injected; connections cut; the network black, slow or in pieces; the server frozen, asleep, killed
and started again, empty. Every minute the faults and the callers stop for a moment, and all oracles
are asked. The last line says what came of it; the exit code is 1 if anything was wrong or left.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import gc
import random
import sys
import time
import warnings
from collections import Counter
from typing import Any, Final

import servers
from faults.ledger import Ledger, all_of, value_of
from faults.run import LOGIN, Stage, resident, unsettled

TASKS: Final = 40
THREADS: Final = 12
TIMEOUT: Final = 500

ROUND: Final = 60.0
"""Seconds between two looks at the books."""


class Soak:
    def __init__(self, stage: Stage, minutes: float) -> None:
        self.stage = stage
        self.rng = stage.rng
        self.until = time.monotonic() + minutes * 60
        self.round = min(ROUND, minutes * 60 / 3)
        self.done: Counter[str] = Counter()
        self.memory: list[tuple[float, float]] = []
        self.left: list[str] = []
        self.cancelled = 0
        self.calling = asyncio.Event()
        self.counting = 0
        """Of the server's lives, so that each has counters of its own."""

    async def run(self) -> bool:
        """Whether all was well."""
        ledgers = [
            await self.stage.client(timeout=TIMEOUT, client=f"pevensie-{colour}")
            for colour in ("async", "sync")
        ]
        callers = [
            asyncio.create_task(self._caller(ledger, f"{number}", count))
            for ledger, count in zip(ledgers, (TASKS, THREADS), strict=True)
            for number in range(count)
        ]
        began = time.monotonic()
        while time.monotonic() < self.until:
            self.calling.set()
            end = min(self.until, time.monotonic() + self.round)
            while time.monotonic() < end:
                await self._fault()
            self.calling.clear()
            await self._look(ledgers, began)
        for caller in callers:
            caller.cancel()
        await asyncio.gather(*callers, return_exceptions=True)
        return self._report(ledgers)

    async def _caller(self, ledger: Ledger, name: str, count: int) -> None:
        cancels = not ledger.client.blocking
        kind = "a" if cancels else "s"  # the keys of the one client are not the other's
        name = kind + name
        while True:
            await self.calling.wait()
            dice = self.rng.random()
            call: Any
            if dice < 0.45:
                call = ledger.get(f"{kind}{self.rng.randrange(count)}")
            elif dice < 0.75:
                call = ledger.set(name, size=100_000 if dice > 0.745 else 0)
            elif dice < 0.85:
                call = ledger.get_many([f"{kind}{self.rng.randrange(count)}" for _ in range(5)])
            else:
                call = ledger.incr(f"{name}n{self.counting}")
            if cancels and self.rng.random() < 0.1 and dice > 0.3:
                task = asyncio.ensure_future(call)
                await asyncio.sleep(self.rng.random() * 0.004)
                self.cancelled += task.cancel()
                await asyncio.gather(task, return_exceptions=True)
            elif isinstance(await call, Exception):
                await asyncio.sleep(0.05)
            else:
                await asyncio.sleep(0)

    async def _fault(self) -> None:
        """One fault, whatever it takes to end it, and a moment of rest."""
        proxy, server, rng = self.stage.proxy, self.stage.server, self.rng
        kind = rng.choices(
            (
                "reply",
                "cut",
                "byte",
                "black",
                "slow",
                "refuse",
                "freeze",
                "sleep",
                "kill",
                "restart",
            ),
            (30, 10, 10, 6, 6, 3, 4, 3, 4, 2),
        )[0]
        self.done[kind] += 1
        if kind == "reply":
            # One of another's, as a proxy that mixes up connections would send it.
            stranger = value_of("a1", "stranger", 1).encode()
            action = rng.choice(("swallow", "duplicate", "inject"))
            data = b"$%d\r\n%b\r\n" % (len(stranger), stranger)
            proxy.at_reply(rng.randrange(30), action, data=data)
        elif kind == "cut":
            proxy.cut(rng.choice(("fin", "rst")))
        elif kind == "byte":
            proxy.at_byte(rng.randrange(2000), rng.choice(("fin", "rst")))
        elif kind == "black":
            proxy.blackhole(*rng.choice((("up",), ("down",), ("up", "down"))))
            await asyncio.sleep(rng.random() * 2)
            proxy.lift()
        elif kind == "slow":
            proxy.delay = (0.0, rng.random() * 0.01)
            proxy.chunk = rng.choice((0, 0, 1, 17, 4000))
            await asyncio.sleep(rng.random())
            proxy.delay, proxy.chunk = (0.0, 0.0), 0
        elif kind == "refuse":
            proxy.refuse()
            proxy.cut("rst")
            await asyncio.sleep(rng.random() * 1.5)
            proxy.accept()
        elif kind == "freeze":
            server.pause()
            await asyncio.sleep(rng.random() * 2)
            server.resume()
        elif kind == "sleep":
            with server.dial() as other:
                other.send("DEBUG", "SLEEP", str(round(rng.random() * 1.2, 2)))
                await asyncio.to_thread(other.read)
        elif kind == "kill":
            for client in server.clients():
                with contextlib.suppress(Exception):
                    server.command("CLIENT", "KILL", "ID", client["id"])
        else:
            await self._restart()
        await asyncio.sleep(rng.random() * 0.5)

    async def _restart(self) -> None:
        self.counting += 1
        for ledger in self.stage.ledgers:
            ledger.forget()
        await asyncio.to_thread(self.stage.server.kill)
        await asyncio.sleep(self.rng.random())
        await asyncio.to_thread(self.stage.server.start)
        for ledger in self.stage.ledgers:
            ledger.forget()

    async def _look(self, ledgers: list[Ledger], began: float) -> None:
        """Ask the oracles, at rest."""
        self.stage.proxy.disarm()
        await asyncio.sleep(TIMEOUT / 1000 * 2.5)
        found = await unsettled(self.stage)
        for ledger in ledgers:
            ledger.executed(self.stage.counter)
        gc.collect()
        self.memory.append(((time.monotonic() - began) / 60, resident()))
        self.left += found
        wrong = [line for ledger in ledgers for line in ledger.wrong]
        calls = sum(ledger.calls for ledger in ledgers)
        print(
            f"{self.memory[-1][0]:5.1f} min  {calls} calls  {self.done.total()} faults  "
            f"{self.memory[-1][1]:.1f} MB  {[*wrong, *self.left][:5] or 'well'}",
            flush=True,
        )

    def _report(self, ledgers: list[Ledger]) -> bool:
        wrong = sum(len(ledger.wrong) for ledger in ledgers)
        errors: Counter[str] = Counter()
        for ledger in ledgers:
            errors.update(ledger.errors)
        over = max(ledger.slowest - ledger.timeout for ledger in ledgers)
        faults = self.done.total() + self.cancelled
        print(f"faults: {dict(self.done)}, {self.cancelled} cancelled; errors: {dict(errors)}")
        print(
            f"{sum(ledger.calls for ledger in ledgers)} calls, {faults} faults injected, "
            f"{wrong} wrong replies, slowest call {over * 1000:+.0f} ms over its deadline, "
            f"memory {_slope(self.memory):+.2f} MB/min, {len(self.left)} left behind, "
            f"seed {self.stage.seed}"
        )
        return not wrong and not self.left


def _slope(points: list[tuple[float, float]]) -> float:
    """Of the line through all *points* but the first, while which everything is filled."""
    points = points[1:] or points
    x = sum(p[0] for p in points) / len(points)
    y = sum(p[1] for p in points) / len(points)
    below = sum((p[0] - x) ** 2 for p in points)
    return sum((p[0] - x) * (p[1] - y) for p in points) / below if below else 0.0


def main() -> None:
    parser = argparse.ArgumentParser(prog="scripts/soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    parser.add_argument("--server", choices=sorted(servers.INSTALL), default="valkey-9")
    given = parser.parse_args()
    warnings.simplefilter("error")
    print(f"seed {given.seed}", flush=True)
    with servers.running(given.server, *LOGIN) as server:
        stage = Stage(server, "pevensie-async", given.seed, 1.0, tls=False)

        async def run() -> bool:
            async with stage.closing:
                try:
                    return await Soak(stage, given.minutes).run()
                finally:
                    await all_of(client.close() for client in stage.clients)

        with asyncio.Runner(debug=False) as runner:
            well = runner.run(run())
    sys.exit(0 if well else 1)


if __name__ == "__main__":
    main()
