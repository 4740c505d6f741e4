"""Opening a connection in an event loop: look up, connect, TLS, handshake, within ``timeout``."""

from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import Callable
from typing import Final, TypeVar

from pevensie.errors import ConnectionLost, DeadlineExceeded, RedisError
from pevensie.redis import _session
from pevensie.redis._async.connection import Call, Connection
from pevensie.redis._io import log, sockets
from pevensie.redis._retry import MAX_ATTEMPTS
from pevensie.redis.config import RedisConfig

T = TypeVar("T")

TLS_MARGIN: Final = 0.005
"""Seconds before the deadline at which a TLS handshake is given up, to say so."""


async def dial(
    config: RedisConfig,
    on_room: Callable[[int], None],
    on_failure: Callable[[Call, Exception], None],
) -> Connection:
    """An open connection whose handshake went well.

    Raises :exc:`StartError`, :exc:`AuthenticationFailed` or :exc:`UnknownResponseError`.
    """
    try:
        async with asyncio.timeout(config.timeout_seconds):
            return await _dial(config, on_room, on_failure)
    except RedisError as error:
        error.server = config.address
        error.sent = False
        raise
    except OSError as error:  # includes TimeoutError and ssl.SSLError
        raise sockets.start_error(error, config) from error


async def _dial(
    config: RedisConfig,
    on_room: Callable[[int], None],
    on_failure: Callable[[Call, Exception], None],
) -> Connection:
    loop = asyncio.get_running_loop()
    deadline = loop.time() + config.timeout_seconds
    tokens = _session.Tokens(os.urandom(8).hex().encode())
    password = await _password(config)
    sock = await _connect(config, deadline)

    def new_connection() -> Connection:
        return Connection(
            loop,
            sock,
            timeout=config.timeout_seconds,
            tokens=tokens,
            on_room=on_room,
            on_failure=on_failure,
        )

    context = sockets.tls_context(config)
    try:
        async with asyncio.timeout_at(deadline - TLS_MARGIN if context else None):
            _, connection = await loop.create_connection(
                new_connection,
                sock=sock,
                ssl=context,
                server_hostname=sockets.server_hostname(config) if context else None,
            )
    except TimeoutError:
        sock.close()
        raise sockets.tls_silence(config) from None
    except BaseException:
        sock.close()
        raise
    try:
        await _greet(connection, config, password, tokens, deadline)
    except BaseException:
        connection.give_up("its handshake failed")
        raise
    return connection


async def _greet(
    connection: Connection,
    config: RedisConfig,
    password: str | None,
    tokens: _session.Tokens,
    deadline: float,
) -> None:
    op = _session.handshake(config, password, tokens.next())
    (data,) = op.data
    # The last attempt, so that its failure ends the dial.
    future = connection.submit(data, op, len(data), deadline, attempt=MAX_ATTEMPTS)
    try:
        if future is None:
            raise connection.loss(sent=False)  # it was closed before it could be greeted
        greeting = await future
    except ConnectionLost as error:
        raise sockets.handshake_cut(error.args[0], config) from error
    except DeadlineExceeded as error:
        raise sockets.handshake_cut("the server does not answer", config) from error
    if config.integrity_checks and not greeting.echoes:
        log.echo_refused(config.address)
    connection.greeted(echoes=greeting.echoes, integrity_checks=config.integrity_checks)


async def _password(config: RedisConfig) -> str | None:
    ask = sockets.ask_password(config)
    if ask is None:
        return config.password if isinstance(config.password, str) else None
    try:
        return sockets.check_password(await _in_thread(ask))
    except Exception as error:  # noqa: BLE001 - the user's callable may raise anything
        raise sockets.password_error(error, config) from None


async def _connect(config: RedisConfig, deadline: float) -> socket.socket:
    """A connected socket, to the first of the host's addresses that answers."""
    loop = asyncio.get_running_loop()
    addresses = sockets.known_addresses(config)
    if addresses is None:
        addresses = await _in_thread(lambda: sockets.look_up(config))
    for left in range(len(addresses), 0, -1):
        family, address = addresses[-left]
        sock = sockets.new_socket(family)
        try:
            async with asyncio.timeout((deadline - loop.time()) / left):
                await loop.sock_connect(sock, address)
            return sock
        except BaseException as error:
            sock.close()
            if left == 1 or not isinstance(error, OSError):
                raise
    raise AssertionError("getaddrinfo returned no address")


async def _in_thread(function: Callable[[], T]) -> T:
    """Await *function*, which may block for longer than its result is of interest."""
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def settle(outcome: T | BaseException) -> None:
        if future.done():
            return
        if isinstance(outcome, BaseException):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    def done(outcome: T | BaseException) -> None:
        try:
            loop.call_soon_threadsafe(settle, outcome)
        except RuntimeError:
            pass  # the loop is closed: nobody waits any more

    sockets.in_thread(function, done)
    return await future
