"""The contract between Pevensie Cache and whatever stores its entries.

A *driver* is a description: settings, no I/O. It opens *stores*, one per colour. A store holds
entries: a key, a value, and either a time to live or none. Keys and values are bytes here; the
cache above turns resource types, keys and text into them, has checked every argument, and owns
all policy. A store owns connections, deadlines, and what may be sent twice.

Rules that every store keeps; ``tests/contract`` checks them for each driver, in both colours:

- **Keys** are non-empty bytes, **values** are bytes, and both come back as they went in.
- **A TTL** is a whole number of milliseconds, at least 1, or ``None``: never expires. An entry
  whose TTL has run out is not there, for every verb. An entry is never seen without its TTL.
- **Each verb ends by its deadline**, which a driver's own settings give, and raises one of the
  exceptions of :mod:`pevensie.errors`, never a foreign one.
- **A wrong reply is worse than none.** A store that is not sure whose a reply is raises.
- **Threads** may share a :class:`Store`; tasks, and threads with event loops of their own, may
  share an :class:`AsyncStore`.
- **Cancelling** an async verb leaves the store usable, for everybody.
- **Stores of one driver see the same entries**, whatever their colour, side by side and one after
  the other.
- **After** :meth:`Store.close`, and from the start of :meth:`Store.drain`, each verb raises
  :exc:`~pevensie.errors.NotConnected` (an async one when it is awaited, if not before).
- **After a fork** the child's stores work, and never touch the parent's connections.

The verbs raise what the driver raises (for Redis: :exc:`~pevensie.errors.RedisError`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Sequence
from typing import Protocol

MISSING_TTL = -2
"""What ``ttl`` returns for a key that is not there, as Redis's PTTL does."""

NO_TTL = -1
"""What ``ttl`` returns for an entry that never expires, as Redis's PTTL does."""


class Store(Protocol):
    """Entries behind blocking calls. Threads may share one."""

    def start(self) -> None:
        """Open what the first verb would open, and check it, so that wrong settings fail here.

        Not required: a verb opens what it needs. One attempt, no retry. Does nothing if something
        is open and fit for use.
        """
        ...

    def get(self, key: bytes) -> bytes | None:
        """The value under *key*; ``None``: there is none."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        """One value or ``None`` for each of *keys* (at least one), in their order, seen at one
        moment. One round trip.
        """
        ...

    def set(self, items: Sequence[tuple[bytes, bytes]], ttl: int | None) -> None:
        """Store each (key, value) of *items* (at least one), whatever was there before.

        *ttl* replaces the TTL that an entry had; ``None`` removes it. One round trip. If a key
        comes twice, the last one counts. Each entry is stored whole or not at all; whether all of
        them are is the driver's to say.
        """
        ...

    def add(self, key: bytes, value: bytes, ttl: int | None) -> bool:
        """Store *value* if *key* is not there; whether it was stored. Among any number of callers
        at once, one stores.
        """
        ...

    def delete(self, keys: Sequence[bytes]) -> int:
        """Remove *keys* (at least one, none twice); how many were there. A key that is not there
        is no error.
        """
        ...

    def increment(self, key: bytes, delta: int, ttl: int | None) -> int:
        """Add *delta* (64 signed bits) to the whole number under *key*, one step; the sum.

        A key that is not there counts as 0 and gets *ttl*; an entry that exists keeps the TTL it
        has. A value that is no whole number, or a sum outside 64 signed bits, raises
        :exc:`~pevensie.errors.ServerError` and changes nothing.
        """
        ...

    def touch(self, key: bytes, ttl: int | None) -> bool:
        """Give an entry a new *ttl*, or none; ``False``: there is no such entry."""
        ...

    def contains(self, key: bytes) -> bool:
        """Whether *key* is there."""
        ...

    def ttl(self, key: bytes) -> int:
        """Milliseconds left; :data:`NO_TTL`, or :data:`MISSING_TTL`."""
        ...

    def ping(self) -> None:
        """Return once the other side has answered."""
        ...

    def drain(self) -> None:
        """Refuse new calls from now on, and wait for those in flight, at most the store's own
        ``timeout``. Never raises on account of what is still in flight.
        """
        ...

    def close(self, *, force: bool) -> None:
        """Close every connection. Closing twice is fine.

        With calls in flight and no *force*: raises :exc:`~pevensie.errors.ShutdownError`, closes
        nothing, and the store stays open. With *force* those calls raise, soon.
        """
        ...


class AsyncStore(Protocol):
    """The same as :class:`Store`, but awaited. One may be used from several event loops.

    The verbs are typed as plain methods that return an awaitable, so that a store may spare a
    coroutine per call.
    """

    def start(self) -> Awaitable[None]:
        """Same as :meth:`Store.start`, but awaited."""
        ...

    def get(self, key: bytes) -> Awaitable[bytes | None]:
        """Same as :meth:`Store.get`, but awaited."""
        ...

    def get_many(self, keys: Sequence[bytes]) -> Awaitable[list[bytes | None]]:
        """Same as :meth:`Store.get_many`, but awaited."""
        ...

    def set(self, items: Sequence[tuple[bytes, bytes]], ttl: int | None) -> Awaitable[None]:
        """Same as :meth:`Store.set`, but awaited."""
        ...

    def add(self, key: bytes, value: bytes, ttl: int | None) -> Awaitable[bool]:
        """Same as :meth:`Store.add`, but awaited."""
        ...

    def delete(self, keys: Sequence[bytes]) -> Awaitable[int]:
        """Same as :meth:`Store.delete`, but awaited."""
        ...

    def increment(self, key: bytes, delta: int, ttl: int | None) -> Awaitable[int]:
        """Same as :meth:`Store.increment`, but awaited."""
        ...

    def touch(self, key: bytes, ttl: int | None) -> Awaitable[bool]:
        """Same as :meth:`Store.touch`, but awaited."""
        ...

    def contains(self, key: bytes) -> Awaitable[bool]:
        """Same as :meth:`Store.contains`, but awaited."""
        ...

    def ttl(self, key: bytes) -> Awaitable[int]:
        """Same as :meth:`Store.ttl`, but awaited."""
        ...

    def ping(self) -> Awaitable[None]:
        """Same as :meth:`Store.ping`, but awaited."""
        ...

    def drain(self) -> Awaitable[None]:
        """Same as :meth:`Store.drain`, but awaited."""
        ...

    def close(self, *, force: bool) -> Awaitable[None]:
        """Same as :meth:`Store.close`, but awaited."""
        ...


class Driver(Protocol):
    """A description of where entries live. Making one does no I/O."""

    @property
    def namespace(self) -> str | None:
        """What the cache puts before every key as ``<namespace>/``; ``None``: nothing."""
        ...

    def open(self) -> Store:
        """A new store for blocking calls. No I/O yet: it opens connections when first used."""
        ...

    def open_async(self) -> AsyncStore:
        """A new store for asyncio. No I/O yet, and no event loop is needed yet."""
        ...
