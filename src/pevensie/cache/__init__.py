"""Pevensie Cache: what applications call.

::

    from pevensie import cache
    from pevensie.redis import RedisConfig, new_cache_driver

    app_cache = cache.new(new_cache_driver(RedisConfig(host="cache.pevensie.dev")))

    with app_cache.connect() as c:
        c.set("ship", "dawn-treader", "Prince Caspian", ttl_seconds=3600)
        c.get("ship", "dawn-treader")

A :class:`PevensieCache` is not connected, so it has no ``get``: type checkers refuse to use it too
early. :meth:`~PevensieCache.connect` gives a :class:`Cache`, :meth:`~PevensieCache.connect_async`
an :class:`AsyncCache`.
"""

from pevensie.cache._async import AsyncCache
from pevensie.cache._lifecycle import PevensieCache
from pevensie.cache._sync import Cache
from pevensie.drivers import Driver

__all__ = ["AsyncCache", "Cache", "PevensieCache", "new"]


def new(driver: Driver) -> PevensieCache:
    """A cache on *driver*, not connected yet. No I/O. The seed's function of this name.

    Args:
        driver: from :func:`pevensie.redis.new_cache_driver` or
            :func:`pevensie.memory.new_cache_driver`.

    Raises:
        TypeError: *driver* is no driver (a ``RedisConfig``, say).
    """
    if not (hasattr(driver, "open") and hasattr(driver, "open_async")):
        raise TypeError(
            f"driver must be a driver, got {type(driver).__name__}; "
            "make one with new_cache_driver(...) of pevensie.redis or pevensie.memory"
        )
    return PevensieCache(driver)
