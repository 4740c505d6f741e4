"""The blocking store: from a verb to an operation to a connection of the pool.

After a fork the child's store opens connections of its own and closes its copies of the parent's
descriptors, which the parent does not notice.
"""

from __future__ import annotations

import os
import random
import time
import weakref
from collections.abc import Sequence
from typing import Final, TypeVar

from pevensie.errors import RedisError, ServerError
from pevensie.redis import _failures, _ops
from pevensie.redis._backoff import pause_after_refusal
from pevensie.redis._ops import Op
from pevensie.redis._retry import MAX_ATTEMPTS, may_resend
from pevensie.redis._sync.pool import Pool
from pevensie.redis.config import RedisConfig

T = TypeVar("T")


class RedisStore:
    """A :class:`~pevensie.drivers.Store` on a Redis-compatible server."""

    __slots__ = ("__weakref__", "_config", "_pool", "_single", "_timeout")

    def __init__(self, config: RedisConfig) -> None:
        self._config = config
        self._timeout = config.timeout_seconds
        self._single = config.set_mode == "single"
        self._pool = Pool(config)
        _stores.add(self)

    def __repr__(self) -> str:
        return f"<RedisStore {self._pool}>"

    # -- the verbs: see pevensie.drivers.Store ----------------------------------------------

    def get(self, key: bytes) -> bytes | None:
        return self._run(_ops.get(key))

    def get_many(self, keys: Sequence[bytes]) -> list[bytes | None]:
        return self._run(_ops.get_many(keys))

    def set(self, items: Sequence[tuple[bytes, bytes]], ttl: int | None) -> None:
        return self._run(_ops.set_entries(items, ttl, single=self._single))

    def add(self, key: bytes, value: bytes, ttl: int | None) -> bool:
        return self._run(_ops.add(key, value, ttl))

    def delete(self, keys: Sequence[bytes]) -> int:
        return self._run(_ops.delete(keys))

    def increment(self, key: bytes, delta: int, ttl: int | None) -> int:
        return self._run(_ops.increment(key, delta, ttl, single=self._single))

    def touch(self, key: bytes, ttl: int | None) -> bool:
        return self._run(_ops.touch(key, ttl))

    def contains(self, key: bytes) -> bool:
        return self._run(_ops.contains(key))

    def ttl(self, key: bytes) -> int:
        return self._run(_ops.ttl(key))

    def ping(self) -> None:
        return self._run(_ops.ping())

    # -- running an operation ----------------------------------------------------------------

    def _run(self, op: Op[T]) -> T:
        pool = self._pool
        deadline = time.monotonic() + self._timeout
        attempt = 1
        while True:
            try:
                return pool.execute(op, deadline, again=attempt > 1)
            except RedisError as error:
                if error.server is None:
                    error.server = self._config.address
                if attempt == MAX_ATTEMPTS or not may_resend(op.retry, error):
                    raise
                self._before_retry(error, attempt, deadline)
            attempt += 1

    def _before_retry(self, error: RedisError, attempt: int, deadline: float) -> None:
        """Let a refusal pass; after a lost connection, dialling has pauses of its own."""
        if not isinstance(error, ServerError):
            return
        if error.code == "READONLY":
            self._pool.look_up_again()
        pause = pause_after_refusal(attempt, random.random)
        if time.monotonic() + pause >= deadline:
            raise error
        self._pool.pause(pause)

    # -- its life ----------------------------------------------------------------------------

    def start(self) -> None:
        self._pool.start(time.monotonic() + self._timeout)

    def drain(self) -> None:
        self._pool.drain(time.monotonic() + self._timeout)

    def close(self, *, force: bool) -> None:
        if not self._pool.close(force=force):
            raise _failures.in_use(self._config.address)

    def _forked(self) -> None:
        self._pool.forget()


_stores: Final[weakref.WeakSet[RedisStore]] = weakref.WeakSet()


def _after_fork_in_child() -> None:
    for store in list(_stores):
        store._forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork_in_child)
