"""The servers as fixtures. What they can do is in ``servers.py``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

import colours
import fakes
import servers

LABELS = list(servers.INSTALL)


@pytest.fixture
def anyio_backend() -> str:
    return "asyncio"


@pytest.fixture(params=colours.COLOURS)
def colour(request: pytest.FixtureRequest) -> str:
    """``"sync"``, then ``"async"``: what ``colours.connected`` takes."""
    chosen: str = request.param
    return chosen


@pytest.fixture
def fake() -> Iterator[fakes.FakeServer]:
    """A server that answers as the test tells it to."""
    with fakes.FakeServer() as server:
        yield server


@pytest.fixture(scope="session")
def shared_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[servers.SharedServers]:
    """The servers of this run; tests take ``server`` or ``tls_server``."""
    shared = servers.SharedServers(tmp_path_factory.mktemp("tls"))
    yield shared
    shared.close()


@pytest.fixture(params=["external"] if os.environ.get(servers.TEST_URL) else LABELS)
def server(
    request: pytest.FixtureRequest, shared_servers: servers.SharedServers
) -> Iterator[servers.LocalServer | servers.ExternalServer]:
    """An empty server, shared with the other tests: Valkey 9, then Redis 7; or the one at
    ``PEVENSIE_TEST_URL``. A test may change its data and its ACL users, and nothing else.
    """
    shared = shared_servers.get(request.param)
    yield shared
    shared.reset()


@pytest.fixture(params=LABELS)
def fresh_server(request: pytest.FixtureRequest) -> Iterator[servers.LocalServer]:
    """A private server, Valkey 9, then Redis 7, to kill, freeze and configure."""
    with servers.running(request.param) as private:
        yield private


@pytest.fixture
def tls_server(shared_servers: servers.SharedServers) -> Iterator[servers.TlsServer]:
    """An empty Redis 7 behind TLS, shared. A test may choose what it presents and requires."""
    shared = shared_servers.get("tls")
    assert isinstance(shared, servers.TlsServer)
    yield shared
    shared.reset()
