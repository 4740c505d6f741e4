"""Pevensie for Python: the cache for back ends on Redis and Valkey, sync and async.

::

    import pevensie

    app_cache = pevensie.from_url("redis://localhost")
    with app_cache.connect() as c:
        c.set("ship", "dawn-treader", "Prince Caspian", ttl_seconds=3600)

Importing this loads no socket, no asyncio and no hiredis; connecting does.
"""

# The cache
from pevensie.cache import AsyncCache, Cache, PevensieCache

# Errors
from pevensie.errors import (
    AlreadyConnected,
    AuthenticationFailed,
    CodecError,
    ConnectionLost,
    DeadlineExceeded,
    DriverError,
    NotConnected,
    PevensieError,
    PoolError,
    RedisError,
    ServerError,
    ShutdownError,
    StartError,
    UnknownResponseError,
)

__version__ = "0.1.0"

__all__ = [
    # The cache
    "from_url",
    "AsyncCache",
    "Cache",
    "PevensieCache",
    # Errors
    "PevensieError",
    "NotConnected",
    "AlreadyConnected",
    "CodecError",
    "DriverError",
    "RedisError",
    "StartError",
    "AuthenticationFailed",
    "ConnectionLost",
    "DeadlineExceeded",
    "PoolError",
    "ShutdownError",
    "ServerError",
    "UnknownResponseError",
]


def from_url(url: str) -> PevensieCache:
    """A cache, not connected yet, for the server that *url* names. No I/O.

    Args:
        url: ``redis://``, ``rediss://``, ``valkey://``, ``valkeys://`` or ``unix://``, see
            :meth:`pevensie.redis.RedisConfig.from_url`; or ``memory://``: in this process, see
            :mod:`pevensie.memory`.

    Raises:
        ValueError: a malformed URL, or an unknown parameter. The message never shows a password.
    """
    if isinstance(url, str) and url.startswith("memory:"):
        from pevensie.memory import driver_from_url

        return PevensieCache(driver_from_url(url))
    from pevensie.redis import RedisConfig, new_cache_driver

    return PevensieCache(new_cache_driver(RedisConfig.from_url(url)))
