"""What bad input gets: an error that names the argument and the fix, before anything is sent."""

from __future__ import annotations

import enum
import math
from datetime import timedelta
from fractions import Fraction
from typing import Any
from uuid import UUID

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

import pevensie
from pevensie import PevensieCache, cache, memory
from pevensie.cache._keys import MAX_REMEMBERED, key_encoder
from pevensie.cache._values import milliseconds


class Untouchable:
    """A driver whose stores must not be used."""

    namespace = None

    def open(self) -> Any:
        return self

    def open_async(self) -> Any:
        return self

    def __getattr__(self, name: str) -> Any:
        def call(*_: object) -> None:
            raise AssertionError(f"{name} was called")

        return call


def untouchable() -> tuple[Any, Any]:
    described = PevensieCache(Untouchable())
    return described.lazy(), described.lazy_async()


def refused(method: str, *arguments: Any, **named: Any) -> BaseException:
    """The exception that both colours raise, which must be the same."""
    blocking, awaited = untouchable()
    with pytest.raises((TypeError, ValueError)) as one:
        getattr(blocking, method)(*arguments, **named)
    with pytest.raises((TypeError, ValueError)) as other:
        getattr(awaited, method)(*arguments, **named).send(None)
    assert str(one.value) == str(other.value)
    assert type(one.value) is type(other.value)
    return one.value


BAD_RESOURCE_TYPES = [
    ("", ValueError),
    ("a:b", ValueError),
    ("a/b", ValueError),
    (":", ValueError),
    ("\ud800", ValueError),
    (b"ship", TypeError),
    (None, TypeError),
    (5, TypeError),
    (["ship"], TypeError),
]
BAD_KEYS = [
    ("", ValueError),
    ("\ud800", ValueError),
    (b"x", TypeError),
    (None, TypeError),
    (True, TypeError),
    (1.5, TypeError),
    (("a", "b"), TypeError),
]
BAD_VALUES = [
    ("\ud800", ValueError),
    (b"x", TypeError),
    (None, TypeError),
    (5, TypeError),
    ({"a": 1}, TypeError),
]
BAD_TTLS = [
    (0, ValueError),
    (-1, ValueError),
    (0.0, ValueError),
    (-0.5, ValueError),
    (math.nan, ValueError),
    (math.inf, ValueError),
    (-math.inf, ValueError),
    (101 * 365.25 * 86400, ValueError),
    (10**30, ValueError),
    (timedelta(0), ValueError),
    (timedelta(days=-1), ValueError),
    (timedelta(days=40_000), ValueError),
    (True, TypeError),
    ("60", TypeError),
    (Fraction(1, 2), TypeError),
]


@pytest.mark.parametrize(("resource_type", "kind"), BAD_RESOURCE_TYPES)
def test_resource_type(resource_type: Any, kind: type[Exception]) -> None:
    for method, arguments in [
        ("get", ["k"]),
        ("set", ["k", "v"]),
        ("delete", ["k"]),
        ("get_many", [["k"]]),
        ("set_many", [{"k": "v"}]),
        ("increment", ["k"]),
        ("ttl", ["k"]),
    ]:
        error = refused(method, resource_type, *arguments)
        assert type(error) is kind
        assert "resource_type" in str(error)


@pytest.mark.parametrize(("key", "kind"), BAD_KEYS)
def test_key(key: Any, kind: type[Exception]) -> None:
    for method, arguments in [
        ("get", [key]),
        ("set", [key, "v"]),
        ("delete", [key]),
        ("get_many", [["fine", key]]),
        ("delete_many", [["fine", key]]),
        ("add", [key, "v"]),
        ("increment", [key]),
        ("contains", [key]),
        ("touch", [key, 5]),
        ("ttl", [key]),
    ]:
        error = refused(method, "ship", *arguments)
        assert type(error) is kind
        assert "key" in str(error)


@pytest.mark.parametrize(("value", "kind"), BAD_VALUES)
def test_value(value: Any, kind: type[Exception]) -> None:
    for method, arguments in [
        ("set", ["k", value]),
        ("add", ["k", value]),
        ("set_many", [{"a": "fine", "k": value}]),
    ]:
        error = refused(method, "ship", *arguments)
        assert type(error) is kind
        assert "value" in str(error)


@pytest.mark.parametrize(("ttl", "kind"), BAD_TTLS)
def test_ttl_seconds(ttl: Any, kind: type[Exception]) -> None:
    for method, arguments in [
        ("set", ["k", "v"]),
        ("add", ["k", "v"]),
        ("increment", ["k"]),
        ("set_many", [{}]),
        ("set_many", [{"k": "v"}]),
    ]:
        error = refused(method, "ship", *arguments, ttl_seconds=ttl)
        assert type(error) is kind
        assert "ttl_seconds" in str(error)
    assert type(refused("touch", "ship", "k", ttl)) is kind


@pytest.mark.parametrize("keys", ["abc", b"abc", 5, None])
def test_keys_must_be_a_collection(keys: Any) -> None:
    assert "keys" in str(refused("get_many", "ship", keys))
    assert "keys" in str(refused("delete_many", "ship", keys))


@pytest.mark.parametrize("items", [["k"], "k", 5, None, [("k", "v")]])
def test_items_must_be_a_mapping(items: Any) -> None:
    assert "items" in str(refused("set_many", "ship", items))


@pytest.mark.parametrize("delta", [True, 1.0, "1", None, 2**63, -(2**63) - 1])
def test_delta(delta: Any) -> None:
    assert "delta" in str(refused("increment", "ship", "k", delta))


@pytest.mark.parametrize("driver", [None, "redis://x", pevensie.redis.RedisConfig()])
def test_driver(driver: Any) -> None:
    with pytest.raises(TypeError, match="new_cache_driver"):
        cache.new(driver)


def test_new_cache_driver_wants_a_config() -> None:
    with pytest.raises(TypeError, match="from_url"):
        pevensie.redis.new_cache_driver("redis://x")  # type: ignore[arg-type]


# -- what is right -------------------------------------------------------------------------------


def test_keys_of_each_kind() -> None:
    encode = key_encoder(None)
    uuid = UUID("12345678123456781234567812345678")

    class Colour(enum.StrEnum):
        RED = "red"

    class Old(str, enum.Enum):  # noqa: UP042 - the way before StrEnum, which shows as Old.SHIP
        SHIP = "ship"

    class Number(enum.IntEnum):
        ONE = 1

    assert encode("ship", "a:b/c") == b"ship:a:b/c"
    assert encode("ship", 7) == encode("ship", "7") == b"ship:7"
    assert encode("ship", -7) == b"ship:-7"
    assert encode("ship", uuid) == b"ship:12345678-1234-5678-1234-567812345678"
    assert encode("ship", Colour.RED) == b"ship:red"
    assert encode("ship", Number.ONE) == b"ship:1"
    assert encode(Colour.RED, "x") == b"red:x"
    assert encode(Old.SHIP, Old.SHIP) == encode("ship", "ship") == b"ship:ship"
    assert encode("schiff ☃", "ключ") == "schiff ☃:ключ".encode()


words = st.text(st.characters(codec="utf-8"), min_size=1)
namespaces = st.none() | words.filter(lambda word: ":" not in word)
resource_types = words.filter(lambda word: not set(":/") & set(word))


@given(st.tuples(namespaces, resource_types, words), st.tuples(namespaces, resource_types, words))
@example((None, "a", "b"), ("a", "b", "c"))
@example(("a/b", "c", "d"), ("a", "b", "c/d"))
def test_different_places_are_different_keys(one: Any, other: Any) -> None:
    (namespace, resource_type, key), (namespace2, resource_type2, key2) = one, other
    encoded = key_encoder(namespace)(resource_type, key)
    assert (encoded == key_encoder(namespace2)(resource_type2, key2)) == (one == other)
    assert not encoded.startswith(b":")


def test_resource_types_made_up_as_one_goes_do_not_pile_up() -> None:
    encode = key_encoder("ns")
    for n in range(3 * MAX_REMEMBERED):
        assert encode(f"type{n}", "k") == b"ns/type%d:k" % n
    remembered = next(
        cell.cell_contents
        for cell in encode.__closure__ or ()  # type: ignore[attr-defined]
        if isinstance(cell.cell_contents, dict)
    )
    assert len(remembered) <= MAX_REMEMBERED


@given(st.integers(1, 100 * 365 * 86400))
def test_whole_seconds_stay_whole(seconds: int) -> None:
    assert milliseconds(seconds) == milliseconds(timedelta(seconds=seconds)) == seconds * 1000
    assert milliseconds(float(seconds)) == seconds * 1000


@given(st.integers(1, 3_000_000_000_000))
@example(8_413_564_697)
def test_milliseconds_stay_what_they_are(number: int) -> None:
    assert milliseconds(timedelta(milliseconds=number)) == number
    assert milliseconds(number / 1000) == number


@given(st.floats(1e-9, 1e9))
def test_a_part_of_a_millisecond_is_rounded_up(seconds: float) -> None:
    rounded = milliseconds(seconds)
    assert rounded is not None
    assert rounded >= 1
    assert seconds * 1000 * (1 - 1e-15) <= rounded < seconds * 1000 * (1 + 1e-15) + 1


def test_of_a_mapping_whose_keys_are_the_same_key_the_last_counts() -> None:
    with PevensieCache(memory.new_cache_driver()).connect() as c:
        c.set_many("ship", {1: "one", "1": "two"})  # type: ignore[dict-item]
        assert c.get("ship", 1) == "two"
        assert c.get_many("ship", [1, "1", 1]) == {1: "two", "1": "two"}
        assert c.delete_many("ship", [1, "1"]) == 1
