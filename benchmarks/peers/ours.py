"""Pevensie, at its defaults."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Generator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from typing import Final

from benchmarks.peers.peer import HOST, RESOURCE, TTL, Calls, Peer, by_name


@contextmanager
def _pevensie(port: int, _threads: int) -> Generator[Calls]:
    import pevensie

    with pevensie.from_url(f"redis://{HOST}:{port}").connect() as c:
        yield Calls(
            partial(c.get, RESOURCE),
            partial(c.set, RESOURCE, ttl_seconds=TTL),
            partial(c.get_many, RESOURCE),
        )


@asynccontextmanager
async def _pevensie_async(port: int, _tasks: int) -> AsyncGenerator[Calls]:
    import pevensie

    async with pevensie.from_url(f"redis://{HOST}:{port}").connect_async() as c:
        yield Calls(
            partial(c.get, RESOURCE),
            partial(c.set, RESOURCE, ttl_seconds=TTL),
            partial(c.get_many, RESOURCE),
        )


PEVENSIE: Final = Peer(
    name="pevensie",
    open=_pevensie,
    open_async=_pevensie_async,
    module="pevensie.cache, pevensie.redis",
    packages=("pevensie", "hiredis"),
    prefix="",
    stored=None,
    many=by_name,
    kind="ours",
    note='its defaults: integrity checks on, `set_mode="expire"` (a transaction of two '
    "commands), `pool_size=10`, 5 s per call",
)
