"""A process of its own for a scenario of :mod:`faults.scenarios`: it gets its task as arguments and
how to connect on stdin, one line, and tells its ledger on stdout.
"""

from __future__ import annotations

import asyncio
import json
import os
import ssl
import sys
import time
import warnings
from typing import Any

from faults.clients import CLIENTS, Client
from faults.ledger import Ledger, all_of
from pevensie.redis import RedisConfig


async def _connect(described: dict[str, Any], timeout: int) -> Ledger:
    authority = described["authority"]
    config = RedisConfig(
        host="127.0.0.1",
        port=described["port"],
        username="faults",
        password=described["password"],
        timeout=timeout,
        tls=ssl.create_default_context(cadata=authority) if authority else False,
    )
    return Ledger(await CLIENTS[described["client"]](config), timeout / 1000)


async def _use(ledger: Ledger, name: str, calls: int) -> None:
    """So many calls, ten at a time, half of them writes."""
    for n in range(calls // 20):
        keys = [f"{name}-{m}" for m in range(10)]
        if n % 2:
            await all_of(ledger.incr(key + "-n") for key in keys)
        else:
            await all_of(ledger.set(key) for key in keys)
        await all_of(ledger.get(key) for key in keys)


def fork(described: dict[str, Any], calls: int) -> None:
    """Fork with calls in flight; parent and children go on with the client that was open before."""
    # From 3.12: "this process is multi-threaded, use of fork() may lead to deadlocks". That is it.
    warnings.simplefilter("ignore", DeprecationWarning)
    loop = asyncio.new_event_loop()
    ledger = loop.run_until_complete(_connect(described, 5000))
    loop.run_until_complete(_use(ledger, "before", 40))

    async def begin() -> list[asyncio.Task[Any]]:
        tasks = [asyncio.create_task(ledger.set(f"flight-{n}")) for n in range(20)]
        await asyncio.sleep(0.001)
        return tasks

    flight = loop.run_until_complete(begin())
    children: list[tuple[int, int]] = []
    for n in range(2):
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            client: Client = ledger.client
            own = Ledger(client, ledger.timeout)
            asyncio.run(_finish(own, f"child-{n}", calls))
            os.write(writing, json.dumps({"ledger": own.told()}).encode())
            os._exit(0)
        os.close(writing)
        children.append((pid, reading))
    loop.run_until_complete(_use(ledger, "parent", calls))
    loop.run_until_complete(asyncio.wait(flight))
    for pid, reading in children:
        with os.fdopen(reading) as pipe:
            print(pipe.read())
        if os.waitpid(pid, 0)[1]:
            ledger.wrong.append("a child failed")
    if ledger.errors:
        ledger.wrong.append(f"the parent saw {dict(ledger.errors)}")
    loop.run_until_complete(ledger.client.close())
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()
    print(json.dumps({"ledger": ledger.told()}))


async def _finish(ledger: Ledger, name: str, calls: int) -> None:
    await _use(ledger, name, calls)
    await ledger.client.close()


async def load(described: dict[str, Any], number: int, callers: int) -> None:
    """So many callers, who pause for a moment after an error, until stdin is closed."""
    ledger = await _connect(described, 1000)
    ledger.lossy = True  # the server will be killed
    going = True
    last_failure = 0.0
    successes = 0

    async def caller(key: str) -> None:
        nonlocal last_failure, successes
        while going:
            if isinstance(await ledger.get(key), Exception):
                last_failure = time.monotonic()
                successes = 0
            else:
                successes += 1
            await asyncio.sleep(0.1)

    keys = [f"{number}-{n}" for n in range(callers)]
    await all_of(ledger.set(key) for key in keys)
    tasks = [asyncio.create_task(caller(key)) for key in keys]
    print(json.dumps("ready"), flush=True)
    await asyncio.to_thread(sys.stdin.read)
    going = False
    await all_of(tasks)
    await ledger.client.close()
    report = {"last failure": last_failure, "successes at the end": successes}
    print(json.dumps({"ledger": ledger.told(), **report}))


def main() -> None:
    task, number, size = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    described = json.loads(sys.stdin.readline())
    if task == "fork":
        fork(described, size)
    else:
        asyncio.run(load(described, number, size), debug=False)


if __name__ == "__main__":
    main()
