"""The cache for blocking code. Its methods hold no logic: see ``_keys`` and ``_values`` for what
they check, and the driver for what they do."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import perf_counter
from types import TracebackType
from typing import TYPE_CHECKING, TypeVar, overload

from pevensie.cache._keys import K, Key, KeyEncoder, encode_keys
from pevensie.cache._values import (
    TTL,
    check_delta,
    decode_hits,
    decode_value,
    encode_items,
    encode_value,
    milliseconds,
    seconds_left,
)
from pevensie.drivers import Store

if TYPE_CHECKING:
    from pevensie.cache._lifecycle import PevensieCache

D = TypeVar("D")


class Cache:
    """A connected cache, for blocking code. Threads may share it.

    Made by :meth:`PevensieCache.connect` or :meth:`PevensieCache.lazy`. As a context manager it
    disconnects at the end: it refuses new calls, waits for those in flight (at most the driver's
    ``timeout``), and closes.

    Arguments that every method shares:

    - ``resource_type``: what kind of thing the value is: a non-empty string without ``:`` or ``/``.
    - ``key``: which one: a non-empty ``str``, an ``int`` or a ``UUID``.
    - ``ttl_seconds``: seconds to live (``int`` or ``float``, rounded up to a millisecond) or a
      ``timedelta``, more than 0 and at most 100 years; ``None``: never expires.

    What every method raises: :exc:`TypeError` or :exc:`ValueError` for a bad argument, before
    anything is sent; :exc:`NotConnected` after :meth:`disconnect`; what the driver raises
    (for Redis a :exc:`~pevensie.errors.RedisError`) when the server does not do its part within
    the driver's ``timeout``.
    """

    __slots__ = ("__weakref__", "_encode", "_owner", "_store")

    def __init__(self, owner: PevensieCache, store: Store, encode: KeyEncoder) -> None:
        """Not for applications: see :meth:`PevensieCache.connect`."""
        self._owner = owner
        self._store = store
        self._encode = encode

    def __repr__(self) -> str:
        return f"<Cache on {self._store!r}>"

    def set(self, resource_type: str, key: Key, value: str, *, ttl_seconds: TTL = None) -> None:
        """Store *value*, whatever was there before, and its TTL with it.

        One round trip. Redis: ``MULTI, SET, EXPIRE | PEXPIRE | PERSIST, EXEC``, as the seed has
        it, or ``SET … PX`` with ``set_mode="single"``.
        """
        entry = (self._encode(resource_type, key), encode_value(value))
        self._store.set((entry,), milliseconds(ttl_seconds))

    @overload
    def get(self, resource_type: str, key: Key, *, default: None = None) -> str | None: ...
    @overload
    def get(self, resource_type: str, key: Key, *, default: D) -> str | D: ...
    def get(self, resource_type: str, key: Key, *, default: D | None = None) -> str | D | None:
        """The value, or *default* if there is none.

        One round trip. Redis: ``GET``. Raises :exc:`CodecError` if the stored value is not UTF-8.
        """
        value = self._store.get(self._encode(resource_type, key))
        return default if value is None else decode_value(value)

    def delete(self, resource_type: str, key: Key) -> bool:
        """Remove the value; whether there was one.

        One round trip. Redis: ``DEL``. If the connection was lost under it, it is sent again, and
        may then say ``False`` although the first attempt removed the value.
        """
        return self._store.delete((self._encode(resource_type, key),)) == 1

    def get_many(self, resource_type: str, keys: Iterable[K]) -> dict[K, str]:
        """The values of those *keys* that have one, by key, seen at one moment.

        One round trip; none for no keys. Redis: ``MGET``. Raises :exc:`CodecError` if one of them
        is not UTF-8.
        """
        wanted, encoded = encode_keys(self._encode, resource_type, keys)
        return decode_hits(wanted, self._store.get_many(encoded)) if encoded else {}

    def set_many(
        self, resource_type: str, items: Mapping[K, str], *, ttl_seconds: TTL = None
    ) -> None:
        """Store each key and value of *items*, with one TTL for all.

        One round trip; none for no items. Redis: as :meth:`set`, in one transaction.
        """
        entries = encode_items(self._encode, resource_type, items)
        ttl = milliseconds(ttl_seconds)
        if entries:
            self._store.set(entries, ttl)

    def delete_many(self, resource_type: str, keys: Iterable[Key]) -> int:
        """Remove the values of *keys*; how many there were.

        One round trip; none for no keys. Redis: ``DEL``. See :meth:`delete` for lost connections.
        """
        _, encoded = encode_keys(self._encode, resource_type, keys)
        return self._store.delete(list(dict.fromkeys(encoded))) if encoded else 0

    def add(self, resource_type: str, key: Key, value: str, *, ttl_seconds: TTL = None) -> bool:
        """Store *value* if there is none; whether it was stored. Of many callers, one stores.

        One round trip. Redis: ``SET … NX``. Never sent twice: if its outcome is unknown, it
        raises.
        """
        encoded = self._encode(resource_type, key)
        return self._store.add(encoded, encode_value(value), milliseconds(ttl_seconds))

    def increment(
        self, resource_type: str, key: Key, delta: int = 1, *, ttl_seconds: TTL = None
    ) -> int:
        """Add *delta*, 64 signed bits, to a counter that begins at 0; the sum.

        The TTL is set when the counter is created and not moved afterwards: a fixed window. One
        round trip. Redis: ``MULTI, SET … NX, INCRBY, EXEC``; ``INCRBY`` without a TTL. Never sent
        twice: if its outcome is unknown, it raises. Raises :exc:`ServerError` if the value is no
        whole number or would leave 64 bits.
        """
        encoded = self._encode(resource_type, key)
        return self._store.increment(encoded, check_delta(delta), milliseconds(ttl_seconds))

    def contains(self, resource_type: str, key: Key) -> bool:
        """Whether there is a value. One round trip. Redis: ``EXISTS``."""
        return self._store.contains(self._encode(resource_type, key))

    def touch(self, resource_type: str, key: Key, ttl_seconds: TTL) -> bool:
        """Give the value a new TTL; ``False``: there is no value.

        One round trip. Redis: ``EXPIRE | PEXPIRE``, or ``PERSIST`` for ``None``.
        """
        return self._store.touch(self._encode(resource_type, key), milliseconds(ttl_seconds))

    def ttl(self, resource_type: str, key: Key) -> float | None:
        """Seconds left; ``None``: never expires; ``0.0``: there is no value.

        So copying the TTL of a missing key can never make an immortal one. One round trip. Redis:
        ``PTTL``.
        """
        return seconds_left(self._store.ttl(self._encode(resource_type, key)))

    def ping(self) -> float:
        """Ask the server for an answer; the round trip in seconds. For readiness probes."""
        began = perf_counter()
        self._store.ping()
        return perf_counter() - began

    def disconnect(self, *, force: bool = False) -> PevensieCache:
        """Close all connections; the :class:`PevensieCache`, which can be connected again.

        Raises :exc:`ShutdownError` when calls are in flight, and closes nothing; with *force* they
        are ended and raise. Disconnecting twice is fine. The seed's function of this name.
        """
        self._store.close(force=force)
        self._owner._disconnected(self)
        return self._owner

    def __enter__(self) -> Cache:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        try:
            self._store.drain()
        finally:
            self.disconnect(force=True)
