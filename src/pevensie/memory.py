"""The in-process driver: entries in this process's own memory, no server.

::

    from pevensie import cache
    from pevensie.memory import new_cache_driver

    app_cache = cache.new(new_cache_driver(max_entries=1_000))
    with app_cache.connect() as c:
        c.set("ship", "dawn-treader", "Prince Caspian", ttl_seconds=3600)

For tests, scripts and applications of one process. It keeps the contract of
:mod:`pevensie.drivers` to the letter, so what works here works on Redis; only what is seen across
processes differs.

How it works
============

**Entries belong to the driver object.** The stores that it opens, in either colour, are like
connections to one server: they see the same entries, and closing them loses nothing. Two drivers
share nothing. A child process that was forked has a copy, and the two part from there.

**Layers.** ``_Entries`` holds the entries and knows every rule, for one thread at a time.
``_Store`` adds the lock and the end of life. ``_AsyncStore`` is a ``_Store`` behind coroutines that
never suspend: nothing here waits for anything. (So an endless loop that awaits nothing else keeps
its event loop to itself.)

**The bound.** At most ``max_entries`` entries are held. Over it, an entry that has expired goes
first; only if there is none, the least recently used one. So what has expired never pushes out
what is live. Every verb that finds an entry makes it the most recently used, but ``contains`` and
``ttl``, as in Redis, where EXISTS and PTTL do not count as use.

**Expiry** needs no background thread. A verb that meets an expired entry removes it, and each
entry that is written removes one that has expired, if there is any: while something has expired,
the number of entries does not grow. ``_due`` is a heap of deadlines that finds it. It is a hint:
it may hold pairs that are out of date, or lack one that an interrupted verb did not get to; whether
an entry is there never depends on it.

**Time** is counted in whole microseconds of the clock, so that a TTL never reads as more than was
given, and an entry ends at its deadline exactly.

**One lock for all drivers**, held for the time of one verb: a few dictionary operations for each
key, no I/O, and no foreign code but the clock. Why one: a fork has to wait for it, and with one
lock there is no order of locks to get wrong. Why reentrant: a signal handler or a finalizer may
use a cache while its own thread is in the middle of a verb. What it does there may be overwritten
by the verb that it interrupted, but nothing breaks: the entries are whole between any two steps,
and a key that was there is not trusted to be there still.

**A fork** waits for the verb that is running in another thread, so that the child finds no half of
it; but no longer than ``_FORK_WAIT``, and the child starts with a fresh lock either way: neither
side can hang.
"""

from __future__ import annotations

import heapq
import os
import sys
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

from pevensie.drivers import MISSING_TTL, NO_TTL, AsyncStore, Store
from pevensie.errors import NotConnected, ServerError

__all__ = ["MemoryDriver", "driver_from_url", "new_cache_driver"]

_MAX_ENTRIES = 10_000
"""The default bound: some megabytes of values of a few hundred bytes each."""

_INT64_MIN = -(2**63)
_INT64_MAX = 2**63 - 1

_DUE_SLACK = 64
"""How many pairs ``_due`` may hold beyond two for each entry before it is cleared of old ones: so
many that clearing costs a write a constant on average, also where there are few entries."""

_FORK_WAIT = 1.0
"""Seconds that a fork waits for a verb in another thread. A verb takes microseconds; who holds the
lock for longer is stuck in a finalizer, perhaps on a lock that the forking thread holds."""

_lock = threading.RLock()


if sys.platform != "win32":

    def _before_fork() -> None:
        _lock.acquire(timeout=_FORK_WAIT)

    def _after_fork_in_parent() -> None:
        try:
            _lock.release()
        except RuntimeError:  # not ours: the wait ran out
            pass

    def _after_fork_in_child() -> None:
        # Not released: its owner may not exist here. A fork in the middle of a verb (by a signal
        # handler) leaves that verb with the old lock, which it still owns.
        global _lock
        _lock = threading.RLock()

    os.register_at_fork(
        before=_before_fork,
        after_in_parent=_after_fork_in_parent,
        after_in_child=_after_fork_in_child,
    )


class _Entries:
    """The entries and their rules: the verbs of the contract, for one thread at a time."""

    __slots__ = ("_clock", "_due", "_held", "max_entries")

    max_entries: int
    _clock: Callable[[], float]
    _held: OrderedDict[bytes, tuple[bytes, int | None]]
    """key -> (value, deadline in microseconds of the clock or None); least recently used first."""
    _due: list[tuple[int, bytes]]
    """A heap of (deadline, key): for each entry that has a deadline, and for some that are gone."""

    def __init__(self, max_entries: int, clock: Callable[[], float]) -> None:
        self.max_entries = max_entries
        self._clock = clock
        self._held = OrderedDict()
        self._due = []

    def __len__(self) -> int:
        return len(self._held)

    # The verbs

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        now = self._now()
        return [None if (entry := self._use(key, now)) is None else entry[0] for key in keys]

    def get(self, key: bytes) -> bytes | None:
        entry = self._use(key, self._now())
        return None if entry is None else entry[0]

    def set(self, items: Sequence[tuple[bytes, bytes]], ttl: int | None) -> None:
        now = self._now()
        for key, value in items:
            self._put(key, value, ttl, now)

    def add(self, key: bytes, value: bytes, ttl: int | None) -> bool:
        now = self._now()
        if self._use(key, now) is not None:
            return False
        self._put(key, value, ttl, now)
        return True

    def delete(self, keys: Sequence[bytes]) -> int:
        now = self._now()
        found = 0
        for key in keys:
            if self._find(key, now) is not None:
                self._held.pop(key, None)
                found += 1
        return found

    def increment(self, key: bytes, delta: int, ttl: int | None) -> int:
        now = self._now()
        entry = self._use(key, now)
        result = _sum(b"0" if entry is None else entry[0], delta)
        if entry is None:
            self._put(key, b"%d" % result, ttl, now)
        else:
            self._held[key] = (b"%d" % result, entry[1])
        return result

    def touch(self, key: bytes, ttl: int | None) -> bool:
        now = self._now()
        entry = self._find(key, now)
        if entry is None:
            return False
        self._put(key, entry[0], ttl, now)
        return True

    def contains(self, key: bytes) -> bool:
        return self._find(key, self._now()) is not None

    def ttl(self, key: bytes) -> int:
        now = self._now()
        entry = self._find(key, now)
        if entry is None:
            return MISSING_TTL
        deadline = entry[1]
        # Rounded up: 0 would say that an entry which is there has no time left.
        return NO_TTL if deadline is None else -((now - deadline) // 1000)

    # What they are made of

    def _now(self) -> int:
        return round(self._clock() * 1_000_000)

    def _find(self, key: bytes, now: int) -> tuple[bytes, int | None] | None:
        """The entry, if it is there; one that has expired is removed."""
        entry = self._held.get(key)
        if entry is None:
            return None
        deadline = entry[1]
        if deadline is not None and deadline <= now:
            self._held.pop(key, None)
            return None
        return entry

    def _use(self, key: bytes, now: int) -> tuple[bytes, int | None] | None:
        """As :meth:`_find`, and what is found becomes the most recently used."""
        entry = self._find(key, now)
        if entry is not None:
            self._make_newest(key)
        return entry

    def _put(self, key: bytes, value: bytes, ttl: int | None, now: int) -> None:
        """Store an entry as the most recently used, and keep the bound."""
        deadline = None if ttl is None else now + ttl * 1000
        self._held[key] = (value, deadline)
        self._make_newest(key)
        if deadline is not None:
            heapq.heappush(self._due, (deadline, key))
            if len(self._due) > 2 * len(self._held) + _DUE_SLACK:
                self._clear_due()
        try:
            while not self._drop_expired(now) and len(self._held) > self.max_entries:
                self._held.popitem(last=False)
        except KeyError:  # a signal handler emptied it in this moment
            pass

    def _make_newest(self, key: bytes) -> None:
        try:
            self._held.move_to_end(key)
        except KeyError:  # a signal handler removed it in this moment
            pass

    def _drop_expired(self, now: int) -> bool:
        """Remove one entry that has expired; ``False``: there is none."""
        try:
            while self._due[0][0] <= now:
                pair = heapq.heappop(self._due)
                # Asked again: a signal handler may have taken the one that was looked at.
                if pair[0] <= now and self._is_current(pair):
                    self._held.pop(pair[1], None)
                    return True
        except IndexError:  # none left
            pass
        return False

    def _clear_due(self) -> None:
        """Keep one pair for each entry that has a deadline."""
        due = list({pair for pair in self._due if self._is_current(pair)})
        heapq.heapify(due)
        self._due = due

    def _is_current(self, pair: tuple[int, bytes]) -> bool:
        entry = self._held.get(pair[1])
        return entry is not None and entry[1] == pair[0]


def _sum(value: bytes, delta: int) -> int:
    """*value* plus *delta*, by the rules of Redis's INCRBY and in its words."""
    # Canonical decimals only: int() alone also takes "+1", " 1", "01", "-0" and "1_0". The length
    # comes first, because int() takes long over long values; no 64-bit number has more digits.
    try:
        number = int(value) if len(value) <= 20 else None
    except ValueError:
        number = None
    if (
        number is None
        or b"%d" % number != value
        or not _INT64_MIN <= number <= _INT64_MAX
        or not _INT64_MIN <= delta <= _INT64_MAX
    ):
        raise ServerError("ERR value is not an integer or out of range", code="ERR")
    result = number + delta
    if not _INT64_MIN <= result <= _INT64_MAX:
        raise ServerError("ERR increment or decrement would overflow", code="ERR")
    return result


class _Store:
    """A :class:`~pevensie.drivers.Store` on the entries of a driver. No I/O.

    After ``close`` or ``drain`` each verb raises :exc:`~pevensie.errors.NotConnected`. No call is
    ever in flight for longer than the lock is held, so both of them return at once, and ``close``
    never raises.
    """

    __slots__ = ("_closed", "_entries")

    def __init__(self, entries: _Entries) -> None:
        self._entries = entries
        self._closed = False

    def __repr__(self) -> str:
        state = "closed" if self._closed else "open"
        entries = self._entries
        return f"<memory store: {state}, {len(entries)} of {entries.max_entries} entries>"

    def _opened(self) -> _Entries:
        # Called with the lock held, so that no verb is under way once close has returned.
        if self._closed:
            raise NotConnected(
                "this cache was disconnected; connect again with connect() or connect_async() "
                "(the entries are still there)"
            )
        return self._entries

    def start(self) -> None:
        with _lock:
            self._opened()

    def get(self, key: bytes) -> bytes | None:
        with _lock:
            return self._opened().get(key)

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        with _lock:
            return self._opened().get_many(keys)

    def set(self, items: Sequence[tuple[bytes, bytes]], ttl: int | None) -> None:
        with _lock:
            self._opened().set(items, ttl)

    def add(self, key: bytes, value: bytes, ttl: int | None) -> bool:
        with _lock:
            return self._opened().add(key, value, ttl)

    def delete(self, keys: Sequence[bytes]) -> int:
        with _lock:
            return self._opened().delete(keys)

    def increment(self, key: bytes, delta: int, ttl: int | None) -> int:
        with _lock:
            return self._opened().increment(key, delta, ttl)

    def touch(self, key: bytes, ttl: int | None) -> bool:
        with _lock:
            return self._opened().touch(key, ttl)

    def contains(self, key: bytes) -> bool:
        with _lock:
            return self._opened().contains(key)

    def ttl(self, key: bytes) -> int:
        with _lock:
            return self._opened().ttl(key)

    def ping(self) -> None:
        with _lock:
            self._opened()

    def drain(self) -> None:
        with _lock:
            self._closed = True

    def close(self, *, force: bool) -> None:  # noqa: ARG002 - nothing is ever in flight
        with _lock:
            self._closed = True


class _AsyncStore:
    """A :class:`~pevensie.drivers.AsyncStore`: :class:`_Store` behind coroutines.

    They never suspend, need no event loop, and raise when awaited.
    """

    __slots__ = ("_store",)

    def __init__(self, store: _Store) -> None:
        self._store = store

    def __repr__(self) -> str:
        return f"<async {self._store!r}>"

    async def start(self) -> None:
        self._store.start()

    async def get(self, key: bytes) -> bytes | None:
        return self._store.get(key)

    async def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._store.get_many(keys)

    async def set(self, items: Sequence[tuple[bytes, bytes]], ttl: int | None) -> None:
        self._store.set(items, ttl)

    async def add(self, key: bytes, value: bytes, ttl: int | None) -> bool:
        return self._store.add(key, value, ttl)

    async def delete(self, keys: Sequence[bytes]) -> int:
        return self._store.delete(keys)

    async def increment(self, key: bytes, delta: int, ttl: int | None) -> int:
        return self._store.increment(key, delta, ttl)

    async def touch(self, key: bytes, ttl: int | None) -> bool:
        return self._store.touch(key, ttl)

    async def contains(self, key: bytes) -> bool:
        return self._store.contains(key)

    async def ttl(self, key: bytes) -> int:
        return self._store.ttl(key)

    async def ping(self) -> None:
        self._store.ping()

    async def drain(self) -> None:
        self._store.drain()

    async def close(self, *, force: bool) -> None:
        self._store.close(force=force)


class MemoryDriver:
    """Entries in this process's memory: a :class:`~pevensie.drivers.Driver`.

    The entries live as long as this object does. Every store that it opens sees them, whichever
    its colour, and also after another one was closed.

    Args:
        max_entries: how many entries are held at most, at least 1. Over it the least recently
            used one goes, or one that has expired. Their size is not bounded.
        namespace: what the cache puts before every key as ``<namespace>/``; ``None``: nothing.
            Not empty, and without ``:``.
        clock: seconds as a number that never goes back, for tests. It is called with the lock
            held: it has to be quick, and must not wait for another thread that uses a cache.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: ``max_entries`` is below 1, or ``namespace`` is one that cannot be.
    """

    __slots__ = ("_entries", "_namespace")

    def __init__(
        self,
        *,
        max_entries: int = _MAX_ENTRIES,
        namespace: str | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        _check_max_entries(max_entries)
        _check_namespace(namespace)
        if not callable(clock):
            raise TypeError(
                "clock must be a function that returns seconds, such as time.monotonic, "
                f"not {type(clock).__name__}"
            )
        self._entries = _Entries(max_entries, clock)
        self._namespace = namespace

    @property
    def max_entries(self) -> int:
        """How many entries are held at most."""
        return self._entries.max_entries

    @property
    def namespace(self) -> str | None:
        """What the cache puts before every key as ``<namespace>/``; ``None``: nothing."""
        return self._namespace

    def open(self) -> Store:
        """A new store for blocking calls, on this driver's entries. No I/O."""
        return _Store(self._entries)

    def open_async(self) -> AsyncStore:
        """A new store for asyncio, on this driver's entries. No I/O, and no event loop needed."""
        return _AsyncStore(_Store(self._entries))

    def __repr__(self) -> str:
        return (
            f"<MemoryDriver max_entries={self.max_entries} namespace={self.namespace!r}: "
            f"{len(self._entries)} entries>"
        )


def new_cache_driver(
    *,
    max_entries: int = _MAX_ENTRIES,
    namespace: str | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> MemoryDriver:
    """A driver for Pevensie Cache that keeps its entries in this process's memory. No I/O.

    The arguments, and what is raised, are those of :class:`MemoryDriver`. Each call makes a driver
    of its own, with entries of its own.
    """
    return MemoryDriver(max_entries=max_entries, namespace=namespace, clock=clock)


def driver_from_url(url: str) -> MemoryDriver:
    """The driver that a URL describes: ``memory://``, ``memory://?max_entries=500&namespace=x``.

    No I/O. Each call makes a driver of its own, with entries of its own.

    Raises:
        TypeError: *url* is no ``str``.
        ValueError: it is no such URL; the message names the part that is wrong, and for a
            parameter that does not exist the nearest one that does. Of the URL it quotes no more
            than the name of a parameter: the URL may be another server's, with a password.
    """
    # Not needed to use a cache, and slow to import.
    from urllib.parse import parse_qsl, urlsplit

    # For callers without a type checker.
    if not isinstance(url, str):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(f"the URL must be a str such as 'memory://', not {type(url).__name__}")
    if not url.lower().startswith("memory://"):
        raise ValueError(
            "the URL of an in-process cache must begin with memory://; "
            "write it as memory:// or memory://?max_entries=500"
        )
    try:
        parts = urlsplit(url)
        query = parse_qsl(parts.query, keep_blank_values=True, errors="strict")
    except ValueError:  # also UnicodeDecodeError
        raise ValueError(
            "the memory URL cannot be read; write it as memory:// or memory://?max_entries=500"
        ) from None
    if parts.netloc or parts.path or parts.fragment:
        raise ValueError(
            "a memory URL has no host, path or fragment; "
            "write it as memory:// or memory://?max_entries=500"
        )
    parameters: dict[str, str] = {}
    for name, text in query:
        if name not in _PARAMETERS:
            raise ValueError(_unknown_parameter(name))
        if name in parameters:
            raise ValueError(f"the memory URL has the parameter {name!r} twice; keep one")
        parameters[name] = text
    max_entries = parameters.get("max_entries", str(_MAX_ENTRIES))
    # Stricter than int(), which also takes "1_000" and " 5"; 18 digits are beyond any memory.
    if not (max_entries.isascii() and max_entries.isdigit() and len(max_entries) <= 18):
        raise ValueError("max_entries in the memory URL must be a whole number of at least 1")
    return MemoryDriver(max_entries=int(max_entries), namespace=parameters.get("namespace"))


_PARAMETERS = ("max_entries", "namespace")
"""What a memory URL may set."""


def _unknown_parameter(name: str) -> str:
    from difflib import get_close_matches

    near = get_close_matches(name.lower(), _PARAMETERS, n=1, cutoff=0.4)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"unknown parameter {name!r} in the memory URL; {hint}there are: " + ", ".join(
        _PARAMETERS
    )


def _check_max_entries(value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"max_entries must be an int of at least 1, not {type(value).__name__}")
    if value < 1:
        raise ValueError(f"max_entries must be at least 1, not {value}")


def _check_namespace(value: object) -> None:
    if value is None:
        return
    if not isinstance(value, str):
        raise TypeError(f"namespace must be a str or None, not {type(value).__name__}")
    if not value:
        raise ValueError("namespace must not be empty; use None for no namespace")
    if ":" in value:
        raise ValueError("namespace must not contain ':', which ends the resource type in a key")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError("namespace must be text that UTF-8 can encode") from None
