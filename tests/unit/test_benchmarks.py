"""The benchmark's own sums, without its peers, which are not installed here."""

from __future__ import annotations

import re
import subprocess
import sys
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree

import pytest

ROOT = Path(__file__).parents[2]
if not (ROOT / "benchmarks").is_dir():
    pytest.skip("the benchmark is not part of this copy", allow_module_level=True)
sys.path.insert(0, str(ROOT))

from benchmarks import charts, report  # noqa: E402
from benchmarks.figures import Record, Result, percentile  # noqa: E402
from benchmarks.latency import schedule  # noqa: E402
from benchmarks.load import Turn, Workload  # noqa: E402
from benchmarks.peers import OURS, PEERS  # noqa: E402
from benchmarks.peers.peer import Peer  # noqa: E402
from benchmarks.targets import FULL, IMPORT, TARGETS, Target, best_peer, verdicts  # noqa: E402

GET_1 = str(Workload("async", "GET", 1))
GET_200 = str(Workload("async", "GET", 200))


def record(**figures: list[float | None]) -> Record:
    result = Result(GET_200, "k/s", {name.replace("_", "-"): row for name, row in figures.items()})
    return Record({}, {}, {GET_200: result})


def test_a_contestant_process_begins_without_any_library() -> None:
    """It must hold its own alone, so neither the adapters nor what runs them may import one."""
    code = (
        "import sys, benchmarks.load, benchmarks.latency, benchmarks.footprint; print(*sys.modules)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    libraries = {name.partition(".")[0] for peer in PEERS.values() for name in modules(peer)}
    assert libraries >= {"pevensie", "redis", "glide", "key_value"}
    assert not (libraries | {"hiredis", "django", "uvloop"}) & set(done.stdout.split())


def modules(peer: Peer) -> list[str]:
    return [name for name in peer.module.split(", ") if name]


def test_every_package_of_a_peer_is_pinned() -> None:
    lock = (ROOT / "benchmarks" / "requirements.lock").read_text()
    pinned = set(re.findall(r"^([a-z0-9.-]+)==\S+", lock, re.MULTILINE))
    needed = {each.replace(".", "-") for peer in PEERS.values() for each in peer.packages}
    assert needed - {"pevensie"} <= pinned


def test_targets_name_what_is_measured() -> None:
    labels = {str(workload) for workload in FULL}
    others = {"latency p99", IMPORT, "connections, 1000 tasks"}
    assert {label for label, _ in TARGETS} <= labels | others
    assert {peer for _, peer in TARGETS} <= {*PEERS, "the best peer", ""}


@pytest.mark.parametrize(
    ("target", "ratio", "met"),
    [
        (Target(2), 2.0, True),
        (Target(2), 1.99, False),
        (Target(0.4, at_most=True), 0.4, True),
        (Target(0.4, at_most=True), 0.41, False),
    ],
)
def test_a_target_is_met(target: Target, ratio: float, met: bool) -> None:
    assert target.met(ratio) is met


def test_verdicts_are_of_the_medians() -> None:
    found = verdicts(record(pevensie=[100.0, 130.0, 900.0], redis_py=[10.0, 10.0, 50.0]))
    assert [(each.against, each.ratio, each.met) for each in found] == [("redis-py", 13.0, True)]
    assert found[0].ratios == [10.0, 13.0, 18.0]


def test_a_failing_peer_is_no_target_met() -> None:
    run = record(pevensie=[100.0, 100.0], redis_py=[None, 10.0])
    run.results[GET_200].failures["redis-py"] = "ConnectionError: too many"
    [verdict] = verdicts(run)
    assert verdict.met is None
    assert verdict.theirs == "fails: ConnectionError: too many"
    assert "ConnectionError: too many" in report.page(run)


def test_the_best_peer_is_no_limit() -> None:
    figures: dict[str, list[float | None]] = {
        "pevensie": [9.0],
        "glide": [5.0],
        "redis-py": [6.0],
        "bare-socket": [20.0],
    }
    assert best_peer(Result(GET_1, "k/s", figures)) == "redis-py"
    assert best_peer(Result(IMPORT, "ms", figures)) == "glide"


def test_percentiles() -> None:
    values = [float(number) for number in range(1000, 0, -1)]
    assert [percentile(values, part) for part in (0.5, 0.99, 0.999)] == [500, 990, 999]
    assert percentile([7.0], 0.999) == 7


def test_arrivals_keep_the_rate() -> None:
    dues = schedule(1000, 5)
    assert 4500 < len(dues) < 5500
    assert dues == sorted(dues)


@pytest.mark.parametrize("size", [10, 100, 100_000])
def test_values_differ_by_key_and_turn(size: int) -> None:
    work = Workload("sync", "GET", 1, size)
    turns = [Turn("pevensie", work, 1, salt, 0, 0) for salt in ("a", "b")]
    values = [turn.value_of(key) for turn in turns for key in work.keys]
    assert {len(value) for value in values} == {size}
    assert len(set(values)) == len(values)


def test_a_record_survives_its_file(tmp_path: Path) -> None:
    run = record(pevensie=[1.5, None], redis_py=[2.0, 0.12])
    run.write(tmp_path / "run.json")
    assert Record.read(tmp_path / "run.json") == run


def test_charts_are_well_formed_and_name_everyone(tmp_path: Path) -> None:
    run = record(pevensie=[100.0], redis_py=[10.0])
    run.results[GET_1] = Result(GET_1, "k/s", {OURS.name: [10.0], "redis-py": [5.0]})
    report.render(run, tmp_path)
    svg = ElementTree.parse(tmp_path / "docs" / "images" / "throughput-asyncio.svg")
    texts = {each.text for each in svg.iter("{http://www.w3.org/2000/svg}text")}
    assert {"pevensie", "redis-py", "1", "200"} <= texts


def test_labels_do_not_touch() -> None:
    places = sorted(charts._apart([10.0, 11.0, 300.0, 299.0], 0, 300))
    assert all(b - a >= charts.LINE for a, b in pairwise(places))
