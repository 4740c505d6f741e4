"""The figures to reach, and the table that says whether they were."""

from __future__ import annotations

from dataclasses import dataclass, field
from statistics import median
from typing import Final, NamedTuple

from benchmarks.peers import OURS, REDIS_PY


class Target(NamedTuple):
    ratio: float
    at_most: bool = False

    def met(self, ratio: float) -> bool:
        return ratio <= self.ratio if self.at_most else ratio >= self.ratio

    def __str__(self) -> str:
        return f"{'≤' if self.at_most else '≥'} {self.ratio:g} x"


IMPORT: Final = "import, CPU time"

TARGETS: Final = {
    ("async GET, 200 tasks", REDIS_PY.name): Target(10),
    ("async GET, 1 task", REDIS_PY.name): Target(1.15),
    ("async SET, 200 tasks", REDIS_PY.name): Target(8),
    ("sync GET, 1 thread", REDIS_PY.name): Target(1.5),
    ("sync SET, 1 thread", REDIS_PY.name): Target(1.3),
    (IMPORT, REDIS_PY.name): Target(0.4, at_most=True),
}
"""Our median divided by the peer's, at the defaults and with the asyncio of the standard library.
Rates, so more is better; except for the import."""


@dataclass(frozen=True)
class Result:
    """One workload: by contestant, one figure for each round."""

    workload: str
    unit: str  # "/s" or "ms"
    figures: dict[str, list[float]] = field(default_factory=dict)

    def ratio(self, peer: str) -> float:
        return median(self.figures[OURS.name]) / median(self.figures[peer])

    def ratios(self, peer: str) -> list[float]:
        """One for each round."""
        pairs = zip(self.figures[OURS.name], self.figures[peer], strict=True)
        return [ours / theirs for ours, theirs in pairs]


def missed(results: list[Result], *, uvloop: bool) -> list[str]:
    """The targets that were measured and not met."""
    return [
        f"{result.workload} against {peer}: {result.ratio(peer):.2f} x, target {target}"
        for result in results
        for peer in result.figures
        if (target := _target(result, peer, uvloop)) and not target.met(result.ratio(peer))
    ]


def table(results: list[Result], *, uvloop: bool) -> str:
    rows = [("", OURS.name, "", "", "ratio", "target")]
    for result in results:
        head = (result.workload, _figure(result, OURS.name))
        for peer in result.figures:
            if peer == OURS.name:
                continue
            ratio, spread = result.ratio(peer), result.ratios(peer)
            target = _target(result, peer, uvloop)
            verdict = f"{target} {'✓' if target.met(ratio) else '✗ missed'}" if target else ""
            shown = f"{ratio:.2f} x ({min(spread):.2f}-{max(spread):.2f})"
            rows.append((*head, peer, _figure(result, peer), shown, verdict))
            head = ("", "")
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]
    return "\n".join([lines[0], "─" * max(map(len, lines)), *lines[1:]])


def _target(result: Result, peer: str, uvloop: bool) -> Target | None:
    if uvloop and result.workload.startswith("async"):
        return None
    return TARGETS.get((result.workload, peer))


def _figure(result: Result, name: str) -> str:
    figures = result.figures[name]
    scale, unit = (1e-3, "k/s") if result.unit == "/s" else (1.0, " ms")
    low, middle, high = (scale * each for each in (min(figures), median(figures), max(figures)))
    return f"{middle:6.1f}{unit} ({low:.1f}-{high:.1f})"
