"""Every exception that Pevensie raises on purpose, in one tree.

::

    PevensieError
    ├── NotConnected              the cache was disconnected
    ├── AlreadyConnected          this colour is open already (async: in this event loop)
    ├── CodecError                a stored value that is not what its reader expects
    └── DriverError               .sent: False: the server provably did not get the command
        └── RedisError
            ├── StartError            (a builtin ConnectionError)  no connection could be opened
            ├── AuthenticationFailed  wrong or missing credentials; never retried
            ├── ConnectionLost        (a builtin ConnectionError)  an open connection went away
            ├── DeadlineExceeded      (a builtin TimeoutError)     no answer within ``timeout``
            ├── PoolError             (a builtin TimeoutError)     no room in time
            ├── ShutdownError         connections in use
            ├── ServerError           .code, e.g. "OOM", "READONLY", "NOPERM", "WRONGTYPE"
            └── UnknownResponseError  the reply makes no sense; that connection is gone

Bad arguments are a builtin ``ValueError`` or ``TypeError``, raised before anything is sent.

A message says what happened, to which server, after how long, and what to do about it. It never
holds a key, a value or a password.
"""

from __future__ import annotations


class PevensieError(Exception):
    """The root: ``except PevensieError`` catches whatever the cache raises on purpose."""


class NotConnected(PevensieError):
    """The cache was used after ``disconnect``."""


class AlreadyConnected(PevensieError):
    """``connect`` on a ``PevensieCache`` whose cache of that colour is open already."""


class CodecError(PevensieError):
    """A stored value is not what its reader expects, say bytes that are not UTF-8.

    The connection is fine, and so is every other key.
    """


class DriverError(PevensieError):
    """A driver could not do what it was asked.

    Attributes:
        sent: ``False`` if the server provably did not get the command, so that sending it again
            cannot make it happen twice.
        server: the server that it happened with, such as ``"localhost:6379"``, where known.
    """

    sent: bool
    server: str | None

    def __init__(self, message: str, *, sent: bool = True, server: str | None = None) -> None:
        super().__init__(message)
        self.sent = sent
        self.server = server

    def __str__(self) -> str:
        message: str = self.args[0]
        return message if self.server is None else f"{message} (server: {self.server})"


class RedisError(DriverError):
    """The root of what the Redis driver raises."""


class StartError(RedisError, ConnectionError):
    """No connection could be opened.

    Attributes:
        transient: whether trying again later may help: a refused connection may, a certificate
            that does not verify will not.
    """

    transient: bool

    def __init__(
        self,
        message: str,
        *,
        sent: bool = False,
        server: str | None = None,
        transient: bool = True,
    ) -> None:
        super().__init__(message, sent=sent, server=server)
        self.transient = transient


class AuthenticationFailed(RedisError):
    """Wrong or missing credentials. Never retried: some servers lock an account out."""

    def __init__(self, message: str, *, sent: bool = False, server: str | None = None) -> None:
        super().__init__(message, sent=sent, server=server)


class ConnectionLost(RedisError, ConnectionError):
    """An open connection went away while the call was using it.

    Attributes:
        closed_by_server: ``True`` if the other side closed it; ``False`` if this side gave it up,
            because it had stopped answering or its replies were out of step.
    """

    closed_by_server: bool

    def __init__(
        self,
        message: str,
        *,
        sent: bool = True,
        server: str | None = None,
        closed_by_server: bool = True,
    ) -> None:
        super().__init__(message, sent=sent, server=server)
        self.closed_by_server = closed_by_server


class DeadlineExceeded(RedisError, TimeoutError):
    """No answer within the configured ``timeout``.

    With ``sent`` true, a command that changes something may or may not have been executed.
    """


class PoolError(RedisError, TimeoutError):
    """No room in time: every connection was busy, or too many calls were waiting already."""

    def __init__(self, message: str, *, sent: bool = False, server: str | None = None) -> None:
        super().__init__(message, sent=sent, server=server)


class ShutdownError(RedisError):
    """``disconnect()`` while calls are in flight. Nothing was closed; ``force=True`` closes."""

    def __init__(self, message: str, *, sent: bool = False, server: str | None = None) -> None:
        super().__init__(message, sent=sent, server=server)


class ServerError(RedisError):
    """The server answered with an error.

    Attributes:
        code: the first word of the server's message, such as ``"OOM"``, ``"READONLY"``,
            ``"NOPERM"``, ``"WRONGTYPE"`` or ``"ERR"``.
        refused: whether the server provably executed nothing of what was asked. ``False`` only
            where several commands travel together and some of them may have been executed.
    """

    code: str
    refused: bool

    def __init__(
        self,
        message: str,
        *,
        code: str = "ERR",
        refused: bool = True,
        sent: bool = True,
        server: str | None = None,
    ) -> None:
        super().__init__(message, sent=sent, server=server)
        self.code = code
        self.refused = refused


class UnknownResponseError(RedisError):
    """The reply makes no sense as an answer to what was asked. That connection is closed."""
