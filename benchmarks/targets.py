"""What is measured, and the figures to reach."""

from __future__ import annotations

from itertools import product
from typing import Final, NamedTuple

from benchmarks.figures import Record, Result
from benchmarks.load import Colour, Verb, Workload
from benchmarks.peers import OURS, PEERS, REDIS_PY, UNTIMED
from benchmarks.peers.peer import Peer

TASKS: Final = (1, 10, 50, 200, 1000)
THREADS: Final = (1, 4, 16, 32, 64)
SIZES: Final = (10, 100, 1000, 10_000, 100_000, 1_000_000)
SIZED_TASKS: Final = 10
BATCHES: Final = (100, 1000)
VERBS: Final[tuple[Verb, ...]] = ("GET", "SET")
SIZED: Final[tuple[tuple[Colour, int], ...]] = (("async", SIZED_TASKS), ("sync", 1))

CORE: Final = [
    *(Workload("sync", verb, width) for verb in VERBS for width in (1, 32)),
    Workload("sync", "GET", 4),
    *(Workload("async", verb, width) for verb in VERBS for width in (1, 50, 200)),
]
"""What ``scripts/bench`` measures without ``--full``."""

FULL: Final = [
    *(
        Workload("async", verb, width, uvloop=loop)
        for loop, verb, width in product((False, True), VERBS, TASKS)
    ),
    *(Workload("sync", verb, width) for verb, width in product(VERBS, THREADS)),
    *(
        Workload(colour, verb, width, size)
        for (colour, width), verb, size in product(SIZED, VERBS, SIZES)
        if size != 100  # these are above
    ),
    *(Workload("async", "GET", 1, batch=batch) for batch in BATCHES),
    *(Workload("sync", "GET", 1, batch=batch) for batch in BATCHES),
]
MIXED: Final = Workload("async", "MIX", 50)
"""Half of what redis-py makes of it is the load at which everybody's latency is measured."""

CONNECTED: Final = (
    Workload("async", "GET", 200),
    Workload("async", "GET", 1000),
    Workload("sync", "GET", 32),
)

IMPORT: Final = "import, CPU time"
BARE: Final = "(bare interpreter)"
LATENCIES: Final = ("latency p50", "latency p99", "latency p99.9")
IDLE: Final = "idle client, memory"
IN_FLIGHT: Final = "10,000 calls in flight, memory for each"
BEST_PEER: Final = "the best peer"
POOL_SIZE: Final = 10
SEVERAL: Final = 6


def connections(workload: Workload) -> str:
    return f"connections, {str(workload).partition(', ')[2]}"


def applies(peer: Peer, workload: Workload) -> bool:
    """Whether a peer has what a workload needs; that it then fails is another matter."""
    if peer.command:
        # uvloop is ours to choose, not its; shown beside both loops.
        return workload.verb != "MIX"
    if peer is UNTIMED and (workload.size != 100 or workload.batch > 1):
        return False  # enough is known of redis-py there
    opener = peer.open if workload.colour == "sync" else peer.open_async
    return opener is not None and (workload.batch == 1 or peer.has_many)


class Target(NamedTuple):
    ratio: float  # our median divided by the peer's; or our median alone, if there is no peer
    at_most: bool = False

    def met(self, ratio: float) -> bool:
        return ratio <= self.ratio if self.at_most else ratio >= self.ratio

    def __str__(self) -> str:
        return f"at {'most' if self.at_most else 'least'} {self.ratio:g}"


def _targets() -> dict[tuple[str, str], Target]:
    found: dict[tuple[str, str], Target] = {}

    def add(workload: Workload | str, target: float, *peers: str, at_most: bool = False) -> None:
        for peer in peers:
            found[str(workload), peer] = Target(target, at_most)

    redis_py, glide, rust = REDIS_PY.name, "glide", "vcache-driver"
    add(Workload("async", "GET", 200), 12, redis_py)
    add(Workload("async", "GET", 200), 4.5, glide)
    add(Workload("async", "GET", 200), 14, "coredis")
    add(Workload("async", "GET", 200), 2.2, rust)
    add(Workload("async", "GET", 200, uvloop=True), 15, redis_py)
    add(Workload("async", "GET", 200, uvloop=True), 7, glide)
    add(Workload("async", "GET", 200, uvloop=True), 2.2, rust)
    add(Workload("async", "GET", 1000, uvloop=True), 0.3, "redis-benchmark")
    add(Workload("async", "SET", 200), 10, redis_py)
    add(Workload("async", "GET", 1), 1.1, BEST_PEER)
    add(Workload("sync", "GET", 1), 1.6, redis_py, "glide-sync")
    add(Workload("sync", "GET", 1), 0.9, "redis-benchmark")
    add(Workload("sync", "GET", 4), 3, redis_py)
    add(Workload("sync", "GET", 4), 1.4, rust)
    add(Workload("sync", "GET", 32), 3.5, redis_py)
    add(Workload("sync", "GET", 32), 2, "glide-sync")
    add(Workload("sync", "GET", 32), 0.5, rust)
    add(Workload("async", "GET", SIZED_TASKS, 1_000_000), 1.2, redis_py)
    add(Workload("sync", "GET", 1, 1_000_000), 1.2, redis_py)
    add(Workload("async", "GET", 50), 12, "cashews", "aiocache", "py-key-value")
    add("latency p99", 0.5, redis_py, at_most=True)
    add(IMPORT, 0.4, redis_py, at_most=True)
    add(connections(Workload("async", "GET", 1000)), POOL_SIZE, "", at_most=True)
    return found


TARGETS: Final = _targets()
"""At our defaults; where nothing else is said, tasks run on the standard library's asyncio."""


class Verdict(NamedTuple):
    label: str
    against: str
    ours: str
    theirs: str
    ratio: float | None
    ratios: list[float]
    target: Target

    @property
    def met(self) -> bool | None:
        """``None``: there is no figure, as one of both fails or was not measured."""
        return None if self.ratio is None else self.target.met(self.ratio)


def best_peer(result: Result) -> str | None:
    """The best of those that somebody could use instead: the limits are none of them."""
    medians = {
        name: middle
        for name in result.figures
        if name in PEERS and PEERS[name].kind in ("client", "library")
        if (middle := result.median(name)) is not None
    }
    pick = max if result.more_is_better else min
    return pick(medians, key=medians.__getitem__) if medians else None


def verdicts(record: Record) -> list[Verdict]:
    """Of every target whose workload was measured against whom it names."""
    found = []
    for (label, against), target in TARGETS.items():
        result = record.results.get(label)
        if result is None:
            continue
        label, ours = result.title, result.shown(OURS.name)
        if not against:
            alone = result.median(OURS.name)
            found.append(Verdict(label, "–", ours, "–", alone, [], target))
            continue
        if against == BEST_PEER and len(result.figures) < SEVERAL:
            continue  # the best of two says nothing
        peer = best_peer(result) if against == BEST_PEER else against
        if peer is None or peer not in result.figures:
            if peer in record.absent:
                missing = f"is not here: {record.absent[peer]}"
                found.append(Verdict(label, peer, ours, missing, None, [], target))
            continue
        name = f"{BEST_PEER}: {peer}" if against == BEST_PEER else peer
        ratio, ratios = result.ratio(OURS.name, peer), result.ratios(OURS.name, peer)
        found.append(Verdict(label, name, ours, result.shown(peer), ratio, ratios, target))
    return found


def target_workloads() -> list[Workload]:
    labels = {label for label, _ in TARGETS}
    return [workload for workload in FULL if str(workload) in labels]
