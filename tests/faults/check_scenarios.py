"""The scenarios of :mod:`faults.scenarios` with our clients: what must have come of each.

Each runs in a process of its own, under ``-X dev -W error``. A failure says how to replay it;
``PEVENSIE_FAULT_SEED`` gives all of them the same seed. All are slow: scripts/test runs them on the
main Python only. Longer runs, at random: ``scripts/soak``.
"""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from pathlib import Path

import pytest

import servers
from faults.ledger import Result
from faults.run import CANARY
from pevensie.redis._async.connection import MAX_CALLS
from pevensie.redis._async.line import MAX_WAITING
from pevensie.redis._backoff import FAIL_FAST_AFTER, LONGEST_PAUSE
from pevensie.redis._retry import MAX_ATTEMPTS

pytestmark = [pytest.mark.slow, pytest.mark.timeout(120)]

PROMISED = 0.1
"""Seconds by which a call may exceed its deadline."""

NOISE = 0.5
"""Seconds more for a busy machine with two shared cores, where a process may not run for a while.
The timeouts of the scenarios are such that a call that hangs, or that tries twice, takes longer."""

TESTS = str(Path(__file__).parents[1])


@pytest.fixture(params=list(servers.INSTALL))
def server_label(request: pytest.FixtureRequest) -> str:
    """Which server: Valkey 9, then Redis 7."""
    label: str = request.param
    if servers.find_binary(label) is None:
        servers.missing(label, servers.INSTALL[label])
    return label


def played(scenario: str, colour: str, server: str, *, over: float = PROMISED + NOISE) -> Result:
    """The result of *scenario*, all oracles asked. *over*: seconds beyond the deadline at most."""
    seed = os.environ.get("PEVENSIE_FAULT_SEED") or random.SystemRandom().randrange(2**32)
    words = [scenario, "--client", f"pevensie-{colour}", "--server", server, "--seed", str(seed)]
    command = [sys.executable, "-X", "dev", "-W", "error", "-m", "faults.run", *words]
    print(f"to replay: cd {TESTS} && {' '.join(command)}")
    done = subprocess.run(command, cwd=TESTS, capture_output=True, text=True, timeout=110)
    print(done.stdout, done.stderr)
    assert (done.returncode, done.stderr) == (0, "")
    assert CANARY not in done.stdout
    result = Result(**json.loads(done.stdout))
    assert result.wrong == []
    assert result.left == []
    assert result.over < over
    return result


def test_lost_reply(colour: str, server_label: str) -> None:
    """No wrong value, one reconnect, and right afterwards. Only where the token itself is lost is
    there nothing to notice but silence.
    """
    result = played("lost_reply", colour, server_label)
    assert result.faults > 40
    assert set(result.errors) <= {"DeadlineExceeded", "ConnectionLost", "PoolError"}
    assert result.notes["errors afterwards"] == 0
    if colour == "async":
        assert result.notes["reconnects for one fault"] == 1
        assert result.errors["DeadlineExceeded"] <= 40


def test_cancel_storm(server_label: str) -> None:
    """No wrong value, no reconnect, and the next hundred calls are right."""
    result = played("cancel_storm", "async", server_label)
    assert result.notes["cancelled"] > 500
    assert (result.notes["reconnects"], result.errors) == (0, {})
    assert result.notes["errors afterwards"] == 0


def test_late_reply(colour: str, server_label: str) -> None:
    """Late replies are nobody's, and an idle connection that was killed costs no call."""
    result = played("late_reply", colour, server_label)
    assert result.notes["late"] > 40
    assert result.notes["after the kill"] == "1"


def test_handshake_stall(colour: str, server_label: str) -> None:
    """A connection whose handshake was not answered in time is never used, if it comes round."""
    result = played("handshake_stall", colour, server_label)
    handshake = 6  # AUTH, SELECT, CLIENT, MULTI, EXEC, ECHO
    assert [k for k in result.notes["published"] if k < handshake] == []
    assert result.faults == 8


def test_poison_argument(colour: str, server_label: str) -> None:
    """Exactly one error: of the call that deserves it."""
    result = played("poison_argument", colour, server_label)
    assert result.notes == {"errors at": [25], "reconnects": 0}
    assert result.errors == {"ValueError": 1}


@pytest.mark.parametrize("scenario", ["torn_reply", "torn_reply_tls"])
def test_torn_reply(colour: str, server_label: str, scenario: str) -> None:
    """Right replies or errors, whereever the connection ends; none is invented."""
    result = played(scenario, colour, server_label)
    assert result.notes["cuts"] > 200
    assert set(result.errors) == {"ConnectionLost"}


STUCK = pytest.mark.xfail(
    strict=True, reason="async: bytes that come are taken for a sign of life, for ever"
)


@pytest.mark.parametrize(
    ("scenario", "colour"),
    [
        ("hostile_server", "sync"),
        ("hostile_server", "async"),
        ("unending_reply", "sync"),
        pytest.param("unending_reply", "async", marks=STUCK),
    ],
)
def test_hostile_server(scenario: str, colour: str) -> None:
    """A typed error by the deadline, bounded memory, and the client is usable afterwards."""
    result = played(scenario, colour, "valkey-9")
    assert result.peak < 500
    assert set(result.errors) <= {
        "UnknownResponseError", "ConnectionLost", "DeadlineExceeded", "ServerError",
    }  # fmt: skip
    assert result.notes["not usable after"] == []


def test_fork(colour: str, server_label: str) -> None:
    """Three processes, no wrong value, no error, nothing on stderr."""
    result = played("fork", colour, server_label)
    assert result.notes["processes"] == 3
    assert result.calls > 3000
    assert result.errors == {}


def test_thread_pile(colour: str, server_label: str) -> None:
    result = played("thread_pile", colour, server_label)
    assert result.errors == {}
    assert result.notes["connections"] <= (8 if colour == "sync" else 1)
    assert result.executions == result.allowed == 32 * 6


def test_frozen_server(colour: str, server_label: str) -> None:
    """Every call ends by its deadline; all is well soon after."""
    result = played("frozen_server", colour, server_label)
    assert set(result.errors) <= {"DeadlineExceeded", "PoolError", "StartError", "ConnectionLost"}
    assert result.errors["DeadlineExceeded"] >= 40
    assert result.notes["healthy after"] < LONGEST_PAUSE + NOISE


def test_lost_reply_write(colour: str, server_label: str) -> None:
    """Nothing was executed twice: the ledger has compared each counter with what it knows."""
    result = played("lost_reply_write", colour, server_label)
    assert result.executions <= result.allowed == result.calls
    assert result.notes["executed"] <= result.calls


def test_reconnect_storm(colour: str, server_label: str) -> None:
    """Few dials while the server is away; healthy soon after it is back."""
    result = played("reconnect_storm", colour, server_label)
    assert result.notes["dials per second and process"] < 10
    assert result.notes["healthy after"] < 2.0
    assert result.notes["calls afterwards"] > 500
    assert set(result.errors) <= {"StartError", "ConnectionLost", "DeadlineExceeded"}


def test_not_ready(colour: str, server_label: str) -> None:
    """The right error each, reads work in OOM, no hot loop."""
    result = played("not_ready", colour, server_label)
    fine = "fine"
    assert result.notes["outcomes"] == {
        "ready": [fine, fine, fine],
        "OOM": [fine, "OOM", "OOM"],
        "READONLY": [fine, "READONLY", "READONLY"],
        "MASTERDOWN": ["MASTERDOWN", "READONLY", "READONLY"],
        "MISCONF": [fine, "MISCONF", "MISCONF"],
        "no more clients": ["StartError"],
        "ready again": [fine, fine, fine],
    }
    # A get, a set of four commands, an increment, each with its token; what the oracle asks; dials.
    assert result.notes["most commands"] <= MAX_ATTEMPTS * (2 + 5 + 2) + 10
    assert result.notes["dials while full"] <= 10 + 2 * FAIL_FAST_AFTER  # pool_size, and probes


@pytest.mark.xfail(strict=True, reason="ECHO is refused too: the replies seem out of step")
def test_busy_script(colour: str, server_label: str) -> None:
    """The right error each, and no reconnect."""
    result = played("busy_script", colour, server_label)
    assert result.notes["afterwards"] == "fine"
    assert result.notes["outcomes"] == ["BUSY", "BUSY", "BUSY"]
    assert result.notes["reconnects"] == 0


def test_auth_and_tls(colour: str, server_label: str) -> None:
    """Refused by default, a clear error, no retry loop."""
    result = played("auth_and_tls", colour, server_label)
    assert result.notes["outcomes"] == {
        "a wrong password": ["AuthenticationFailed"],
        "the right password": ["fine"],
        "rights lost": ["NOPERM"],
        "a rotated password": ["AuthenticationFailed"],
        "rotated back": ["fine"],
        "stranger": ["StartError"],
        "wrong-host": ["StartError"],
        "expired": ["StartError"],
        # Of those who wait for the dial that another makes.
        "TLS to a plain port": ["DeadlineExceeded", "StartError"],
    }
    assert max(result.notes["dials"].values()) <= FAIL_FAST_AFTER + 2  # of 10 calls each


def test_memory_wall() -> None:
    """Memory is bounded by MAX_CALLS and MAX_WAITING, and the excess fails fast.

    Thirty thousand tasks that time out in one moment take a loop seconds: that is no call's fault.
    """
    result = played("memory_wall", "async", "valkey-9", over=5.0)
    assert result.notes["megabytes"] < (MAX_CALLS + MAX_WAITING) * 12 / 1024
    assert result.errors["PoolError"] >= result.notes["offered"] - MAX_CALLS - MAX_WAITING - 1


def test_hostile_input(colour: str, server_label: str) -> None:
    """What the server has is what was sent; what cannot be sent is an error without I/O."""
    result = played("hostile_input", colour, server_label)
    assert result.notes == {"illegal": ["ValueError", "ValueError"], "commands sent for them": 0}
