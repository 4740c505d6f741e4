"""Opening a connection: credentials, sockets, TLS, and what is wrong with each."""

from __future__ import annotations

import dataclasses
import logging
import socket
import ssl
import time
from typing import Any

import pytest

import pevensie
from colours import connected
from fakes import CLOSE, FakeServer, bulk
from pevensie.redis import (
    AuthenticationFailed,
    DeadlineExceeded,
    RedisConfig,
    ServerError,
    StartError,
    UnknownResponseError,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(params=["sync", "async", "async on uvloop"])
def variant(request: pytest.FixtureRequest) -> str:
    chosen: str = request.param
    return chosen


@pytest.fixture
def colour(variant: str) -> str:
    return variant.partition(" ")[0]


@pytest.fixture
def anyio_backend(variant: str) -> tuple[str, dict[str, bool]]:
    return "asyncio", {"use_uvloop": variant.endswith("uvloop")}


async def works(config: RedisConfig, colour: str) -> None:
    async with connected(config, colour) as c:
        await c.set("ship", "dawn-treader", "Prince", ttl_seconds=60)
        assert await c.get("ship", "dawn-treader") == "Prince"


# -- credentials --------------------------------------------------------------------------------


async def test_password_only(fresh_server: Any, colour: str) -> None:
    fresh_server.command("CONFIG", "SET", "requirepass", "aslan")
    await works(dataclasses.replace(fresh_server.config, password="aslan"), colour)


async def test_user_and_password(server: Any, colour: str) -> None:
    server.command("ACL", "SETUSER", "lucy", "on", ">wardrobe", "~*", "+@all")
    await works(dataclasses.replace(server.config, username="lucy", password="wardrobe"), colour)


async def test_user_only_sends_an_empty_password(server: Any, colour: str) -> None:
    server.command("ACL", "SETUSER", "lucy", "on", "nopass", "~*", "+@all")
    await works(dataclasses.replace(server.config, username="lucy"), colour)


async def test_no_credentials(server: Any, colour: str) -> None:
    await works(server.config, colour)


async def test_a_password_callable_is_asked_at_every_dial(fake: FakeServer, colour: str) -> None:
    passwords = iter(["first", "second"])
    config = dataclasses.replace(fake.config, password=lambda: next(passwords))
    async with connected(config, colour) as c:
        fake.close_connections()
        assert await c.get("ship", "x") == "SHIP:X"
    assert fake.commands(b"AUTH") == [[b"AUTH", b"first"], [b"AUTH", b"second"]]


@pytest.mark.parametrize("ask", [lambda: 1 / 0, lambda: None, lambda: "\ud800"])
async def test_a_password_callable_that_fails_is_a_start_error(
    fake: FakeServer, colour: str, ask: Any
) -> None:
    with pytest.raises(StartError, match="password, a callable"):
        await works(dataclasses.replace(fake.config, password=ask), colour)
    assert fake.accepted == 0


async def test_a_slow_password_callable_does_not_outlive_the_deadline(
    fake: FakeServer, colour: str
) -> None:
    config = dataclasses.replace(fake.config, password=lambda: time.sleep(1) or "x", timeout=100)
    began = time.monotonic()
    with pytest.raises(StartError):
        await works(config, colour)
    assert time.monotonic() - began < 0.5


@pytest.mark.parametrize("fields", [{"password": "wrong"}, {}, {"username": "edmund"}])
async def test_wrong_or_missing_credentials(
    fresh_server: Any, colour: str, fields: dict[str, str]
) -> None:
    fresh_server.command("CONFIG", "SET", "requirepass", "aslan")
    before = int(fresh_server.info("stats")["total_connections_received"])
    config = dataclasses.replace(fresh_server.config, **fields)
    for mode in ("expire", "single"):
        with pytest.raises(AuthenticationFailed) as caught:
            await works(dataclasses.replace(config, set_mode=mode), colour)
        assert fresh_server.config.address in str(caught.value)
        assert "wrong" not in str(caught.value)
        assert not caught.value.sent
    after = int(fresh_server.info("stats")["total_connections_received"])
    assert after - before == 2  # one attempt each: never retried


async def test_a_password_for_a_server_that_has_none(server: Any, colour: str) -> None:
    config = dataclasses.replace(server.config, password="aslan")
    with pytest.raises(AuthenticationFailed):
        await works(dataclasses.replace(config, username="nobody"), colour)


async def test_a_user_who_may_not_use_multi_is_refused_and_nothing_is_stored(
    server: Any, colour: str
) -> None:
    server.command("ACL", "SETUSER", "lucy", "on", ">wardrobe", "~*", "+@all", "-multi")
    config = dataclasses.replace(server.config, username="lucy", password="wardrobe")
    with pytest.raises(StartError, match='set_mode="single"') as caught:
        await works(config, colour)
    assert not caught.value.transient
    assert server.command("DBSIZE") == 0
    await works(dataclasses.replace(config, set_mode="single"), colour)


async def test_single_mode_needs_few_rights(server: Any, colour: str) -> None:
    server.command("ACL", "SETUSER", "lucy", "on", ">wardrobe", "~ship:*", "+get", "+set")
    config = dataclasses.replace(
        server.config, username="lucy", password="wardrobe", set_mode="single"
    )
    await works(config, colour)
    async with connected(config, colour) as c:
        with pytest.raises(ServerError) as caught:
            await c.delete("ship", "dawn-treader")
        assert caught.value.code == "NOPERM"
        with pytest.raises(ServerError):
            await c.get("horse", "bree")
        assert await c.get("ship", "dawn-treader") == "Prince"


async def test_an_echo_that_is_refused_turns_integrity_checks_off_with_a_warning(
    fake: FakeServer, colour: str, caplog: pytest.LogCaptureFixture
) -> None:
    del fake.answer[b"ECHO"]
    with caplog.at_level(logging.WARNING, "pevensie.redis"):
        async with connected(dataclasses.replace(fake.config, timeout=200), colour) as c:
            assert await c.get("ship", "x") == "SHIP:X"
            assert "integrity_checks is off" in caplog.text
            fake.answer[b"GET"] = lambda words: None
            with pytest.raises(DeadlineExceeded):
                await c.get("ship", "x")
            fake.answer[b"GET"] = lambda words: bulk(b"new")
            assert await c.get("ship", "y") == "new"
    assert fake.accepted == 2


async def test_a_client_name_that_is_refused_does_not_matter(fake: FakeServer, colour: str) -> None:
    fake.answer[b"CLIENT"] = lambda words: b"-ERR unknown command\r\n"
    await works_with(fake, colour)


async def works_with(fake: FakeServer, colour: str) -> None:
    async with connected(fake.config, colour) as c:
        assert await c.get("ship", "x") == "SHIP:X"


# -- where to -----------------------------------------------------------------------------------


async def test_unix_socket(server: Any, colour: str) -> None:
    await works(server.unix_config, colour)


async def test_localhost_by_name(server: Any, colour: str) -> None:
    await works(dataclasses.replace(server.config, host="localhost"), colour)


async def test_database(server: Any, colour: str) -> None:
    await works(dataclasses.replace(server.config, database=5), colour)
    assert server.command("DBSIZE") == 0


async def test_a_database_that_does_not_exist(server: Any, colour: str) -> None:
    with pytest.raises(StartError, match="database") as caught:
        await works(dataclasses.replace(server.config, database=1_000_000), colour)
    assert not caught.value.transient


@pytest.mark.parametrize("answer", [b"-ERR no\r\n", b"-NOPERM no\r\n", b"-ERR unknown command\r\n"])
@pytest.mark.parametrize("name", [b"SELECT", b"MULTI", b"EXEC"])
async def test_a_refused_step_names_the_field(
    fake: FakeServer, colour: str, name: bytes, answer: bytes
) -> None:
    fake.answer[name] = lambda words: answer
    with pytest.raises(StartError, match="database" if name == b"SELECT" else "set_mode"):
        await works(dataclasses.replace(fake.config, database=1), colour)
    assert not fake.commands(b"SET")


async def test_nobody_listens(colour: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(StartError, match="is a server running there") as caught:
        await works(RedisConfig(host="127.0.0.1", port=port), colour)
    assert isinstance(caught.value, ConnectionError)
    assert f"127.0.0.1:{port}" in str(caught.value)


async def test_no_such_unix_socket(colour: str, tmp_path: Any) -> None:
    with pytest.raises(StartError, match="No such file"):
        await works(RedisConfig(unix_socket=str(tmp_path / "none.sock")), colour)


async def test_no_such_host(colour: str) -> None:
    with pytest.raises(StartError, match="look up the host name"):
        await works(RedisConfig(host="no-such-host.invalid"), colour)


async def test_a_server_that_accepts_and_stays_silent(colour: str) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        config = RedisConfig(host="127.0.0.1", port=silent.getsockname()[1], timeout=200)
        began = time.monotonic()
        with pytest.raises(StartError):
            await works(config, colour)
        assert 0.15 < time.monotonic() - began < 0.3


async def test_a_server_that_is_full(fresh_server: Any, colour: str) -> None:
    fresh_server.command("CONFIG", "SET", "maxclients", "1")
    with pytest.raises(StartError, match="max number of clients") as caught:
        await works(fresh_server.config, colour)
    assert caught.value.transient


async def test_a_server_that_closes_during_the_handshake(fake: FakeServer, colour: str) -> None:
    fake.answer[b"CLIENT"] = lambda words: CLOSE
    with pytest.raises(StartError, match="no handshake"):
        await works(fake.config, colour)


async def test_a_server_that_is_loading(fake: FakeServer, colour: str) -> None:
    fake.answer[b"ECHO"] = lambda words: b"-LOADING Redis is loading the dataset in memory\r\n"
    with pytest.raises(StartError, match="not ready") as caught:
        await works(fake.config, colour)
    assert caught.value.transient


@pytest.mark.parametrize(
    "greeting",
    [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"SSH-2.0-OpenSSH\r\n", b"*1\r\n" * 100_000, b":1\r\n"],
)
async def test_what_is_no_redis_server(fake: FakeServer, colour: str, greeting: bytes) -> None:
    fake.greeting = greeting
    with pytest.raises((UnknownResponseError, StartError)):
        await works(fake.config, colour)
    assert not fake.commands(b"SET")


@pytest.mark.parametrize(
    ("name", "answer"),
    [
        (b"ECHO", b"$3\r\nabc\r\n"),
        (b"ECHO", b"$-1\r\n"),
        (b"SELECT", b":1\r\n"),
        (b"AUTH", b"$-1\r\n"),
        (b"EXEC", b"*1\r\n+OK\r\n"),
        (b"MULTI", b"+QUEUED\r\n"),
    ],
)
async def test_nonsense_in_the_handshake(
    fake: FakeServer, colour: str, name: bytes, answer: bytes
) -> None:
    fake.answer[name] = lambda words: answer
    config = dataclasses.replace(fake.config, database=1, password="x")
    with pytest.raises(UnknownResponseError):
        await works(config, colour)


# -- TLS ----------------------------------------------------------------------------------------


async def test_tls(tls_server: Any, colour: str) -> None:
    await works(tls_server.config, colour)
    by_address = dataclasses.replace(tls_server.config, host="127.0.0.1")
    await works(by_address, colour)


async def test_tls_carries_large_values(tls_server: Any, colour: str) -> None:
    large = "x" * 3_000_000
    async with connected(tls_server.config, colour) as c:
        await c.set("ship", 1, large)
        assert await c.get("ship", 1) == large


@pytest.mark.parametrize("certificate", ["expired", "wrong-host", "stranger"])
async def test_a_certificate_that_does_not_verify(
    tls_server: Any, colour: str, certificate: str
) -> None:
    tls_server.present(certificate)
    with pytest.raises(StartError, match="certificate does not verify") as caught:
        await works(tls_server.config, colour)
    assert not caught.value.transient


async def test_tls_true_trusts_the_systems_authorities_only(tls_server: Any, colour: str) -> None:
    with pytest.raises(StartError, match="certificate does not verify"):
        await works(dataclasses.replace(tls_server.config, tls=True), colour)


async def test_the_ca_can_come_from_the_url(tls_server: Any, colour: str) -> None:
    url = f"rediss://localhost:{tls_server.tls_port}?ssl_ca_certs={tls_server.ca}"
    await works(RedisConfig.from_url(url), colour)


async def test_a_client_certificate(tls_server: Any, colour: str) -> None:
    tls_server.require_client_certificate()
    with pytest.raises((StartError, pevensie.ConnectionLost)):
        await works(tls_server.config, colour)
    context = tls_server.context(client_certificate=True)
    await works(dataclasses.replace(tls_server.config, tls=context), colour)


async def test_tls_to_a_port_without(tls_server: Any, colour: str) -> None:
    config = dataclasses.replace(tls_server.config, port=tls_server.port, timeout=500)
    with pytest.raises(StartError, match="does this port speak TLS"):
        await works(config, colour)


async def test_no_tls_to_a_port_with(tls_server: Any, colour: str) -> None:
    config = dataclasses.replace(tls_server.config, tls=False, timeout=1000)
    with pytest.raises(StartError):
        await works(config, colour)


async def test_a_context_that_verifies_nothing_is_the_users_choice(
    tls_server: Any, colour: str
) -> None:
    tls_server.present("expired")
    context = ssl.create_default_context()
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    await works(dataclasses.replace(tls_server.config, tls=context), colour)
