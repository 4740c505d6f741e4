"""What callers were told, and whether it was true: the oracle of values, and of time.

A value says which key it is of, who wrote it, the how-manieth of that key it is, and carries a
checksum. Whoever reads it checks all that: another key's value, a torn one, or one older than what
was acknowledged before the read began, is *wrong*. Counters are checked at the end: what was
acknowledged <= the counter <= what was acknowledged + what had an unknown outcome.
"""

from __future__ import annotations

import asyncio
import dataclasses
import time
import traceback
import zlib
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

SAMPLES: Final = 20
"""Errors of each kind whose tracebacks are rendered, to look for secrets in."""


@dataclasses.dataclass
class Result:
    """What came of one scenario with one client."""

    scenario: str
    client: str
    server: str
    seed: int
    calls: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    """Values handed out that were not right: must be empty."""
    errors: dict[str, int] = dataclasses.field(default_factory=dict)
    faults: int = 0
    reconnects: int = 0
    executions: int = 0
    """How often the server executed what must be executed once at most."""
    allowed: int = 0
    """How often it may have."""
    over: float = 0.0
    """Seconds by which the slowest call exceeded its deadline; negative: none did."""
    left: list[str] = dataclasses.field(default_factory=list)
    """What was left behind: must be empty."""
    peak: float = 0.0
    """Megabytes of resident memory at most."""
    seconds: float = 0.0
    notes: dict[str, Any] = dataclasses.field(default_factory=dict)


def value_of(key: str, writer: str, sequence: int, size: int = 0) -> str:
    """A value that says what it is; *size*: so many characters at least."""
    text = f"{key}|{writer}|{sequence}|"
    text += "x" * (size - len(text) - 8)
    return f"{text}{zlib.crc32(text.encode()):08x}"


def sequence_of(key: str, value: object) -> int | None:
    """The sequence of a *value* of *key*; ``None``: it is no such thing."""
    if not isinstance(value, str) or len(value) < 9:
        return None
    text, checksum = value[:-8], value[-8:]
    words = text.split("|")
    if checksum != f"{zlib.crc32(text.encode()):08x}" or words[0] != key or len(words) != 4:
        return None
    return int(words[2])


class Ledger:
    """Makes the calls of a scenario on one client, and keeps account."""

    def __init__(self, client: Any, timeout: float) -> None:
        """*timeout*: seconds in which each call must have ended."""
        self.client = client
        self.timeout = timeout
        self.calls = 0
        self.wrong: list[str] = []
        self.errors: Counter[str] = Counter()
        self.slowest = 0.0
        self.said: list[str] = []
        """Tracebacks, with the local variables of each frame."""
        self.samples = SAMPLES
        self.checks = True
        """Values are those that :func:`value_of` makes."""
        self.lossy = False
        """The server may have lost what it had acknowledged: it was restarted."""
        self._sequences: Counter[str] = Counter()
        self._acknowledged: dict[str, int] = {}
        self._unsure: dict[str, set[int]] = {}
        """Writes, by key, that may be executed at any time, or never."""
        self.generation = 0
        """How often the server was emptied."""
        self.counted: Counter[str] = Counter()
        """Increments that were acknowledged, by key."""
        self.unknown: Counter[str] = Counter()
        """Increments of which nobody knows."""

    async def get(self, key: str) -> Any:
        """The value, checked; or an exception, as a result."""
        least, generation = self._acknowledged.get(key, 0), self.generation
        value = await self._timed(self.client.get(key))
        if not isinstance(value, BaseException) and self.checks:
            self._check(key, value, least if generation == self.generation else 0)
        return value

    async def get_many(self, keys: list[str]) -> Any:
        least = [self._acknowledged.get(key, 0) for key in keys]
        generation = self.generation
        values = await self._timed(self.client.get_many(keys))
        if isinstance(values, BaseException):
            return values
        if len(values) != len(keys):
            self.wrong.append(f"{len(values)} values for {len(keys)} keys")
        for key, value, minimum in zip(keys, values, least, strict=False):
            self._check(key, value, minimum if generation == self.generation else 0)
        return values

    async def set(self, key: str, writer: str = "w", size: int = 0) -> Any:
        """Write the next value of *key*, which must have one writer at a time."""
        self._sequences[key] += 1
        sequence, generation = self._sequences[key], self.generation
        self._unsure.setdefault(key, set()).add(sequence)
        outcome = await self._timed(self.client.set(key, value_of(key, writer, sequence, size)))
        if not isinstance(outcome, BaseException):
            self._unsure[key].discard(sequence)
            if generation == self.generation:
                self._acknowledged[key] = sequence
        return outcome

    async def incr(self, key: str) -> Any:
        try:
            total = await self._timed(self.client.incr(key))
        except asyncio.CancelledError:
            self.unknown[key] += 1
            raise
        if isinstance(total, BaseException):
            # What this client says was not sent must not have been executed.
            self.unknown[key] += getattr(total, "sent", True)
        else:
            self.counted[key] += 1
            if not isinstance(total, int) or total < 1:
                self.wrong.append(f"incr {key}: {total!r}")
        return total

    def forget(self) -> None:
        """The server is about to be restarted, empty; or was."""
        self.generation += 1
        self._acknowledged.clear()
        self.counted.clear()
        self.unknown.clear()

    def told(self) -> dict[str, Any]:
        """What another process needs to know: see :meth:`add`."""
        return {
            "calls": self.calls,
            "wrong": self.wrong,
            "errors": self.errors,
            "over": self.slowest - self.timeout,
            "counted": self.counted,
            "unknown": self.unknown,
            "said": self.said,
        }

    def add(self, told: dict[str, Any]) -> None:
        """Take over what another process has told."""
        self.calls += told["calls"]
        self.wrong += told["wrong"]
        self.errors.update(told["errors"])
        self.slowest = max(self.slowest, self.timeout + told["over"])
        self.counted.update(told["counted"])
        self.unknown.update(told["unknown"])
        self.said += told["said"]

    def executed(self, number: Callable[[str], int]) -> tuple[int, int]:
        """How often increments were executed, and may have been. *number*: a counter's value."""
        executions = allowed = 0
        for key in {*self.counted, *self.unknown}:
            total, least = number(key), self.counted[key]
            most = least + self.unknown[key]
            if not least <= total <= most and not self.lossy:
                self.wrong.append(f"counter {key} is {total}, not within {least} and {most}")
            executions += total
            allowed += most
        return executions, allowed

    async def _timed(self, call: Awaitable[Any]) -> Any:
        self.calls += 1
        began = time.monotonic()
        try:
            return await call
        except Exception as error:
            name = type(error).__name__
            self.errors[name] += 1
            if self.errors[name] <= self.samples:
                rendered = traceback.TracebackException.from_exception(error, capture_locals=True)
                self.said.append("".join(rendered.format()))
            return error
        finally:
            self.slowest = max(self.slowest, time.monotonic() - began)

    def _check(self, key: str, value: Any, least: int) -> None:
        if value is None:
            if least and not self.lossy:
                self.wrong.append(f"{key}: nothing, after {least} was acknowledged")
            return
        sequence = sequence_of(key, value)
        if sequence is None:
            self.wrong.append(f"{key}: {value!r:.100}")
        elif sequence < least and sequence not in self._unsure[key] and not self.lossy:
            self.wrong.append(f"{key}: {sequence} after {least} was acknowledged")
        elif sequence > self._sequences[key]:
            self.wrong.append(f"{key}: {sequence} was never written")


async def all_of(calls: Iterable[Awaitable[Any]]) -> list[Any]:
    """The outcomes of *calls*, made at once."""
    return await asyncio.gather(*calls)
