"""What may be sent twice, and when a server is dialled again."""

from __future__ import annotations

import pytest

from pevensie.errors import (
    AuthenticationFailed,
    ConnectionLost,
    DeadlineExceeded,
    PoolError,
    RedisError,
    ServerError,
    StartError,
    UnknownResponseError,
)
from pevensie.redis._backoff import (
    FAIL_FAST_AFTER,
    FIRST_PAUSE,
    LONGEST_PAUSE,
    Backoff,
    pause_after_refusal,
)
from pevensie.redis._retry import REFUSALS, Retry, may_resend

READ, OVERWRITE, NEVER = Retry.READ, Retry.OVERWRITE, Retry.NEVER


@pytest.mark.parametrize(
    ("error", "allowed"),
    [
        (ConnectionLost("never sent", sent=False), {READ, OVERWRITE, NEVER}),
        (StartError("refused"), {READ, OVERWRITE, NEVER}),
        (ConnectionLost("closed by the server"), {READ, OVERWRITE}),
        (ConnectionLost("given up", closed_by_server=False), {READ}),
        (StartError("certificate", transient=False), set()),
        (AuthenticationFailed("wrong password"), set()),
        (DeadlineExceeded("too late"), set()),
        (DeadlineExceeded("too late", sent=False), set()),
        (PoolError("no room"), set()),
        (UnknownResponseError("nonsense"), set()),
        (ServerError("no", code="OOM"), set()),
        (ServerError("no", code="MOVED"), set()),
        (ServerError("wait", code="LOADING", refused=False), set()),
        *((ServerError("wait", code=code), {READ, OVERWRITE, NEVER}) for code in REFUSALS),
    ],
)
def test_the_table(error: RedisError, allowed: set[Retry]) -> None:
    assert {retry for retry in Retry if may_resend(retry, error)} == allowed


def test_pauses_grow_up_to_a_limit_and_a_success_ends_them() -> None:
    backoff = Backoff(lambda: 1.0)
    pauses = []
    for n in range(10):
        backoff.failed(StartError("refused"), started=n, now=n)
        pauses.append(backoff.next_dial - n)
    assert pauses[0] == FIRST_PAUSE
    assert pauses == sorted(pauses)
    assert pauses[-1] == LONGEST_PAUSE
    backoff.succeeded()
    assert (backoff.failures, backoff.failure, backoff.next_dial) == (0, None, 0.0)


def test_pauses_are_spread_over_their_whole_length() -> None:
    backoff = Backoff(lambda: 0.0)
    backoff.failed(StartError("refused"), started=5.0, now=5.0)
    assert backoff.next_dial == 5.0


def test_callers_are_refused_at_once_only_after_some_failures_and_until_the_probe() -> None:
    backoff = Backoff(lambda: 1.0)
    for n in range(FAIL_FAST_AFTER):
        assert not backoff.fails_fast(n)
        backoff.failed(StartError("refused"), started=n, now=n)
    now = float(FAIL_FAST_AFTER - 1)
    assert backoff.fails_fast(now)
    assert not backoff.fails_fast(backoff.next_dial)


def test_dials_that_were_under_way_together_are_one_failure() -> None:
    backoff = Backoff(lambda: 1.0)
    for _ in range(10):
        backoff.failed(StartError("refused"), started=1.0, now=2.0)
    assert backoff.failures == 1
    backoff.failed(StartError("refused"), started=2.5, now=3.0)
    assert backoff.failures == 2


def test_a_refusal_is_followed_by_a_longer_pause_each_time() -> None:
    assert 0 < pause_after_refusal(1, lambda: 0.0) < pause_after_refusal(1, lambda: 1.0)
    assert pause_after_refusal(1, lambda: 1.0) < pause_after_refusal(2, lambda: 1.0) < 1
