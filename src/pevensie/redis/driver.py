"""The Redis driver: a description of a server that Pevensie Cache can store its entries on."""

from __future__ import annotations

from typing import TYPE_CHECKING

from pevensie.redis.config import RedisConfig

if TYPE_CHECKING:
    from pevensie.redis._async.client import AsyncRedisStore
    from pevensie.redis._sync.client import RedisStore


class RedisDriver:
    """A :class:`~pevensie.drivers.Driver` for one Redis-compatible server. No I/O.

    The shells, and with them hiredis, ssl and asyncio, are imported when a store is opened.
    """

    __slots__ = ("config",)

    config: RedisConfig
    """What it was made from."""

    def __init__(self, config: RedisConfig) -> None:
        self.config = config

    def __repr__(self) -> str:
        return f"RedisDriver({self.config!r})"

    @property
    def namespace(self) -> str | None:
        """See :class:`~pevensie.drivers.Driver`."""
        return self.config.namespace

    def open(self) -> RedisStore:
        """See :class:`~pevensie.drivers.Driver`."""
        from pevensie.redis._sync.client import RedisStore

        return RedisStore(self.config)

    def open_async(self) -> AsyncRedisStore:
        """See :class:`~pevensie.drivers.Driver`."""
        from pevensie.redis._async.client import AsyncRedisStore

        return AsyncRedisStore(self.config)


def new_cache_driver(config: RedisConfig) -> RedisDriver:
    """A driver for Pevensie Cache, for the server that *config* describes.

    No I/O: :meth:`pevensie.cache.PevensieCache.connect` connects. Raises :exc:`TypeError` if
    *config* is no :class:`RedisConfig`. The seed's function of this name.
    """
    if not isinstance(config, RedisConfig):
        raise TypeError(
            f"config must be a RedisConfig, got {type(config).__name__}; "
            "for a URL, use RedisConfig.from_url(...)"
        )
    return RedisDriver(config)
