"""What the command line says of an exception: one line, a hint, an exit code.

Never a traceback, and never a URL that was given on the command line: it may hold a password.
(Those in the environment are not quoted by anything that raises.)
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Final

import pevensie

OK: Final = 0
FAILED: Final = 1
MISUSED: Final = 2

SEE_HELP: Final = "see pevensie --help"


class CliError(Exception):
    """A line, a hint, a name for programs to tell it by, and an exit code."""

    def __init__(
        self, message: str, hint: str, *, name: str = "UsageError", code: int = MISUSED
    ) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint
        self.name = name
        self.code = code


def explain(error: Exception) -> CliError:
    """What to say of *error*. Raises it again in Python's development mode if it is a bug."""
    if isinstance(error, CliError):
        return error
    name = type(error).__name__
    if isinstance(error, pevensie.PevensieError):
        message, hint = _failed(error)
        return CliError(message, hint, name=name, code=FAILED)
    if isinstance(error, (ValueError, TypeError)):  # what the library says of a bad argument
        message, _, hint = str(error).partition("; ")
        return CliError(message, hint or SEE_HELP, name=name)
    if sys.flags.dev_mode:
        raise error
    return CliError(
        f"unexpected {name}: {error}",
        "this is a bug, please report it; python -X dev -m pevensie shows where it happens",
        name=name,
        code=FAILED,
    )


def without_urls(text: str, words: Sequence[str]) -> str:
    """*text* without the URLs among *words*, those in a wrong place included."""
    for word in words:
        given = word.partition("=")[2] if word.startswith("-") else word
        if given.partition("://")[2]:
            text = text.replace(given, "***").replace(repr(given)[1:-1], "***")
    return text


def _failed(error: pevensie.PevensieError) -> tuple[str, str]:
    message, _, hint = str(error.args[0]).partition("; ")
    server = error.server if isinstance(error, pevensie.DriverError) else None
    if server is not None:
        message += f" (server: {server})"
    if isinstance(error, pevensie.AuthenticationFailed):
        hint = "give both in the environment: PEVENSIE_URL=redis://user:password@host:port"
    elif isinstance(error, pevensie.StartError):
        if server is None:
            message, hint = _embedded_failed(str(error))
        elif error.transient:
            hint += " Say where it is with --url or PEVENSIE_URL; pevensie serve starts one"
    return " ".join(message.split()), hint.strip() or "look at the server's log"


def _embedded_failed(message: str) -> tuple[str, str]:
    from pevensie.redis._io.embedded import PORT_TAKEN

    if PORT_TAKEN in message:
        return "this port is taken", "choose another with --port, or leave it out"
    first, _, install = message.partition("Install one: ")
    lines = first.strip().splitlines()
    return lines[0].rstrip("."), install or f"its log ends so: {lines[-1].strip()}"
