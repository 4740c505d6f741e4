"""Which drivers the contract suite runs over, and the fixtures that give them to the tests.

A test that takes ``subject`` runs for each driver in both colours, the async one on asyncio and on
uvloop. A test that takes ``async_subject`` is about what only the async colour has, such as
cancelling, and runs for that colour only.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import sys
from collections.abc import AsyncIterator, Callable, Generator, Iterator
from contextlib import AbstractContextManager
from typing import Any

import pytest
from contract_subject import Subject, Variant

import servers
from pevensie import memory
from pevensie.drivers import Driver
from pevensie.redis import new_cache_driver


@contextlib.contextmanager
def memory_driver(request: pytest.FixtureRequest) -> Generator[Driver]:
    yield memory.new_cache_driver()


def on_server(
    label: str, *, unix_socket: bool = False, **fields: Any
) -> Callable[[pytest.FixtureRequest], AbstractContextManager[Driver]]:
    @contextlib.contextmanager
    def redis_driver(request: pytest.FixtureRequest) -> Generator[Driver]:
        server = request.getfixturevalue("shared_servers").get(label)
        config = server.unix_config if unix_socket else server.config
        yield new_cache_driver(dataclasses.replace(config, **fields))

    return redis_driver


# ---- Plug a driver in here -----------------------------------------------------------------------
#
# A name, and a function that gives a working driver for the time of one test. It may ask for
# fixtures by ``request.getfixturevalue("redis_url")``. The server may be shared and need not be
# empty: the tests use keys of their own and remove them.
DRIVERS: dict[str, Callable[[pytest.FixtureRequest], AbstractContextManager[Driver]]] = {
    "memory": memory_driver,
    "valkey-9": on_server("valkey-9"),
    "redis-7": on_server("redis-7"),
    "valkey-9-single": on_server("valkey-9", set_mode="single", integrity_checks=False),
    "redis-7-unix-socket": on_server("redis-7", unix_socket=True),
}
if os.environ.get(servers.TEST_URL):
    DRIVERS = {"memory": memory_driver, "external": on_server("external")}
# --------------------------------------------------------------------------------------------------


def _variants(*, async_only: bool) -> Iterator[Variant]:
    for driver in DRIVERS:
        if not async_only:
            yield Variant(driver, "sync", "asyncio")
        yield Variant(driver, "async", "asyncio")
        if sys.platform != "win32":  # uvloop is not made for it
            yield Variant(driver, "async", "uvloop")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "variant" in metafunc.fixturenames:
        async_only = "async_subject" in metafunc.fixturenames
        variants = list(_variants(async_only=async_only))
        metafunc.parametrize("variant", variants, ids=str, indirect=True)


@pytest.fixture
def variant(request: pytest.FixtureRequest) -> Variant:
    chosen: Variant = request.param
    return chosen


@pytest.fixture
def anyio_backend(variant: Variant) -> tuple[str, dict[str, Any]]:
    return "asyncio", {"use_uvloop": variant.loop == "uvloop"}


@pytest.fixture
async def subject(request: pytest.FixtureRequest, variant: Variant) -> AsyncIterator[Subject]:
    with DRIVERS[variant.driver](request) as driver:
        subject = Subject(driver, variant)
        yield subject
        await subject.clean()


@pytest.fixture
def async_subject(subject: Subject) -> Subject:
    return subject
