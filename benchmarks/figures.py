"""What a run found, as it is kept in a file, and what can be said about it."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from statistics import median
from typing import Any


def percentile(values: list[float], part: float) -> float:
    """The smallest value that at least this part of all are not above; no interpolation."""
    ordered = sorted(values)
    return ordered[max(-int(-len(ordered) * part // 1), 1) - 1]


@dataclass
class Result:
    """One workload: what each contestant reached in each round, and why not.

    ``figures[name][n]`` belongs to the n-th round that had this workload, for every name; ``None``
    where the contestant failed.
    """

    label: str
    unit: str
    figures: dict[str, list[float | None]] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)  # the last reason of each
    cpu_us: dict[str, list[float | None]] = field(default_factory=dict)

    @property
    def more_is_better(self) -> bool:
        return self.unit == "k/s"

    @property
    def title(self) -> str:
        return f"{self.label} ({self.unit})" if self.unit else self.label

    def add(self, name: str, figure: float | None, cpu_us: float | None = None) -> None:
        self.figures.setdefault(name, []).append(figure)
        if cpu_us is not None:
            self.cpu_us.setdefault(name, []).append(cpu_us)

    def fail(self, name: str, reason: str) -> None:
        self.add(name, None)
        self.failures[name] = reason

    def reached(self, name: str) -> list[float]:
        return [figure for figure in self.figures.get(name, []) if figure is not None]

    def median(self, name: str) -> float | None:
        """``None`` if it is not here, or failed in half of its rounds or more."""
        reached = self.reached(name)
        if 2 * len(reached) <= len(self.figures.get(name, [])):
            return None
        return median(reached)

    def ratio(self, ours: str, peer: str) -> float | None:
        """Of the medians, ours divided by the peer's."""
        mine, theirs = self.median(ours), self.median(peer)
        return mine / theirs if mine is not None and theirs else None

    def ratios(self, ours: str, peer: str) -> list[float]:
        """Within each round."""
        pairs = zip(self.figures.get(ours, []), self.figures.get(peer, []), strict=False)
        return [mine / theirs for mine, theirs in pairs if mine is not None and theirs]

    def shown(self, name: str) -> str:
        """The median and the spread, or why there is none."""
        middle, reached = self.median(name), self.reached(name)
        if middle is None:
            return f"fails: {self.failures[name]}" if name in self.failures else "–"
        failed = len(self.figures[name]) - len(reached)
        notes = [f"failed in {failed} of {len(self.figures[name])} rounds"] if failed else []
        if len(reached) > 1:
            notes.insert(0, f"{number(min(reached))}–{number(max(reached))}")
        return f"{number(middle)} ({', '.join(notes)})" if notes else number(middle)


def number(value: float) -> str:
    """Three digits that count."""
    if value >= 100 or isinstance(value, int):
        return f"{value:.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"


@dataclass
class Record:
    """A run. Written after every round, so that one that is cut loses no more than that."""

    facts: dict[str, str]
    versions: dict[str, str]
    results: dict[str, Result] = field(default_factory=dict)
    absent: dict[str, str] = field(default_factory=dict)  # contestants that are not here, and why

    def result(self, label: str, unit: str) -> Result:
        return self.results.setdefault(label, Result(label, unit))

    def write(self, path: Path) -> None:
        """A line for each workload, to be read by people and by diff."""
        rows = [json.dumps(_rounded(asdict(each))) for each in self.results.values()]
        head = {"facts": self.facts, "versions": self.versions, "absent": self.absent}
        text = json.dumps(head, indent=1).removesuffix("\n}")
        part = path.with_suffix(path.suffix + ".part")
        part.write_text(text + ',\n "results": [\n' + ",\n".join(rows) + "\n ]\n}\n")
        part.replace(path)

    @classmethod
    def read(cls, path: Path) -> Record:
        content = json.loads(path.read_text())
        results = [Result(**each) for each in content.pop("results")]
        return cls(**content, results={each.label: each for each in results})


def _rounded(value: Any) -> Any:
    if isinstance(value, float):
        return float(f"{value:.4g}")
    if isinstance(value, dict):
        return {key: _rounded(each) for key, each in value.items()}
    return [_rounded(each) for each in value] if isinstance(value, list) else value
