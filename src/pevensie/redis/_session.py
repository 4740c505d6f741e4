"""The handshake of a connection, and the tokens that keep replies in step.

Handshake, in one write: ``AUTH`` if asked for, ``SELECT n`` if n is not 0, ``CLIENT SETNAME``,
``MULTI`` and ``EXEC`` where ``set`` will use them, ``ECHO token``. No HELLO: RESP2. Until all of
its replies are there and fine, a connection belongs to nobody.

- Credentials that are refused, or asked for: :exc:`AuthenticationFailed`.
- ``SELECT``, ``MULTI`` or ``EXEC`` refused: :exc:`StartError`, naming the field. (Where MULTI is
  refused, a SET after it would still run, and stay without its TTL.)
- ``CLIENT SETNAME`` refused: ignored; the name is for people.
- ``ECHO`` refused: there is nothing to keep replies in step with; the caller is told.
- A server that is not ready (LOADING, say): :exc:`StartError`, transient.

Tokens: ``ECHO <token>`` goes at the end of what is written, and nothing written before it counts as
answered until the same token comes back in just its place. A token is a random prefix for each
connection and a counter, so no reply can be taken for it.
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import hiredis

from pevensie.errors import AuthenticationFailed, RedisError, StartError, UnknownResponseError
from pevensie.redis._ops import Op
from pevensie.redis._resp import command, server_error, text_of
from pevensie.redis._retry import REFUSALS, Retry
from pevensie.redis.config import RedisConfig


class Tokens:
    """The tokens of one connection, none twice."""

    __slots__ = ("_count", "_echo", "_prefix")

    def __init__(self, prefix: bytes) -> None:
        """*prefix*: 16 bytes that nobody can guess, in hexadecimal."""
        self._prefix = prefix
        self._echo = b"*2\r\n$4\r\nECHO\r\n$26\r\n" + prefix
        self._count = 0

    def next(self) -> bytes:
        """A new token, of 26 bytes."""
        self._count += 1
        return b"%b%010d" % (self._prefix, self._count)

    def sealed(self, data: bytes) -> tuple[bytes, bytes]:
        """A new token, and *data* with the command behind it that brings the token back."""
        self._count = count = self._count + 1
        command = b"%b%b%010d\r\n" % (data, self._echo, count)
        return command[-28:-2], command


def echo(token: bytes) -> bytes:
    """The command that brings *token* back."""
    return b"*2\r\n$4\r\nECHO\r\n$26\r\n%b\r\n" % token


class Greeting(NamedTuple):
    """What a handshake found out."""

    echoes: bool
    """Whether tokens can be used on this connection."""


def handshake(config: RedisConfig, password: str | None, token: bytes) -> Op[Greeting]:
    """The handshake as an operation. Its reader raises what ends the connection."""
    commands: dict[str, bytes] = {}
    if password is not None or config.username is not None:
        user = () if config.username is None else (config.username.encode(),)
        commands["AUTH"] = command(b"AUTH", *user, (password or "").encode())
    if config.database != 0:
        commands["SELECT"] = command(b"SELECT", b"%d" % config.database)
    commands["CLIENT"] = command(b"CLIENT", b"SETNAME", config.client_name.encode())
    if config.set_mode == "expire":
        commands["MULTI"] = command(b"MULTI")
        commands["EXEC"] = command(b"EXEC")
    commands["ECHO"] = echo(token)

    def read(replies: list[Any]) -> Greeting:
        return _read(dict(zip(commands, replies, strict=True)), token, config)

    return Op((b"".join(commands.values()),), len(commands), read, Retry.READ)


_EXPECTED: Final[dict[str, Any]] = {"AUTH": b"OK", "SELECT": b"OK", "MULTI": b"OK", "EXEC": []}


def _read(replies: dict[str, Any], token: bytes, config: RedisConfig) -> Greeting:
    for name, reply in replies.items():
        if isinstance(reply, hiredis.ReplyError):
            failure = _refusal(name, reply, config)
            if failure is not None:
                raise failure
        elif name in _EXPECTED and reply != _EXPECTED[name]:
            raise _nonsense(name)
    echoed = replies["ECHO"]
    if not isinstance(echoed, hiredis.ReplyError) and echoed != token:
        raise _nonsense("ECHO")
    return Greeting(echoes=echoed == token)


def _nonsense(name: str) -> UnknownResponseError:
    return UnknownResponseError(
        f"the reply to {name} during the handshake makes no sense; is this a Redis-compatible "
        "server, and is there no proxy that mixes up replies?"
    )


_FIXES: Final = {
    "SELECT": "database: choose another, or 0",
    "MULTI": 'set_mode: grant MULTI and EXEC, or use set_mode="single"',
    "EXEC": 'set_mode: grant MULTI and EXEC, or use set_mode="single"',
}


def _refusal(name: str, reply: hiredis.ReplyError, config: RedisConfig) -> RedisError | None:
    """What an error in reply to *name* means; None: it does not matter."""
    error = server_error(reply)
    if error.code in REFUSALS or error.code == "BUSY":
        return StartError(f"the server is not ready: {text_of(reply)}")
    if error.code == "NOAUTH":
        return AuthenticationFailed(
            f"the server asks for a password: set {_credentials(config)} in RedisConfig "
            f"({error.args[0]})"
        )
    if name == "AUTH":
        return AuthenticationFailed(
            f"the server refused the {_credentials(config)} of RedisConfig: {_first_words(reply)}"
        )
    if str(reply).startswith(("DENIED", "ERR max number of clients")):
        return StartError(f"the server refuses connections: {_first_words(reply)}")
    if name in _FIXES:
        return StartError(
            f"{name} was refused ({text_of(reply)}); in RedisConfig, see {_FIXES[name]}",
            transient=False,
        )
    return None


def _credentials(config: RedisConfig) -> str:
    return "password" if config.username is None else "username and password"


def _first_words(reply: hiredis.ReplyError) -> str:
    """The first sentence: the rest of what Redis says here is a page of advice."""
    return text_of(reply).partition(". ")[0]
