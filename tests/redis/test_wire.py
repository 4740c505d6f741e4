"""What goes over the wire, command by command, as MONITOR shows it on each server."""

from __future__ import annotations

import dataclasses
from datetime import timedelta
from typing import Any

import pytest

import servers
from colours import connected

pytestmark = pytest.mark.anyio

MULTI, EXEC = [b"MULTI"], [b"EXEC"]
KEY = b"ship:dawn-treader"


async def sent(server: Any, colour: str, call: Any, **fields: Any) -> list[list[bytes]]:
    """The commands, without tokens, that *call* makes the server execute."""
    config = dataclasses.replace(server.config, **fields)
    async with connected(config, colour) as c:
        with server.monitor() as seen:
            await call(c)
    return [words for words in seen if words[0] != b"ECHO"]


@pytest.mark.parametrize(
    ("ttl", "lifetime"),
    [
        (3600, [b"EXPIRE", KEY, b"3600"]),
        (2.0, [b"EXPIRE", KEY, b"2"]),
        (timedelta(minutes=1), [b"EXPIRE", KEY, b"60"]),
        (1.5, [b"PEXPIRE", KEY, b"1500"]),
        (0.0001, [b"PEXPIRE", KEY, b"1"]),
        (1.0001, [b"PEXPIRE", KEY, b"1001"]),
        (timedelta(microseconds=1001), [b"PEXPIRE", KEY, b"2"]),
        (None, [b"PERSIST", KEY]),
    ],
)
async def test_set_is_the_seeds_commands_in_one_transaction(
    server: Any, colour: str, ttl: Any, lifetime: list[bytes]
) -> None:
    commands = await sent(
        server, colour, lambda c: c.set("ship", "dawn-treader", "Prince", ttl_seconds=ttl)
    )
    assert commands == [MULTI, [b"SET", KEY, b"Prince"], lifetime, EXEC]


async def test_set_in_single_mode_is_one_command(server: Any, colour: str) -> None:
    async def call(c: Any) -> None:
        await c.set("ship", "dawn-treader", "Prince", ttl_seconds=3600)
        await c.set("ship", "dawn-treader", "Prince")
        assert await c.ttl("ship", "dawn-treader") is None

    assert await sent(server, colour, call, set_mode="single") == [
        [b"SET", KEY, b"Prince", b"PX", b"3600000"],
        [b"SET", KEY, b"Prince"],
        [b"PTTL", KEY],
    ]


ONE = b"ship:1"
READS_AND_WRITES = [
    (lambda c: c.get("ship", "dawn-treader"), [[b"GET", KEY]]),
    (lambda c: c.delete("ship", "dawn-treader"), [[b"DEL", KEY]]),
    (lambda c: c.get_many("ship", [1, "2"]), [[b"MGET", ONE, b"ship:2"]]),
    (lambda c: c.get_many("ship", []), []),
    (lambda c: c.delete_many("ship", [1, 1, "2"]), [[b"DEL", ONE, b"ship:2"]]),
    (lambda c: c.delete_many("ship", []), []),
    (lambda c: c.set_many("ship", {}), []),
    (
        lambda c: c.set_many("ship", {1: "a", 2: "b"}, ttl_seconds=5),
        [
            MULTI,
            [b"SET", ONE, b"a"],
            [b"EXPIRE", ONE, b"5"],
            [b"SET", b"ship:2", b"b"],
            [b"EXPIRE", b"ship:2", b"5"],
            EXEC,
        ],
    ),
    (lambda c: c.add("ship", 1, "a"), [[b"SET", ONE, b"a", b"NX"]]),
    (
        lambda c: c.add("ship", 1, "a", ttl_seconds=5),
        [[b"SET", ONE, b"a", b"NX", b"PX", b"5000"]],
    ),
    (lambda c: c.increment("ship", 1), [[b"INCRBY", ONE, b"1"]]),
    (
        lambda c: c.increment("ship", 1, -3, ttl_seconds=5),
        [MULTI, [b"SET", ONE, b"0", b"PX", b"5000", b"NX"], [b"INCRBY", ONE, b"-3"], EXEC],
    ),
    (lambda c: c.contains("ship", 1), [[b"EXISTS", ONE]]),
    (lambda c: c.touch("ship", 1, 5), [[b"EXPIRE", ONE, b"5"]]),
    (lambda c: c.touch("ship", 1, 0.5), [[b"PEXPIRE", ONE, b"500"]]),
    (lambda c: c.touch("ship", 1, None), [[b"PERSIST", ONE], [b"EXISTS", ONE]]),
    (lambda c: c.ttl("ship", 1), [[b"PTTL", ONE]]),
    (lambda c: c.ping(), [[b"PING"]]),
]


@pytest.mark.parametrize(("call", "commands"), READS_AND_WRITES)
async def test_each_method_sends_just_its_commands(
    server: Any, colour: str, call: Any, commands: list[list[bytes]]
) -> None:
    assert await sent(server, colour, call) == commands


async def test_the_namespace_comes_before_every_key(server: Any, colour: str) -> None:
    commands = await sent(server, colour, lambda c: c.get("ship", 1), namespace="shop/eu")
    assert commands == [[b"GET", b"shop/eu/ship:1"]]


async def test_the_handshake(server: Any, colour: str) -> None:
    if not isinstance(server, servers.LocalServer):
        pytest.skip("needs database 3 of a server of our own")
    config = dataclasses.replace(server.config, database=3, client_name="navigator")
    with server.monitor() as seen:
        async with connected(config, colour) as c:
            await c.ping()
            (client,) = server.clients()
    assert client["name"] == "navigator"
    assert client["db"] == "3"
    assert client["resp"] == "2"
    names = [words[0] for words in seen]
    assert names[:5] == [b"SELECT", b"CLIENT", b"MULTI", b"EXEC", b"ECHO"]
    assert seen[:2] == [[b"SELECT", b"3"], [b"CLIENT", b"SETNAME", b"navigator"]]


async def test_the_handshake_in_single_mode_does_not_try_multi(server: Any, colour: str) -> None:
    config = dataclasses.replace(server.config, set_mode="single", database=0)
    with server.monitor() as seen:
        async with connected(config, colour):
            pass
    assert [words[0] for words in seen] == [b"CLIENT", b"ECHO"]


async def test_each_write_ends_with_a_token(server: Any, colour: str) -> None:
    async with connected(server.config, colour) as c:
        with server.monitor() as seen:
            await c.get("ship", 1)
            await c.get("ship", 1)
    assert [words[0] for words in seen] == [b"GET", b"ECHO", b"GET", b"ECHO"]
    assert seen[1][1] != seen[3][1]

    config = dataclasses.replace(server.config, integrity_checks=False)
    async with connected(config, colour) as c:
        with server.monitor() as seen:
            await c.get("ship", 1)
    assert [words[0] for words in seen] == [b"GET"]


async def test_any_redis_client_can_read_a_plain_value(server: Any, colour: str) -> None:
    async with connected(server.config, colour) as c:
        await c.set("ship", "dawn-treader", "Prince Caspian ☃", ttl_seconds=60)
        assert server.command("GET", KEY) == "Prince Caspian ☃".encode()
        assert 59_000 < server.command("PTTL", KEY) <= 60_000
        server.command("SET", KEY, "from outside")
        assert await c.get("ship", "dawn-treader") == "from outside"
        assert await c.ttl("ship", "dawn-treader") is None
