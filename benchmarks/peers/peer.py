"""What a contestant is: a connected client's calls, and how to compare what they do."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, TypeAlias

HOST: Final = "127.0.0.1"
RESOURCE: Final = "ship"
TTL: Final = 3600


class Calls(NamedTuple):
    """What a connected client can do. A ``set`` has the TTL bound to it already."""

    get: Callable[[Any], Any]
    set: Callable[[Any, Any], Any]
    get_many: Callable[[Any], Any] | None = None


QUEUE: Final = 0
"""In place of a number of tasks: nobody knows how many there will be, so whoever finds no
connection waits for one: libraries with a connection per call get a pool of ``QUEUED``."""

QUEUED: Final = 50

Opener: TypeAlias = Callable[[int, int], AbstractContextManager[Calls]]
AsyncOpener: TypeAlias = Callable[[int, int], AbstractAsyncContextManager[Calls]]
"""From the port, and how many threads or tasks will call at once, or QUEUE."""


def same(value: str) -> Any:
    return value


@dataclass(frozen=True, kw_only=True)
class Peer:
    name: str
    open: Opener | None = None  # None: it has no such colour
    open_async: AsyncOpener | None = None
    module: str = ""  # what a program imports; empty: its import is not timed
    packages: tuple[str, ...] = ()  # whose versions matter
    prefix: str = f"{RESOURCE}:"  # what the caller puts before a key himself
    stored_prefix: str = f"{RESOURCE}:"  # what the server sees before it
    plain: bool = True  # the server holds the bare value; else the value inside something else
    given: Callable[[str], Any] = same  # the value as ``set`` wants it
    got: Callable[[str], Any] = same  # the value as ``get`` returns it
    stored: object = True  # what ``set`` returns
    has_many: bool = True  # it can read many keys in one call
    many: Callable[[list[Any], Iterable[Any]], Any] = lambda _names, values: list(values)
    kind: Literal["ours", "client", "library", "limit"] = "client"
    needs: tuple[int, int] = (3, 11)  # the Python it needs
    command: str = ""  # an executable that measures itself, instead of a library
    note: str = ""  # for the page: its configuration


def by_name(names: list[Any], values: Iterable[Any]) -> dict[Any, Any]:
    return dict(zip(names, values, strict=True))
