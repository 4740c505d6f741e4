"""The referee: starts the server and the contestants, lets them take turns, checks, reports."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import random
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import pevensie.redis
import redis
from benchmarks.load import KEYS, Turn, Workload, WrongValue, measure
from benchmarks.peers import HOST, OURS, PEERS, REDIS_PY, RESOURCE, TTL, UNTIMED, Peer

WORKLOADS: Final = [
    *(Workload("sync", verb, width) for verb in ("GET", "SET") for width in (1, 32)),
    *(Workload("async", verb, width) for verb in ("GET", "SET") for width in (1, 50, 200)),
]
IMPORT: Final = "import, CPU time"
BARE: Final = "(bare interpreter)"
MET, MISSED = "✓", "✗ missed"


class Target(NamedTuple):
    ratio: float  # our median divided by the peer's
    at_most: bool = False

    def met(self, ratio: float) -> bool:
        return ratio <= self.ratio if self.at_most else ratio >= self.ratio

    def __str__(self) -> str:
        return f"at {'most' if self.at_most else 'least'} {self.ratio:g} x"


TARGETS: Final = {
    ("async GET, 200 tasks", REDIS_PY.name): Target(10),
    ("async GET, 1 task", REDIS_PY.name): Target(1.15),
    ("async SET, 200 tasks", REDIS_PY.name): Target(8),
    ("sync GET, 1 thread", REDIS_PY.name): Target(1.5),
    ("sync SET, 1 thread", REDIS_PY.name): Target(1.3),
    (IMPORT, REDIS_PY.name): Target(0.4, at_most=True),
}
"""The figures to reach, at the defaults and, for tasks, with the standard library's asyncio."""


@dataclass
class Result:
    """One workload: what each contestant reached in each round."""

    workload: str
    unit: str
    figures: dict[str, list[float]] = field(default_factory=dict)
    cpu_us: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, peer: str) -> float:
        return median(self.figures[OURS.name]) / median(self.figures[peer])

    def ratios(self, peer: str) -> list[float]:
        pairs = zip(self.figures[OURS.name], self.figures[peer], strict=True)
        return [ours / theirs for ours, theirs in pairs]

    def shown(self, name: str) -> str:
        low, middle, high = (each(self.figures[name]) for each in (min, median, max))
        return f"{middle:6.1f} {self.unit} ({low:.1f}-{high:.1f})"


def main() -> int:
    options = _options()
    began = time.perf_counter()
    peers = [OURS, *(PEERS[name] for name in options.peers)]
    with pevensie.redis.embedded() as config:
        facts = _facts(peers, config.port, uvloop=options.uvloop)
        print("\n".join(f"{name}: {fact}" for name, fact in facts.items()), flush=True)
        try:
            results = _play(peers, config.port, options)
        except WrongValue as error:
            print(f"void: {error}", file=sys.stderr)
            return 2
    results.append(_imports(peers, runs=7 if options.quick else 15))
    targets = {
        key: target
        for key, target in TARGETS.items()
        if not (options.uvloop and key[0].startswith("async"))
    }
    rows = list(_rows(results, targets))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    print("", *("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows), sep="\n")
    verdicts = [row[-1] for row in rows[1:] if row[-1]]
    missed = sum(MISSED in verdict for verdict in verdicts)
    print(f"\n{time.perf_counter() - began:.0f} s; targets missed: {missed} of {len(verdicts)}")
    if options.json:
        record = {"facts": facts, "results": [asdict(result) for result in results]}
        options.json.write_text(json.dumps(record, indent=1) + "\n")
    return 1 if missed and options.check else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    peers = [name for name in PEERS if name != OURS.name]
    parser.add_argument("--quick", action="store_true", help="about 20 s, noisy; one peer")
    parser.add_argument("--uvloop", action="store_true", help="tasks run on uvloop")
    parser.add_argument(
        "--peers", nargs="+", choices=peers, metavar="NAME", help=f"of {', '.join(peers)}"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a target is missed")
    options = parser.parse_args()
    if options.uvloop and importlib.util.find_spec("uvloop") is None:
        parser.error(f"uvloop is not here: {sys.executable} -m pip install uvloop")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.parent}")
    wanted = options.peers or ([REDIS_PY.name] if options.quick else peers)
    options.peers = list(dict.fromkeys(wanted))
    return options


def _rows(
    results: list[Result], targets: dict[tuple[str, str], Target]
) -> Iterator[tuple[str, ...]]:
    yield "", OURS.name, "against", "", "ratio", "target"
    for result in results:
        head = (result.workload, result.shown(OURS.name))
        for peer in list(result.figures)[1:]:  # ours is the first
            ratio, spread = result.ratio(peer), result.ratios(peer)
            target = targets.get((result.workload, peer))
            verdict = f"{target} {MET if target.met(ratio) else MISSED}" if target else ""
            shown = f"{ratio:5.2f} x ({min(spread):.2f}-{max(spread):.2f})"
            yield *head, peer, result.shown(peer), shown, verdict
            head = ("", "")


# -- taking turns --------------------------------------------------------------------------------


def _play(peers: list[Peer], port: int, options: argparse.Namespace) -> list[Result]:
    rounds, warm_up, seconds = (3, 0.06, 0.15) if options.quick else (7, 0.1, 0.22)
    names = [peer.name for peer in peers]
    results = {
        workload: Result(
            str(workload), "k/s", {name: [] for name in names}, {name: [] for name in names}
        )
        for workload in WORKLOADS
    }
    with redis.Redis(host=HOST, port=port, decode_responses=True) as referee:
        for number in range(rounds):
            with ExitStack() as stack:
                context = get_context("spawn")
                process = {
                    name: stack.enter_context(ProcessPoolExecutor(1, mp_context=context))
                    for name in names
                }
                # Shuffled, as what ran before in a process leaves its mark: up to 20 %.
                for workload in random.Random(number).sample(WORKLOADS, len(WORKLOADS)):
                    result = results[workload]
                    _progress(f"round {number + 1} of {rounds}: {workload}")
                    for name in names if number % 2 == 0 else reversed(names):
                        salt = f"{number}/{workload}/{name}"
                        turn = Turn(name, workload, port, salt, warm_up, seconds, options.uvloop)
                        _prepare(referee, turn)
                        sample = process[name].submit(measure, turn).result()
                        _verify(referee, turn)
                        result.figures[name].append(sample.per_second / 1000)
                        result.cpu_us[name].append(sample.cpu_us)
    _progress("")
    return list(results.values())


def _prepare(referee: Any, turn: Turn) -> None:
    referee.flushdb()
    if turn.workload.verb == "GET":
        referee.mset({f"{RESOURCE}:{key}": turn.value_of(key) for key in KEYS})


def _verify(referee: Any, turn: Turn) -> None:
    """After a SET: every key that is there holds its value and a TTL, and no other is there."""
    if turn.workload.verb == "GET":
        return
    expected = {f"{RESOURCE}:{key}": turn.value_of(key) for key in KEYS}
    stored = referee.keys()
    with referee.pipeline(transaction=False) as pipeline:
        for name in stored:
            pipeline.get(name).ttl(name)
        replies = pipeline.execute()
    for name, value, ttl in zip(stored, replies[::2], replies[1::2], strict=True):
        if value != expected.get(name) or not TTL - 60 < ttl <= TTL:
            raise WrongValue(f"{turn.peer}, {turn.workload}: {name} is {value!r}, TTL {ttl}")
    if not stored:
        raise WrongValue(f"{turn.peer}, {turn.workload}: nothing was stored")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _imports(peers: list[Peer], runs: int) -> Result:
    """By turns; the first turn, which may compile and fills the disk cache, does not count."""
    code = {peer.name: f"import {peer.module}" for peer in peers if peer != UNTIMED}
    code[BARE] = "pass"
    figures: dict[str, list[float]] = {name: [] for name in code}
    for number in range(runs + 1):
        for name in code:
            command = [sys.executable, "-P", "-c", code[name]]
            _, status, usage = os.wait4(os.posix_spawn(command[0], command, os.environ), 0)
            if status:
                raise RuntimeError(f"{code[name]!r} failed")
            if number:
                figures[name].append((usage.ru_utime + usage.ru_stime) * 1000)
    return Result(IMPORT, "ms", figures)


def _facts(peers: list[Peer], port: int, *, uvloop: bool) -> dict[str, str]:
    with redis.Redis(host=HOST, port=port) as client:
        info: Any = client.info("server")
    server = f"{info.get('server_name', 'redis')} " + info.get(
        "valkey_version", info["redis_version"]
    )
    packages = dict.fromkeys(name for peer in peers for name in peer.packages)
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    load = os.getloadavg()[0]
    return {
        "machine": f"{os.cpu_count()} cores, {(models or [platform.processor()])[0]}, "
        f"{platform.platform()}; load {load:.2f}" + (" (busy: expect noise)" if load > 0.5 else ""),
        "versions": f"{platform.python_implementation()} {platform.python_version()}, {server}, "
        + ", ".join(f"{name} {version(name)}" for name in packages),
        "event loop": f"uvloop {version('uvloop')}" if uvloop else "asyncio",
    }
