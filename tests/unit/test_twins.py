"""The two colours are the same: names, arguments, types and docstrings."""

from __future__ import annotations

import inspect
import re
import typing

import pytest

from pevensie.cache import AsyncCache, Cache
from pevensie.drivers import AsyncStore, Store
from pevensie.redis._async.client import AsyncRedisStore
from pevensie.redis._sync.client import RedisStore

PUBLIC = [name for name in vars(Cache) if not name.startswith("_")]
VERBS = [name for name in vars(Store) if not name.startswith("_")]


def test_the_same_methods() -> None:
    assert [name for name in vars(AsyncCache) if not name.startswith("_")] == PUBLIC
    assert len(PUBLIC) == 13


@pytest.mark.parametrize("name", PUBLIC)
def test_the_same_signature_and_docstring(name: str) -> None:
    blocking, awaited = getattr(Cache, name), getattr(AsyncCache, name)
    assert inspect.iscoroutinefunction(awaited)
    assert not inspect.iscoroutinefunction(blocking)
    assert inspect.signature(blocking) == inspect.signature(awaited)
    assert blocking.__doc__ == awaited.__doc__
    assert blocking.__doc__


@pytest.mark.parametrize("name", PUBLIC)
def test_the_same_overloads(name: str) -> None:
    signatures = [
        [inspect.signature(overload) for overload in typing.get_overloads(getattr(kind, name))]
        for kind in (Cache, AsyncCache)
    ]
    assert signatures[0] == signatures[1]


@pytest.mark.parametrize("name", PUBLIC)
def test_the_same_lines_but_for_await(name: str) -> None:
    """Twins hold no logic, so nothing can be mended in one and forgotten in the other."""
    blocking, awaited = (inspect.getsource(getattr(kind, name)) for kind in (Cache, AsyncCache))
    bare = re.sub(r"\basync def\b", "def", re.sub(r"\bawait ", "", awaited))
    assert "".join(bare.split()) == "".join(blocking.split())


@pytest.mark.parametrize("kinds", [(Store, AsyncStore), (RedisStore, AsyncRedisStore)])
@pytest.mark.parametrize("name", VERBS)
def test_the_same_verbs_below(kinds: tuple[type, type], name: str) -> None:
    blocking, awaited = (inspect.signature(getattr(kind, name)) for kind in kinds)
    assert blocking.parameters == awaited.parameters
