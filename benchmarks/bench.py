"""The referee: starts the server and the contestants, lets them take turns, checks, reports."""

from __future__ import annotations

import argparse
import importlib.util
import os
import platform
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures import TimeoutError as NotYet
from concurrent.futures.process import BrokenProcessPool
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path
from statistics import median
from typing import Any, Final, NamedTuple

import pevensie.redis
import redis
from benchmarks import report
from benchmarks.figures import Record, Result
from benchmarks.footprint import BARE_TASKS, idle, in_flight
from benchmarks.latency import measure_latency
from benchmarks.load import Failure, Turn, Workload, attempt, measure
from benchmarks.peers import OURS, PEERS, REDIS_PY, UNTIMED
from benchmarks.peers.peer import HOST, TTL, Peer
from benchmarks.targets import (
    BARE,
    CONNECTED,
    CORE,
    FULL,
    IDLE,
    IMPORT,
    IN_FLIGHT,
    LATENCIES,
    MIXED,
    applies,
    connections,
    target_workloads,
    verdicts,
)

ROOT: Final = Path(__file__).parents[1]
KEPT: Final = ROOT / "build" / "benchmarks.json"
"""Where ``--full`` keeps what it has, after every round."""


class Timing(NamedTuple):
    rounds: int
    warm_up: float
    seconds: float
    imports: int


QUICK: Final = Timing(3, 0.06, 0.15, 7)
USUAL: Final = Timing(7, 0.1, 0.22, 15)
LONG: Final = Timing(5, 0.06, 0.16, 9)
EVERYTHING_IN: Final = (0, 2, 4)
"""The rounds of ``--full`` that have all workloads; the others have those with a target only."""

LATENCY_SECONDS: Final = (0.4, 2.0)
"""Under load before the latencies count, and while they do."""


def main() -> int:
    options = _options()
    if options.render:
        report.render(Record.read(options.render), ROOT)
        return 0
    began = time.perf_counter()
    record, done = Record({}, {}), False
    with pevensie.redis.embedded() as config:
        run = Run(config.port, [OURS, *(PEERS[name] for name in options.peers)], record)
        record.facts |= _facts(config.port, _loops(options))
        print(*(f"{name}: {fact}" for name, fact in record.facts.items()), sep="\n")
        print("versions:", ", ".join(" ".join(each) for each in record.versions.items()))
        for name, why in record.absent.items():
            print(f"{name} is not here: {why}")
        sys.stdout.flush()
        try:
            if options.full:
                run.everything()
            else:
                run.some(QUICK if options.quick else USUAL, uvloop=options.uvloop)
            done = True
        except Void as error:
            print(f"void: {error}", file=sys.stderr)
            return 2
        except KeyboardInterrupt:
            print("\ncut: only what was measured follows", file=sys.stderr)
        finally:
            run.close()
    seconds = time.perf_counter() - began
    record.facts["the run"] = f"{time.strftime('%Y-%m-%d')}, {seconds:.0f} s"
    judged = verdicts(record)
    print(report.table(record, judged))
    missed = [verdict for verdict in judged if verdict.met is not True]
    print(f"\n{seconds:.0f} s; targets missed: {len(missed)} of {len(judged)}")
    if options.json:
        record.write(options.json)
    if options.full and done:
        report.render(record, ROOT)
    elif options.full:
        record.write(KEPT)
        print(f"scripts/bench --render {KEPT.relative_to(ROOT)} makes a page of it")
    return 1 if missed and options.check else 0


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/bench", description=__doc__)
    peers = [name for name in PEERS if name != OURS.name]
    parser.add_argument("--quick", action="store_true", help="about 20 s, noisy; one peer")
    parser.add_argument(
        "--full",
        action="store_true",
        help="all workloads and all peers, under 20 minutes; writes docs/benchmarks.md",
    )
    parser.add_argument("--uvloop", action="store_true", help="tasks run on uvloop")
    parser.add_argument(
        "--peers",
        nargs="+",
        choices=[*peers, "all"],
        metavar="NAME",
        help=f"all, or of {', '.join(peers)}",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the raw figures there")
    parser.add_argument("--check", action="store_true", help="exit code 1 if a target is missed")
    parser.add_argument(
        "--render", type=Path, metavar="FILE", help="measure nothing: page and charts from FILE"
    )
    options = parser.parse_args()
    if options.uvloop and importlib.util.find_spec("uvloop") is None:
        parser.error(f"uvloop is not here: {sys.executable} -m pip install uvloop")
    if options.json and not options.json.absolute().parent.is_dir():
        parser.error(f"--json: there is no folder {options.json.parent}")
    if options.full and (options.quick or options.uvloop):
        parser.error("--full has both loops, and is not quick")
    usual = [REDIS_PY.name] if options.quick else [REDIS_PY.name, UNTIMED.name]
    wanted = options.peers or (["all"] if options.full else usual)
    options.peers = peers if "all" in wanted else list(dict.fromkeys(wanted))
    return options


# -- taking turns --------------------------------------------------------------------------------


class Void(Exception):
    """We, or what the referee itself uses, got a value wrong: nothing of this run counts."""


class Run:
    def __init__(self, port: int, peers: list[Peer], record: Record) -> None:
        self._port, self._record = port, record
        self._peers = {peer.name: peer for peer in peers if self._is_here(peer)}
        self._names = list(self._peers)
        self._referee: Any = redis.Redis(host=HOST, port=port)
        self._processes: dict[str, ProcessPoolExecutor] = {}

    def close(self) -> None:
        self._end_processes()
        self._referee.close()
        _progress("")

    def some(self, timing: Timing, *, uvloop: bool) -> None:
        workloads = [
            Workload(each.colour, each.verb, each.width, uvloop=uvloop and each.colour == "async")
            for each in CORE
        ]
        self._announce(workloads)
        for number in range(timing.rounds):
            self._round(number, timing, workloads)
        self._imports(timing.imports)

    def everything(self) -> None:
        KEPT.parent.mkdir(exist_ok=True)
        self._announce(FULL)
        aimed = target_workloads()
        rate = 0.0
        for number in range(LONG.rounds):
            self._round(number, LONG, FULL if number in EVERYTHING_IN else aimed)
            rate = rate or self._half_of_saturation()
            self._latencies(number, rate)
            self._record.write(KEPT)
            _say(f"round {number + 1} of {LONG.rounds} is done")
        self._imports(LONG.imports)
        self._record.write(KEPT)
        self._memory()
        self._connections()
        self._record.write(KEPT)

    def _announce(self, workloads: list[Workload]) -> None:
        """So that they are reported in this order, whatever the one in which they are measured."""
        for workload in workloads:
            self._record.result(str(workload), "k/s")

    def _is_here(self, peer: Peer) -> bool:
        why = ""
        if sys.version_info < peer.needs:
            why = "needs Python {}.{}".format(*peer.needs)
        elif peer.command and not shutil.which(peer.command):
            why = f"there is no {peer.command} on PATH"
        try:
            found = {} if why else {package: version(package) for package in peer.packages}
        except PackageNotFoundError as error:
            found, why = {}, f"{error.name} is not installed"
        if peer.command and not why:
            said = subprocess.run([peer.command, "--version"], capture_output=True, text=True)
            found = {peer.command: said.stdout.split()[-1]}
        self._record.versions.update(found)
        if why:
            self._record.absent[peer.name] = why
        return not why

    def _submit(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        if name not in self._processes:
            # A Ctrl-C is for the referee, which lets the turn end.
            self._processes[name] = ProcessPoolExecutor(
                1,
                mp_context=get_context("spawn"),
                initializer=signal.signal,
                initargs=(signal.SIGINT, signal.SIG_IGN),
            )
        try:
            return self._processes[name].submit(attempt, function, *arguments)
        except BrokenProcessPool:  # it crashed after its last turn
            self._processes.pop(name).shutdown()
            return self._submit(name, function, *arguments)

    def _outcome(self, name: str, future: Any) -> Any:
        pool: Any = self._processes[name]
        workers = list(pool._processes.values())
        try:
            return future.result()
        except BrokenProcessPool:
            self._processes.pop(name).shutdown()
            codes = {worker.exitcode for worker in workers}
            late = -signal.SIGALRM in codes
            return Failure("no answer in time" if late else f"its process ended with {codes}")

    def _ask(self, name: str, function: Callable[..., Any], *arguments: Any) -> Any:
        return self._outcome(name, self._submit(name, function, *arguments))

    def _end_processes(self) -> None:
        for process in self._processes.values():
            process.shutdown()
        self._processes.clear()

    def _order(self, number: int) -> Iterable[str]:
        return self._names if number % 2 == 0 else reversed(self._names)

    def _fail(self, result: Result, name: str, failure: Failure) -> None:
        if failure.wrong and name == OURS.name:
            raise Void(f"{name}, {result.label}: {failure.why}")
        result.fail(name, failure.why)

    def _round(self, number: int, timing: Timing, workloads: list[Workload]) -> None:
        # Shuffled, as what ran before in a process leaves its mark: up to 20 %.
        for workload in random.Random(number).sample(workloads, len(workloads)):
            result = self._record.result(str(workload), "k/s")
            _progress(f"round {number + 1} of {timing.rounds}: {workload}")
            for name in self._order(number):
                if applies(self._peers[name], workload):
                    self._turn(result, name, workload, f"{number}/{workload}/{name}", timing)
        self._end_processes()

    def _turn(
        self, result: Result, name: str, workload: Workload, salt: str, timing: Timing
    ) -> None:
        turn = Turn(name, workload, self._port, salt, timing.warm_up, timing.seconds)
        self._prepare(turn)
        sample = self._ask(name, measure, turn)
        if not isinstance(sample, Failure):
            sample = self._verify(turn) or sample
        if isinstance(sample, Failure):
            self._fail(result, name, sample)
        else:
            result.add(name, sample.per_second / 1000, sample.cpu_us)

    def _prepare(self, turn: Turn) -> None:
        """An empty database, or one that holds what the contestant is to read."""
        self._referee.flushdb()
        peer = PEERS[turn.peer]
        if turn.workload.verb != "SET" and peer.plain:
            keys = turn.workload.keys
            self._referee.mset({peer.stored_prefix + key: turn.value_of(key) for key in keys})

    def _verify(self, turn: Turn) -> Failure | None:
        """After writing: every key that is there holds its value and a TTL, and no other is."""
        peer, verb = PEERS[turn.peer], turn.workload.verb
        if verb != "SET" and peer.plain:
            return None
        expected = {
            f"{peer.stored_prefix}{key}".encode(): turn.value_of(key).encode()
            for key in turn.workload.keys
        }
        stored = self._referee.keys()
        with self._referee.pipeline(transaction=False) as pipeline:
            for name in stored:
                pipeline.get(name).ttl(name)
            replies = pipeline.execute()
        for name, value, ttl in zip(stored, replies[::2], replies[1::2], strict=True):
            wanted = expected.get(name)
            right = wanted is not None and (value == wanted if peer.plain else wanted in value)
            if not right or not TTL - 60 < ttl <= TTL:
                return Failure(f"it stored {value!r:.60} in {name!r}, TTL {ttl}", wrong=True)
        return None if stored else Failure("it stored nothing", wrong=True)

    # -- latency under load ----------------------------------------------------------------------

    def _half_of_saturation(self) -> float:
        """Calls per second: half of what redis-py can do."""
        if REDIS_PY.name not in self._peers:
            return 0.0
        result = self._record.result(str(MIXED), "k/s")
        for number in range(5):
            salt = f"saturation {number}"
            self._turn(result, REDIS_PY.name, MIXED, salt, Timing(1, 0.2, 0.5, 0))
        self._end_processes()
        rate = median(result.reached(REDIS_PY.name)) * 1000 / 2
        self._record.facts["offered load"] = f"{rate:.0f} calls per second"
        return rate

    def _latencies(self, number: int, rate: float) -> None:
        for name in self._order(number):
            if self._peers[name].open_async is None or not rate:
                continue
            _progress(f"latency: {name}")
            turn = Turn(name, MIXED, self._port, f"{number}/latency/{name}", *LATENCY_SECONDS)
            self._prepare(turn)
            sample = self._ask(name, measure_latency, turn, rate)
            for index, label in enumerate(LATENCIES):
                result = self._record.result(label, "ms")
                if isinstance(sample, Failure):
                    self._fail(result, name, sample)
                else:
                    result.add(name, sample[index])
        self._end_processes()

    # -- imports, memory, connections ------------------------------------------------------------

    def _imports(self, runs: int) -> None:
        """By turns; the first turn, which may compile and fills the disk cache, does not count."""
        code = {name: f"import {peer.module}" for name, peer in self._peers.items() if peer.module}
        code[BARE] = "pass"
        result = self._record.result(IMPORT, "ms")
        for number in range(runs + 1):
            _progress(f"imports: {number} of {runs}")
            for name in code:
                command = [sys.executable, "-P", "-c", code[name]]
                _, status, usage = os.wait4(os.posix_spawn(command[0], command, os.environ), 0)
                if status:
                    raise RuntimeError(f"{code[name]!r} failed")
                if number:
                    result.add(name, (usage.ru_utime + usage.ru_stime) * 1000)

    def _memory(self) -> None:
        """Each figure from a process of its own."""
        if not Path("/proc/self/statm").exists():
            return
        server = self._referee.info("server")["process_id"]
        able = [name for name, peer in self._peers.items() if not peer.command]
        tasks = [name for name in able if self._peers[name].open_async]
        for _ in range(3):
            for name in able:
                self._weigh(self._record.result(IDLE, "MB"), name, idle, self._port)
            for name in (*tasks, BARE_TASKS):
                result = self._record.result(IN_FLIGHT, "KB")
                self._weigh(result, name, in_flight, self._port, server)

    def _weigh(
        self, result: Result, name: str, function: Callable[..., float], *arguments: int
    ) -> None:
        _progress(f"{result.label}: {name}")
        self._referee.flushdb()
        sample = self._ask(name, function, name, *arguments)
        self._end_processes()
        if isinstance(sample, Failure):
            self._fail(result, name, sample)
        else:
            result.add(name, sample)

    def _connections(self) -> None:
        """The most that the server sees while a contestant works, beside the referee's own."""
        for workload in CONNECTED:
            result = self._record.result(connections(workload), "")
            for name in self._names:
                if not applies(self._peers[name], workload):
                    continue
                _progress(f"connections: {name}, {workload}")
                turn = Turn(name, workload, self._port, f"connections/{name}", 0.1, 0.5)
                self._prepare(turn)
                before = most = self._connected()
                future = self._submit(name, measure, turn)
                while not future.done():
                    most = max(most, self._connected())
                    try:
                        future.exception(timeout=0.02)
                    except NotYet:
                        pass
                sample = self._outcome(name, future)
                if isinstance(sample, Failure):
                    self._fail(result, name, sample)
                else:
                    result.add(name, most - before)
                self._end_processes()

    def _connected(self) -> int:
        found: int = self._referee.info("clients")["connected_clients"]
        return found


def _progress(text: str) -> None:
    if sys.stderr.isatty():
        print(f"\r\033[K{text}", end="", file=sys.stderr, flush=True)


def _say(text: str) -> None:
    _progress("")
    print(text, file=sys.stderr, flush=True)


def _loops(options: argparse.Namespace) -> str:
    if not (options.full or options.uvloop):
        return "asyncio"
    return f"{'asyncio and ' if options.full else ''}uvloop {version('uvloop')}"


def _facts(port: int, loops: str) -> dict[str, str]:
    with redis.Redis(host=HOST, port=port) as client:
        info: Any = client.info("server")
    server = f"{info.get('server_name', 'redis')} " + info.get(
        "valkey_version", info["redis_version"]
    )
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    load = os.getloadavg()[0]
    return {
        "machine": f"{os.cpu_count()} cores, {(models or [platform.processor()])[0]}, "
        f"{platform.platform()}; load {load:.2f}" + (" (busy: expect noise)" if load > 0.5 else ""),
        "python": f"{platform.python_implementation()} {platform.python_version()}",
        "server": server,
        "event loop": loops,
    }
