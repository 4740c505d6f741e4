"""What ``pevensie demo`` does, without how it is shown.

Every step is a line and what has to come back. **The line that is shown is the line that runs**:
Python is evaluated as it stands, and a line that begins with ``redis-cli`` is sent as it stands,
over a connection of its own that knows nothing of the cache's keys. So nothing is claimed that did
not happen. All lines are constants of this module; nothing from outside is evaluated.

On somebody's server (``--url``) it keeps to a namespace of its own, asks for no keys but its own,
and removes them. Should it be killed, a TTL of a minute does.
"""

from __future__ import annotations

import ast
import asyncio
import dataclasses
import secrets
import time
from collections.abc import Iterable, Iterator
from inspect import isawaitable
from typing import Any, Final, NamedTuple, TypeAlias

import hiredis

import pevensie
from pevensie import cache
from pevensie.cache import PevensieCache
from pevensie.redis import RedisConfig, new_cache_driver
from pevensie.redis._ops import Op
from pevensie.redis._resp import command, server_error
from pevensie.redis._retry import Retry
from pevensie.redis._sync.dial import dial

RATE_SECONDS: Final = 0.5
"""How long each throughput figure is measured."""

TASKS: Final = 200


class Step(NamedTuple):
    """One line, what came back, and whether that is what had to."""

    line: str
    result: str
    held: bool
    per_second: int | None = None
    """A throughput figure, if it is one."""


class Section(NamedTuple):
    """Steps that belong together."""

    title: str
    steps: list[Step]


Expected: TypeAlias = object
"""A value, which has to be equal and of the same type; or a predicate."""


def _about_a_minute(seconds: object) -> bool:
    return isinstance(seconds, float) and 50 < seconds <= 60


def _about_a_minute_of_ms(milliseconds: object) -> bool:
    return isinstance(milliseconds, int) and 50_000 < milliseconds <= 60_000


# {ns} is what comes before every key: nothing on a private server.
_SYNC: Final[tuple[tuple[str, Expected], ...]] = (
    ('c.set("ship", "dawn-treader", "Lucy", ttl_seconds=60)', None),
    ('c.get("ship", "dawn-treader")', "Lucy"),
    ("redis-cli KEYS *", [b"ship:dawn-treader"]),
    ("redis-cli GET {ns}ship:dawn-treader", b"Lucy"),
    ("redis-cli PTTL {ns}ship:dawn-treader", _about_a_minute_of_ms),
    ('c.set("tea", "tumnus", "hot", ttl_seconds=0.5)', None),
    ('c.get("tea", "tumnus")', "hot"),
    ("time.sleep(0.6)", None),
    ('c.get("tea", "tumnus")  # its time is over', None),
    ("redis-cli PTTL {ns}tea:tumnus", -2),
    ('c.delete("ship", "dawn-treader")  # there was one', True),
    ('c.delete("ship", "dawn-treader")', False),
    ("redis-cli EXISTS {ns}ship:dawn-treader", 0),
)

_ASYNC: Final[tuple[tuple[str, Expected], ...]] = (
    ('await c.set("ship", "dawn-treader", "Lucy", ttl_seconds=60)', None),
    ('await c.get("ship", "dawn-treader")', "Lucy"),
    ('await c.ttl("ship", "dawn-treader")', _about_a_minute),
    ('await c.set("tea", "tumnus", "hot", ttl_seconds=0.5)', None),
    ('await c.get("tea", "tumnus")', "hot"),
    ("await asyncio.sleep(0.6)", None),
    ('await c.get("tea", "tumnus")  # its time is over', None),
    ('await c.delete("ship", "dawn-treader")  # there was one', True),
    ("redis-cli EXISTS {ns}ship:dawn-treader", 0),
)


def run(config: RedisConfig, *, private: bool) -> Iterator[Section]:
    """Do it all on the server that *config* describes; each section when it is done.

    *private*: the server was started for this demo. A step that fails is a step with ``held``
    false; what connecting raises is raised.
    """
    if private:
        namespace, url = None, f"redis://{config.address}"
        app_cache = pevensie.from_url(url)
        line = f'app_cache = pevensie.from_url("{url}")'
    else:
        inside = "" if config.namespace is None else f"{config.namespace}/"
        namespace = f"{inside}pevensie-demo-{secrets.token_hex(3)}"
        app_cache = cache.new(
            new_cache_driver(dataclasses.replace(config, namespace=namespace)),
        )
        line = "app_cache = cache.new(new_cache_driver(config))"
    redis_cli = RedisCli(config, "" if namespace is None else f"{namespace}/", private=private)
    try:
        yield Section(redis_cli.describe(), [Step(line, "not connected", True)])
        yield Section("with app_cache.connect() as c:", _sync_steps(app_cache, redis_cli))
        yield Section(
            "async with app_cache.connect_async() as c:",
            asyncio.run(_async_steps(app_cache, redis_cli)),
        )
        where = "client and server on this machine" if private else "from this machine"
        yield Section(
            f"How fast, just now, {where}",
            [_sync_rate(app_cache), asyncio.run(_async_rate(app_cache))],
        )
    finally:
        redis_cli.clean_up()


class RedisCli:
    """Asks the server itself, past the cache, as ``redis-cli`` would."""

    def __init__(self, config: RedisConfig, prefix: str, *, private: bool) -> None:
        self._config = config
        self._prefix = prefix
        self._private = private
        self._connection = dial(config, self._deadline())

    def describe(self) -> str:
        """The server, for people."""
        where = f"at {self._config.address}"
        try:
            lines = self.ask("INFO", "server").decode().splitlines()
        except pevensie.ServerError:  # an ACL does not let us know
            return f"The server {where}"
        info = dict(line.split(":", 1) for line in lines if ":" in line)
        name = info.get("server_name", "redis")
        version = info.get(f"{name}_version", "")
        whose = ", started for this demo" if self._private else ""
        return f"{name.capitalize()} {version} {where}{whose}"

    def lines(self, script: Iterable[tuple[str, Expected]]) -> Iterator[tuple[str, Expected]]:
        """*script* for this server. Nobody asks somebody's server for all its keys."""
        for line, expected in script:
            if self._private or not line.startswith("redis-cli KEYS"):
                yield line.replace("{ns}", self._prefix), expected

    def ask(self, *words: str) -> Any:
        """The reply to one command; an error reply raises :exc:`pevensie.ServerError`."""
        data = command(*(word.encode() for word in words))
        return self._connection.execute(Op((data,), 1, _plain, Retry.NEVER), self._deadline())

    def clean_up(self) -> None:
        """Remove what this demo stored, and hang up."""
        try:
            self.ask("DEL", f"{self._prefix}ship:dawn-treader", f"{self._prefix}tea:tumnus")
        except pevensie.RedisError:
            pass  # their TTLs will do it
        finally:
            self._connection.close()

    def _deadline(self) -> float:
        return time.monotonic() + self._config.timeout_seconds


def _plain(reply: Any) -> Any:
    if isinstance(reply, hiredis.ReplyError):
        raise server_error(reply)
    return reply


def _sync_steps(app_cache: PevensieCache, redis_cli: RedisCli) -> list[Step]:
    with app_cache.connect() as c:
        steps = []
        for line, expected in redis_cli.lines(_SYNC):
            try:
                result = _evaluate(line, redis_cli, {"c": c, "time": time})
            except Exception as error:  # noqa: BLE001 - it is what came back
                result = error
            steps.append(_step(line, expected, result))
        return steps


async def _async_steps(app_cache: PevensieCache, redis_cli: RedisCli) -> list[Step]:
    async with app_cache.connect_async() as c:
        steps = []
        for line, expected in redis_cli.lines(_ASYNC):
            try:
                result = _evaluate(line, redis_cli, {"c": c, "asyncio": asyncio})
                if isawaitable(result):
                    result = await result
            except Exception as error:  # noqa: BLE001 - it is what came back
                result = error
            steps.append(_step(line, expected, result))
        return steps


def _evaluate(line: str, redis_cli: RedisCli, names: dict[str, object]) -> Any:
    """What *line* gives; for one with ``await`` in it, something to await."""
    if line.startswith("redis-cli "):
        return redis_cli.ask(*line.split()[1:])
    code = compile(line, "<demo>", "eval", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
    return eval(code, names)  # noqa: S307 - a constant of this module


def _step(line: str, expected: Expected, result: object) -> Step:
    show = _as_redis_cli if line.startswith("redis-cli ") else repr
    if isinstance(result, Exception):
        shown = " ".join(f"{type(result).__name__}: {result}".split())
    else:
        shown = show(result)
    if callable(expected):
        return Step(line, shown, bool(expected(result)))
    if type(result) is type(expected) and result == expected:
        return Step(line, shown, True)
    return Step(line, f"{shown}, not {show(expected)}", False)


def _as_redis_cli(reply: object) -> str:
    """*reply* as redis-cli writes it into a pipe, on one line."""
    if isinstance(reply, bytes):
        return reply.decode(errors="backslashreplace")
    if isinstance(reply, list):
        return " ".join(map(_as_redis_cli, reply))
    return "" if reply is None else str(reply)


def _sync_rate(app_cache: PevensieCache) -> Step:
    with app_cache.connect() as c:
        c.set("ship", "dawn-treader", "Lucy", ttl_seconds=60)
        right = wrong = 0
        began = time.perf_counter()
        until = began + RATE_SECONDS
        while time.perf_counter() < until:
            if c.get("ship", "dawn-treader") == "Lucy":
                right += 1
            else:
                wrong += 1
        return _rate('c.get("ship", "dawn-treader")  # 1 thread', right, wrong, began)


async def _async_rate(app_cache: PevensieCache) -> Step:
    async with app_cache.connect_async() as c:
        await c.set("ship", "dawn-treader", "Lucy", ttl_seconds=60)
        right = wrong = 0
        began = time.perf_counter()
        until = began + RATE_SECONDS

        async def read_and_read() -> None:
            nonlocal right, wrong
            while time.perf_counter() < until:
                if await c.get("ship", "dawn-treader") == "Lucy":
                    right += 1
                else:
                    wrong += 1

        await asyncio.gather(*(read_and_read() for _ in range(TASKS)))
        line = f'await c.get("ship", "dawn-treader")  # {TASKS} tasks, 1 socket'
        return _rate(line, right, wrong, began)


def _rate(line: str, right: int, wrong: int, began: float) -> Step:
    per_second = round(right / (time.perf_counter() - began))
    text = f"{per_second:,}/s" + (f"; {wrong:,} wrong" if wrong else "")
    return Step(line, text, right > 0 and not wrong, per_second)
