"""What a client costs beside time: memory when idle, and memory for each call in flight.

Each figure comes from a fresh process, and is the growth of its resident memory: no more exact than
a page, nor than what the allocator keeps; so the median of several. Linux only: it reads /proc.
"""

from __future__ import annotations

import asyncio
import gc
import os
import signal
from pathlib import Path
from typing import Any, Final

from benchmarks.load import ends_in, reason, run_async
from benchmarks.peers import PEERS
from benchmarks.peers.peer import QUEUE

IN_FLIGHT: Final = 10_000
BARE_TASKS: Final = "(10,000 bare tasks)"
"""The cost of the tasks themselves, which is in everybody's figure: each waits for a future."""

SETTLING: Final = 0.5
"""Seconds between the last start and the look at the memory; less than anybody's timeout."""


def resident() -> int:
    """Bytes."""
    gc.collect()
    pages = Path("/proc/self/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGESIZE")


def idle(name: str, port: int) -> float:
    """MB: the import, connecting, and one call. asyncio is there before, for all."""
    with ends_in(30):
        peer, key = PEERS[name], "0"
        if peer.open_async is None:
            assert peer.open is not None
            before = resident()
            with peer.open(port, 1) as calls:
                calls.get(peer.prefix + key)
                return (resident() - before) / 1e6

        async def connect() -> float:
            assert peer.open_async is not None
            before = resident()
            async with peer.open_async(port, 1) as calls:
                await calls.get(peer.prefix + key)
                return (resident() - before) / 1e6

        result: float = run_async(connect(), uvloop=False)
        return result


def in_flight(name: str, port: int, server: int) -> float:
    """KB for each of 10,000 calls that wait for a server that is stopped meanwhile."""
    with ends_in(60):
        result: float = run_async(_in_flight(name, port, server), uvloop=False)
        return result


async def _in_flight(name: str, port: int, server: int) -> float:
    if name == BARE_TASKS:
        future = asyncio.get_running_loop().create_future()

        async def wait() -> None:
            await future

        before = resident()
        tasks = [asyncio.create_task(wait()) for _ in range(IN_FLIGHT)]
        await asyncio.sleep(SETTLING)
        after = resident()
        future.set_result(None)
        await asyncio.gather(*tasks)
        return (after - before) / IN_FLIGHT / 1000

    peer = PEERS[name]
    assert peer.open_async is not None
    async with peer.open_async(port, QUEUE) as calls:
        names = [f"{peer.prefix}{number}" for number in range(IN_FLIGHT)]

        async def call(name: str) -> Any:
            return await calls.get(name)

        await call(names[0])
        before = resident()
        os.kill(server, signal.SIGSTOP)
        try:
            tasks = [asyncio.create_task(call(name)) for name in names]
            await asyncio.sleep(SETTLING)
            after = resident()
        finally:
            os.kill(server, signal.SIGCONT)
        failed = [
            outcome
            for outcome in await asyncio.gather(*tasks, return_exceptions=True)
            if isinstance(outcome, BaseException)
        ]
    if failed:
        raise RuntimeError(f"{len(failed)} of {IN_FLIGHT} calls failed: {reason(failed[0])}")
    return (after - before) / IN_FLIGHT / 1000
