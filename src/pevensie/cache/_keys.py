"""From a resource type and a key to the one key under which the driver stores the value.

``<resource_type>:<key>``, or ``<namespace>/<resource_type>:<key>``. A resource type holds neither
``:`` nor ``/``, a namespace no ``:``. So the first ``:`` ends the resource type, whatever the key
holds, and the last ``/`` before it ends the namespace: two different triples never become one key,
and nobody reaches another resource type by choosing a clever key. Keys that begin with ``:`` are
Pevensie's own.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Final, TypeAlias, TypeVar, cast
from uuid import UUID

Key: TypeAlias = str | int | UUID
"""What may be a key. ``1`` and ``"1"`` are the same key, as they are in Redis."""

K = TypeVar("K", str, int, UUID, Key)

KeyEncoder: TypeAlias = Callable[[str, Key], bytes]

MAX_REMEMBERED: Final = 1024
"""Resource types whose encoded form is kept. They are few, by their nature; if a program makes
them up as it goes, memory stays bounded."""


def key_encoder(namespace: str | None) -> KeyEncoder:
    """The function that turns (resource type, key) into the driver's key.

    It raises :exc:`TypeError` or :exc:`ValueError`, naming the argument.
    """
    lead = "" if namespace is None else f"{namespace}/"
    prefixes: dict[str, bytes] = {}

    def prefix_of(resource_type: str) -> bytes:
        prefix = _resource_type(resource_type, lead)
        if len(prefixes) >= MAX_REMEMBERED:
            prefixes.clear()
        prefixes[resource_type] = prefix
        return prefix

    def encode(resource_type: str, key: Key) -> bytes:
        try:
            prefix = prefixes[resource_type]
        except (KeyError, TypeError):
            prefix = prefix_of(resource_type)
        if type(key) is str and key.isascii() and key:  # nearly always, so without a call more
            return prefix + key.encode()
        return prefix + _key(key)

    return encode


def encode_keys(
    encode: KeyEncoder, resource_type: str, keys: Iterable[K]
) -> tuple[list[K], list[bytes]]:
    """Each of *keys*, and what it is for the driver, in order."""
    if isinstance(keys, (str, bytes)) or not isinstance(keys, Iterable):
        raise TypeError(f"keys must be a collection of keys, got {type(keys).__name__}; use [key]")
    wanted = list(keys)
    prefix = encode(resource_type, 0)[:-1]
    str_encode = cast(Callable[[object], bytes], str.encode)
    try:  # nearly always strings, so without a call of ours for each
        encoded = [prefix + str_encode(key) for key in wanted]
    except (TypeError, UnicodeEncodeError):
        encoded = []
    if len(encoded) < len(wanted) or prefix in encoded:
        encoded = [encode(resource_type, key) for key in wanted]
    return wanted, encoded


def _resource_type(resource_type: str, lead: str) -> bytes:
    if not isinstance(resource_type, str):
        raise TypeError(f"resource_type must be a str, got {type(resource_type).__name__}")
    resource_type = str.__str__(resource_type)  # of a str enum: the value, however it is shown
    if not resource_type:
        raise ValueError("resource_type must not be empty")
    if ":" in resource_type or "/" in resource_type:
        raise ValueError(
            f"resource_type must not contain ':' or '/', got {resource_type!r}; use '-' or '.'"
        )
    try:
        return f"{lead}{resource_type}:".encode()
    except UnicodeEncodeError:
        raise ValueError("resource_type must be valid Unicode: it holds a lone surrogate") from None


def _key(key: Key) -> bytes:
    if isinstance(key, str):
        try:
            encoded = str.encode(key)
        except UnicodeEncodeError:
            raise ValueError("key must be valid Unicode: it holds a lone surrogate") from None
        if not encoded:
            raise ValueError("key must not be empty")
        return encoded
    if isinstance(key, int) and not isinstance(key, bool):
        return b"%d" % key
    if isinstance(key, UUID):
        return str(key).encode()
    hint = "; use key.decode()" if isinstance(key, bytes) else ""
    raise TypeError(f"key must be a str, int or UUID, got {type(key).__name__}{hint}")
