"""The referee: starts the server and the contestants, lets them take turns, checks, reports."""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import platform
import sys
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from importlib.metadata import version
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pevensie.redis
import redis
from benchmarks import report
from benchmarks.load import KEYS, Sample, Turn, Workload, WrongValue, measure, value_of
from benchmarks.peers import HOST, OURS, PEERS, REDIS_PY, RESOURCE, TTL, Peer
from benchmarks.report import Result

WORKLOADS = [
    *(Workload("sync", verb, width) for verb in ("GET", "SET") for width in (1, 32)),
    *(Workload("async", verb, width) for verb in ("GET", "SET") for width in (1, 50, 200)),
]
BARE = "(bare interpreter)"


def main() -> int:
    options = _parser().parse_args()
    if options.uvloop and importlib.util.find_spec("uvloop") is None:
        sys.exit("--uvloop: uvloop is not installed; pip install uvloop")
    names = options.peers or ([REDIS_PY.name] if options.quick else list(PEERS))
    peers = [OURS, *(PEERS[name] for name in names if name != OURS.name)]
    began = time.perf_counter()
    with pevensie.redis.embedded() as config:
        facts = _facts(peers, config.port, uvloop=options.uvloop)
        print("\n".join(f"{name}: {fact}" for name, fact in facts.items()), flush=True)
        try:
            raw = _play(peers, config.port, options)
        except WrongValue as error:
            print(f"void: {error}", file=sys.stderr)
            return 2
    results = [
        Result(
            str(workload), "/s", {name: [s.rate for s in samples] for name, samples in of.items()}
        )
        for workload, of in raw.items()
    ]
    results.append(_imports(peers, runs=7 if options.quick else 15))
    print(f"\n{report.table(results, uvloop=options.uvloop)}")
    missed = report.missed(results, uvloop=options.uvloop)
    print(
        f"\n{time.perf_counter() - began:.0f} s.", "Missed: " + "; ".join(missed) if missed else ""
    )
    if options.json:
        options.json.write_text(json.dumps(_raw(facts, options, raw, results), indent=1) + "\n")
    return 1 if missed and options.check else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="scripts/bench",
        description="Pevensie Cache beside its peers: see benchmarks/__init__.py.",
    )
    parser.add_argument("--quick", action="store_true", help="about 20 s; noisy")
    parser.add_argument("--uvloop", action="store_true", help="tasks run on uvloop, not asyncio's")
    parser.add_argument("--peers", nargs="+", choices=list(PEERS), help="default: all")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write all samples there")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a target is missed")
    return parser


# -- taking turns --------------------------------------------------------------------------------


def _play(
    peers: list[Peer], port: int, options: argparse.Namespace
) -> dict[Workload, dict[str, list[Sample]]]:
    rounds, warm_up, seconds = (3, 0.06, 0.12) if options.quick else (5, 0.1, 0.25)
    raw: dict[Workload, dict[str, list[Sample]]] = {
        workload: {peer.name: [] for peer in peers} for workload in WORKLOADS
    }
    with redis.Redis(host=HOST, port=port, decode_responses=True) as referee:
        for number in range(rounds):
            with ExitStack() as stack:
                processes = {
                    peer.name: stack.enter_context(
                        ProcessPoolExecutor(1, mp_context=get_context("spawn"))
                    )
                    for peer in peers
                }
                for workload in WORKLOADS:
                    for peer in peers if number % 2 == 0 else reversed(peers):
                        salt = f"{number}/{workload}/{peer.name}"
                        turn = Turn(
                            peer.name, workload, port, salt, warm_up, seconds, options.uvloop
                        )
                        _prepare(referee, turn)
                        sample = processes[peer.name].submit(measure, turn).result()
                        _verify(referee, turn)
                        raw[workload][peer.name].append(sample)
                    _progress(f"round {number + 1} of {rounds}: {workload}")
    _progress("")
    return raw


def _prepare(referee: Any, turn: Turn) -> None:
    referee.flushdb()
    if turn.workload.verb == "GET":
        referee.mset({f"{RESOURCE}:{key}": value_of(key, turn.salt) for key in KEYS})


def _verify(referee: Any, turn: Turn) -> None:
    """Every key that a SET wrote holds its value and its TTL, and there is no other."""
    if turn.workload.verb == "GET":
        return
    names = {f"{RESOURCE}:{key}": value_of(key, turn.salt) for key in KEYS}
    stored = referee.keys()
    with referee.pipeline(transaction=False) as pipeline:
        for name in stored:
            pipeline.get(name).ttl(name)
        replies = pipeline.execute()
    for name, value, ttl in zip(stored, replies[::2], replies[1::2], strict=True):
        if value != names.get(name) or not TTL - 60 < ttl <= TTL:
            raise WrongValue(f"{turn.peer}, {turn.workload}: {name} is {value!r}, TTL {ttl}")
    if not stored:
        raise WrongValue(f"{turn.peer}, {turn.workload}: nothing was stored")


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


# -- import time ---------------------------------------------------------------------------------


def _imports(peers: list[Peer], runs: int) -> Result:
    """CPU time of whole fresh processes, by turns; the first turn warms the disk cache."""
    # redis-py without timeouts is the same import.
    statements = {peer.name: f"import {peer.module}" for peer in peers}
    unique = {code: name for name, code in reversed(statements.items())}
    figures: dict[str, list[float]] = {name: [] for name in reversed(unique.values())}
    figures[BARE] = []
    for number in range(runs + 1):
        for name, of in figures.items():
            cpu = _cpu_of(statements.get(name, "pass"))
            if number:
                of.append(cpu * 1000)
    return Result(report.IMPORT, "ms", figures)


def _cpu_of(code: str) -> float:
    command = [sys.executable, "-P", "-c", code]
    _, status, usage = os.wait4(os.posix_spawn(command[0], command, os.environ), 0)
    if status:
        sys.exit(f"`{code}` failed")
    return usage.ru_utime + usage.ru_stime


# -- the record ----------------------------------------------------------------------------------


def _facts(peers: list[Peer], port: int, *, uvloop: bool) -> dict[str, str]:
    with redis.Redis(host=HOST, port=port) as client:
        info: Any = client.info("server")
    server = (
        f"{info.get('server_name', 'redis')} {info.get('valkey_version', info['redis_version'])}"
    )
    packages = dict.fromkeys(name for peer in peers for name in peer.packages)
    loop = f"uvloop {version('uvloop')}" if uvloop else "asyncio"
    return {
        "machine": f"{os.cpu_count()} cores, {_model()}, {platform.platform()}",
        "load average": " ".join(f"{load:.2f}" for load in os.getloadavg())
        + (", busy: expect noise" if os.getloadavg()[0] > 0.3 else ""),
        "versions": f"{platform.python_implementation()} {platform.python_version()}, {server}, "
        + ", ".join(f"{name} {version(name)}" for name in packages),
        "event loop": loop,
    }


def _model() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


def _raw(
    facts: dict[str, str],
    options: argparse.Namespace,
    raw: dict[Workload, dict[str, list[Sample]]],
    results: list[Result],
) -> dict[str, Any]:
    samples = {
        str(workload): {name: [s._asdict() for s in samples] for name, samples in of.items()}
        for workload, of in raw.items()
    }
    rows = [
        {"workload": r.workload, "unit": r.unit, "figures": r.figures}
        | {"ratios": {name: r.ratio(name) for name in r.figures}}
        for r in results
    ]
    return {"facts": facts, "quick": options.quick, "samples": samples, "results": rows}
