"""Values, TTLs and counters: what goes in is checked here, before anything is sent.

A plain value is the string itself, in UTF-8: any Redis client can read it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Final, TypeAlias

from pevensie.cache._keys import K, KeyEncoder
from pevensie.drivers import MISSING_TTL, NO_TTL
from pevensie.errors import CodecError

TTL: TypeAlias = int | float | timedelta | None
"""A time to live: seconds, a ``timedelta``, or ``None``: never expires."""

MAX_TTL_SECONDS: Final = 100 * 365.25 * 24 * 3600
"""A hundred years. An over-large EXPIRE would fail on the server, and nobody means it."""

FLOAT_ERROR: Final = 2**-51
"""How far, relative to itself, a product of two floats may be from what was meant: the rounding of
the one, of the other, and of the product, at 2**-53 each, and a little."""

MAX_INTEGER: Final = 2**63 - 1
"""Redis counts in 64 signed bits."""


def encode_value(value: str) -> bytes:
    """The bytes of *value*; :exc:`TypeError` or :exc:`ValueError` if it is no proper string."""
    if not isinstance(value, str):
        hint = "value.decode()" if isinstance(value, bytes) else "json.dumps(value), for example"
        raise TypeError(f"value must be a str, got {type(value).__name__}; use {hint}")
    try:
        return str.encode(value)
    except UnicodeEncodeError:
        raise ValueError("value must be valid Unicode: it holds a lone surrogate") from None


def decode_value(value: bytes) -> str:
    """The string that *value* is; :exc:`CodecError` if it is none."""
    try:
        return value.decode()
    except UnicodeDecodeError as error:
        raise CodecError(
            f"the stored value is not UTF-8 (byte {error.start} of {len(value)}); "
            "another program wrote it"
        ) from None


def encode_items(
    encode: KeyEncoder, resource_type: str, items: Mapping[K, str]
) -> list[tuple[bytes, bytes]]:
    """The entries that *items* are for the driver."""
    if not isinstance(items, Mapping):
        raise TypeError(
            f"items must be a mapping of key to value, got {type(items).__name__}; use dict(...)"
        )
    return [(encode(resource_type, key), encode_value(value)) for key, value in items.items()]


def decode_hits(keys: Iterable[K], values: Iterable[bytes | None]) -> dict[K, str]:
    """The values that are there, by key."""
    found = list(zip(keys, values, strict=True))
    try:
        return {key: value.decode() for key, value in found if value is not None}
    except UnicodeDecodeError:
        # Once more, with the proper error.
        return {key: decode_value(value) for key, value in found if value is not None}


def milliseconds(ttl_seconds: TTL) -> int | None:
    """*ttl_seconds* in whole milliseconds, rounded up; ``None``: never expires."""
    if ttl_seconds is None:
        return None
    if type(ttl_seconds) is int and 0 < ttl_seconds <= MAX_TTL_SECONDS:
        return ttl_seconds * 1000
    if isinstance(ttl_seconds, bool) or not isinstance(ttl_seconds, (int, float, timedelta)):
        raise TypeError(
            "ttl_seconds must be a number of seconds, a timedelta or None (never expires), "
            f"got {type(ttl_seconds).__name__}"
        )
    seconds = ttl_seconds.total_seconds() if isinstance(ttl_seconds, timedelta) else ttl_seconds
    if not 0 < seconds <= MAX_TTL_SECONDS:  # also False for NaN
        raise ValueError(
            "ttl_seconds must be more than 0 and at most 100 years, "
            f"got {ttl_seconds}; None: never expires, delete(...): gone now"
        )
    if isinstance(ttl_seconds, timedelta):
        return -(-ttl_seconds // timedelta(milliseconds=1))
    exact = seconds * 1000
    nearest = round(exact)
    if abs(exact - nearest) <= exact * FLOAT_ERROR:  # so that 0.3 is 300 and not 301
        return max(1, nearest)
    return math.ceil(exact)


def seconds_left(ttl: int) -> float | None:
    """What a driver says of a TTL, for the caller: seconds, ``None``: never expires, ``0.0``: not
    there."""
    if ttl == NO_TTL:
        return None
    return 0.0 if ttl == MISSING_TTL else ttl / 1000


def check_delta(delta: int) -> int:
    """*delta*, if a counter can be moved by it."""
    if isinstance(delta, bool) or not isinstance(delta, int):
        raise TypeError(f"delta must be an int, got {type(delta).__name__}")
    if not -MAX_INTEGER - 1 <= delta <= MAX_INTEGER:
        raise ValueError("delta must fit in 64 bits")
    return delta
