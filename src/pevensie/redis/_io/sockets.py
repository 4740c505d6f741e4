"""What both shells need to open a socket: names, options, TLS, and foreign errors translated."""

from __future__ import annotations

import contextvars
import errno
import os
import queue
import select
import socket
import ssl
import struct
import threading
from collections.abc import Callable
from functools import lru_cache
from typing import Any, Final, TypeVar

from pevensie.errors import StartError
from pevensie.redis.config import RedisConfig

T = TypeVar("T")

Address = tuple[int, Any]
"""A family, and what ``connect`` of such a socket takes."""

KEEPALIVE_IDLE: Final = 60
"""Seconds of silence after which the kernel probes whether the other side is still there; below
the idle limits of the usual load balancers and NATs (350 s on AWS, 240 s on Azure)."""


def known_addresses(config: RedisConfig) -> list[Address] | None:
    """The addresses that need no look-up; ``None``: :func:`look_up` has to ask for them."""
    if config.unix_socket is not None:
        return [(socket.AF_UNIX, os.fspath(config.unix_socket))]
    try:
        return _addresses(config, socket.AI_NUMERICHOST)
    except socket.gaierror:
        return None


def is_near(config: RedisConfig) -> bool:
    """Whether the server is on this machine, as far as its name tells."""
    return config.unix_socket is not None or config.host in _LOOPBACK


_LOOPBACK: Final = frozenset({"localhost", "127.0.0.1", "::1"})


def look_up(config: RedisConfig) -> list[Address]:
    """Resolve the host's name. Blocks for as long as the system's resolver likes."""
    return _addresses(config, 0)


def _addresses(config: RedisConfig, flags: int) -> list[Address]:
    found = socket.getaddrinfo(config.host, config.port, type=socket.SOCK_STREAM, flags=flags)
    return [(family, address) for family, _, _, _, address in found]


def new_socket(family: int) -> socket.socket:
    """A socket of *family* that does not block."""
    sock = socket.socket(family, socket.SOCK_STREAM)
    sock.setblocking(False)
    if family != getattr(socket, "AF_UNIX", None):
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, KEEPALIVE_IDLE)
    return sock


class Readiness:
    """Waits until one socket can be read from or written to. For one thread at a time."""

    __slots__ = ("_poll", "_sock", "poll")

    poll: Callable[[float], object]
    """Whether there is something to read, or an end to notice, within so many milliseconds. Where
    there is a ``poll``, it is that itself: one Python frame less for each call."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._poll = select.poll() if hasattr(select, "poll") else None
        if self._poll is None:
            self.poll = self._select
        else:
            self._poll.register(sock.fileno(), select.POLLIN)
            self.poll = self._poll.poll

    def _select(self, milliseconds: float) -> object:
        return select.select([self._sock], [], [], milliseconds / 1000)[0]

    def to_write(self, seconds: float) -> bool:
        """Whether there is room to write, or an error to notice, within *seconds*, at least 0."""
        if self._poll is None:
            return bool(select.select([], [self._sock], [], seconds)[1])
        self._poll.modify(self._sock.fileno(), select.POLLOUT)
        try:
            return bool(self._poll.poll(seconds * 1000))
        finally:
            self._poll.modify(self._sock.fileno(), select.POLLIN)


def reset_on_close(sock: Any) -> None:
    """Make the coming close an RST: what is still in the kernel's buffer is not sent either."""
    if sock.family != getattr(socket, "AF_UNIX", None):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def tls_context(config: RedisConfig) -> ssl.SSLContext | None:
    """The context to wrap connections with; ``None``: plain."""
    if isinstance(config.tls, bool):
        return _default_context() if config.tls else None
    return config.tls


@lru_cache(1)
def _default_context() -> ssl.SSLContext:
    """Made once: reading the system's certificates takes some 20 ms."""
    return ssl.create_default_context()


def server_hostname(config: RedisConfig) -> str | None:
    """The name that the server's certificate has to carry."""
    return config.host if config.unix_socket is None else None


def ask_password(config: RedisConfig) -> Callable[[], str] | None:
    """The callable to ask for the password; ``None``: there is nothing to ask."""
    return config.password if callable(config.password) else None


def check_password(password: object) -> str:
    """What the callable returned, if it can be sent."""
    if not isinstance(password, str):
        raise TypeError
    password.encode()
    return password


def in_thread(function: Callable[[], T], done: Callable[[T | BaseException], None]) -> None:
    """Run *function*, which may block for long, in a daemon thread, and hand over its outcome.

    Not in an executor: leaving ``asyncio.run``, or the interpreter, waits for those.
    """
    context = contextvars.copy_context()

    def run() -> None:
        outcome: T | BaseException
        try:
            outcome = context.run(function)
        except BaseException as error:  # noqa: BLE001 - handed over, not swallowed
            outcome = error
        done(outcome)

    try:
        threading.Thread(target=run, name="pevensie-dial", daemon=True).start()
    except RuntimeError as error:
        raise OSError(errno.EAGAIN, "no thread could be started") from error


def within(timeout: float, function: Callable[[], T]) -> T:
    """The result of *function*, or :exc:`TimeoutError` after *timeout* seconds."""
    outcomes: queue.SimpleQueue[T | BaseException] = queue.SimpleQueue()
    in_thread(function, outcomes.put)
    try:
        outcome = outcomes.get(timeout=max(0.0, timeout))
    except queue.Empty:
        raise TimeoutError from None
    if isinstance(outcome, BaseException):
        raise outcome
    return outcome


def start_error(error: BaseException, config: RedisConfig) -> StartError:
    """What *error*, raised while dialling, means to the user. One boundary for both shells."""
    milliseconds = round(config.timeout_seconds * 1000)
    transient = True
    if isinstance(error, TimeoutError) and error.errno is None:
        message = (
            f"could not connect within {milliseconds} ms; is the host right, and does a firewall "
            "let this port through?"
        )
    elif isinstance(error, socket.gaierror):
        message = f"could not look up the host name ({error.strerror}); is it spelled right?"
    elif isinstance(error, ssl.SSLCertVerificationError):
        message, transient = f"the certificate does not verify: {error.verify_message}", False
    elif isinstance(error, ssl.SSLError) and error.reason in _NOT_TLS:
        message, transient = "the server does not speak TLS on this port; is tls wrong?", False
    elif isinstance(error, OSError):
        reason = error.strerror or str(error)
        if error.errno and not isinstance(error, ssl.SSLError):
            reason = os.strerror(error.errno)  # asyncio put words of its own there
        message = f"could not connect: {reason}; is a server running there?"
    else:
        message = f"could not connect: {type(error).__name__}"
    return StartError(message, server=config.address, transient=transient)


_NOT_TLS: Final = {"WRONG_VERSION_NUMBER", "UNEXPECTED_MESSAGE", "RECORD_LAYER_FAILURE"}


def handshake_cut(said: str, config: RedisConfig) -> StartError:
    """The server closed the connection, or fell silent, before the handshake was complete."""
    explained = config.tls is not False or "ERR " in said or "DENIED " in said
    hint = "" if explained else "; does it expect TLS?"
    return StartError(f"no handshake: {said}{hint}", server=config.address)


def tls_silence(config: RedisConfig) -> StartError:
    """The server accepted the connection, and did not answer the TLS handshake in time."""
    return StartError(
        f"no answer to the TLS handshake within {round(config.timeout_seconds * 1000)} ms; does "
        "this port speak TLS? If not, tls=False, or redis:// instead of rediss://",
        server=config.address,
    )


def password_error(error: BaseException, config: RedisConfig) -> StartError:
    """The password callable failed. Its own message stays out: it may hold what it must not."""
    return StartError(
        "RedisConfig.password, a callable, must return a str in time; "
        f"it ended in {type(error).__name__}",
        server=config.address,
    )
