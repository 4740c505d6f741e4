"""Opening a blocking connection: look up, connect, TLS, handshake, all before the deadline."""

from __future__ import annotations

import os
import socket
import time

from pevensie.errors import ConnectionLost, DeadlineExceeded, RedisError
from pevensie.redis import _session
from pevensie.redis._io import log, sockets
from pevensie.redis._sync.connection import Connection
from pevensie.redis.config import RedisConfig


def dial(config: RedisConfig, deadline: float) -> Connection:
    """An open connection whose handshake went well. *deadline* is a time of ``time.monotonic``.

    Raises :exc:`StartError`, :exc:`AuthenticationFailed` or :exc:`UnknownResponseError`.
    """
    try:
        return _dial(config, deadline)
    except RedisError as error:
        error.server = config.address
        error.sent = False
        raise
    except OSError as error:  # includes TimeoutError and ssl.SSLError
        raise sockets.start_error(error, config) from error


def _dial(config: RedisConfig, deadline: float) -> Connection:
    password = _password(config, deadline)
    sock = _connect(config, deadline)
    try:
        context = sockets.tls_context(config)
        if context is not None:
            sock.settimeout(_left(deadline))
            sock = context.wrap_socket(
                sock,
                server_hostname=sockets.server_hostname(config),
                do_handshake_on_connect=False,
            )
            try:
                sock.do_handshake()
            except TimeoutError:
                raise sockets.tls_silence(config) from None
        sock.setblocking(False)
        connection = Connection(sock, config.timeout_seconds)
    except BaseException:
        sock.close()
        raise
    try:
        _greet(connection, config, password, deadline)
    except BaseException:
        connection.close()
        raise
    return connection


def _greet(
    connection: Connection, config: RedisConfig, password: str | None, deadline: float
) -> None:
    tokens = _session.Tokens(os.urandom(8).hex().encode())
    op = _session.handshake(config, password, tokens.next())
    try:
        greeting = connection.execute(op, deadline)
    except ConnectionLost as error:
        raise sockets.handshake_cut(error.args[0], config) from error
    except DeadlineExceeded as error:
        raise sockets.handshake_cut("the server does not answer", config) from error
    if not config.integrity_checks:
        return
    if greeting.echoes:
        connection.check_with(tokens)
    else:
        log.echo_refused(config.address)


def _password(config: RedisConfig, deadline: float) -> str | None:
    ask = sockets.ask_password(config)
    if ask is None:
        return config.password if isinstance(config.password, str) else None
    try:
        return sockets.check_password(sockets.within(_left(deadline), ask))
    except Exception as error:  # noqa: BLE001 - the user's callable may raise anything
        raise sockets.password_error(error, config) from None


def _connect(config: RedisConfig, deadline: float) -> socket.socket:
    """A connected socket, to the first of the host's addresses that answers."""
    addresses = sockets.known_addresses(config)
    if addresses is None:
        addresses = sockets.within(_left(deadline), lambda: sockets.look_up(config))
    for left in range(len(addresses), 0, -1):
        family, address = addresses[-left]
        sock = sockets.new_socket(family)
        try:
            sock.settimeout(_left(deadline) / left)
            sock.connect(address)
            return sock
        except BaseException as error:
            sock.close()
            if left == 1 or not isinstance(error, OSError):
                raise
    raise AssertionError("getaddrinfo returned no address")


def _left(deadline: float) -> float:
    """Seconds left, at least a moment: a timeout of zero would mean "do not block"."""
    return max(deadline - time.monotonic(), 0.001)
