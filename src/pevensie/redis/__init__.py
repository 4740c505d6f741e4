"""The Redis-compatible driver for Pevensie Cache.

::

    from pevensie import cache
    from pevensie.redis import RedisConfig, new_cache_driver

    app_cache = cache.new(new_cache_driver(RedisConfig(host="cache.pevensie.dev")))

Works with Valkey, Redis since 6, and whatever speaks like them. Importing this loads no socket, no
asyncio and no hiredis; connecting does.
"""

from typing import TYPE_CHECKING, Any

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

# Configuration and driver
from pevensie.redis.config import RedisConfig, default_config
from pevensie.redis.driver import RedisDriver, new_cache_driver

if TYPE_CHECKING:
    # A private server, for development and tests
    from pevensie.redis._io.embedded import embedded

__all__ = [
    # Configuration and driver
    "RedisConfig",
    "default_config",
    "RedisDriver",
    "new_cache_driver",
    # A private server, for development and tests
    "embedded",
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


def __dir__() -> list[str]:
    return __all__


def __getattr__(name: str) -> Any:
    """``embedded`` loads subprocess and socket, so it is imported when it is used."""
    if name == "embedded":
        from pevensie.redis._io.embedded import embedded

        return embedded
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
