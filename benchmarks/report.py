"""What is shown of a run: a table in the terminal, and the page with its charts.

Everything on the page that a run decides is computed from the record: who is ahead, who fails, what
was missed. Nothing is left out.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Final

from benchmarks import charts
from benchmarks.figures import Record, Result, number
from benchmarks.footprint import BARE_TASKS
from benchmarks.load import Workload, size_name
from benchmarks.peers import OURS, PEERS
from benchmarks.targets import (
    BARE,
    BATCHES,
    CONNECTED,
    IDLE,
    IMPORT,
    IN_FLIGHT,
    LATENCIES,
    SIZED_TASKS,
    SIZES,
    TASKS,
    THREADS,
    VERBS,
    Verdict,
    connections,
    verdicts,
)

MARKS: Final = {True: "✓", False: "✗ missed", None: "– no figure"}


# -- in the terminal -----------------------------------------------------------------------------


def table(record: Record, judged: list[Verdict]) -> str:
    marks = {(each.label, each.against): f"{each.target} {MARKS[each.met]}" for each in judged}
    rows = [("", OURS.name, "against", "", "ratio", "target")]
    for result in record.results.values():
        head = (result.title, result.shown(OURS.name))
        for peer in result.figures:
            if peer == OURS.name:
                continue
            ratio = _ratio(result.ratio(OURS.name, peer), result.ratios(OURS.name, peer))
            mark = marks.pop((result.title, peer), "")
            rows.append((*head, peer, result.shown(peer)[:60], ratio, mark))
            head = ("", "")
    for each in judged:
        if (each.label, each.against) in marks:
            mark = marks[each.label, each.against]
            ratio = _ratio(each.ratio, each.ratios) if each.ratios else ""
            rows.append((each.label, each.ours, each.against, each.theirs[:60], ratio, mark))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)
    return "\n" + "\n".join(lines)


def _ratio(ratio: float | None, ratios: list[float]) -> str:
    if ratio is None:
        return "–"
    spread = f" ({number(min(ratios))}–{number(max(ratios))})" if len(ratios) > 1 else ""
    return f"{number(ratio)} ×{spread}"


# -- the page ------------------------------------------------------------------------------------


def render(record: Record, root: Path) -> None:
    docs, images = root / "docs", root / "docs" / "images"
    images.mkdir(parents=True, exist_ok=True)
    for name, chart in _charts(record).items():
        (images / f"{name}.svg").write_text(chart, encoding="utf-8")
    (docs / "benchmarks.md").write_text(page(record), encoding="utf-8")
    record.write(docs / "benchmarks.json")


WIDE: Final = {
    "asyncio": [Workload("async", "GET", width) for width in TASKS],
    "uvloop": [Workload("async", "GET", width, uvloop=True) for width in TASKS],
    "threads": [Workload("sync", "GET", width) for width in THREADS],
}
SIZED_CELLS: Final = {
    "sizes-async": [Workload("async", "GET", SIZED_TASKS, size) for size in SIZES],
    "sizes-sync": [Workload("sync", "GET", 1, size) for size in SIZES],
}


def _charts(record: Record) -> dict[str, str]:
    found = {}
    for name, workloads in WIDE.items():
        many = "threads" if name == "threads" else f"tasks on {name}"
        series = _series(record, [(each.width, each) for each in workloads])
        if series:
            found[f"throughput-{name}"] = charts.lines(
                f"GET of 100 bytes, {many}: calls per second (higher is better)",
                f"{many.partition(' ')[0]} that call at once",
                "thousand calls per second",
                series,
            )
    for name, workloads in SIZED_CELLS.items():
        who = "1 thread" if name == "sizes-sync" else f"{SIZED_TASKS} tasks, asyncio"
        series = [
            charts.Series(each.name, [(x, 1000 / y) for x, y in each.points])
            for each in _series(record, [(each.size, each) for each in workloads])
        ]
        if series:
            found[name] = charts.lines(
                f"GET with {who}: time per value, by its size (lower is better)",
                "size of a value",
                "microseconds per call (wall-clock time divided by calls)",
                series,
                lambda size: size_name(int(size)),
            )
    rows = [
        (name, [middle for label in LATENCIES if (middle := _median(record, label, name))])
        for name in _names(record, LATENCIES)
    ]
    rows = [(name, row) for name, row in rows if len(row) == len(LATENCIES)]
    if rows:
        found["latency"] = charts.percentiles(
            "Latency at half of what redis-py can do (left is better)",
            "milliseconds from the scheduled start: p50, p99 and p99.9",
            sorted(rows, key=lambda row: row[1][1]),
        )
    return found


def _series(record: Record, cells: list[tuple[float, Workload]]) -> list[charts.Series]:
    """A line for each contestant that has one: two points at least."""
    found = []
    for name in _names(record, [str(work) for _, work in cells]):
        figures = [(x, _median(record, str(work), name)) for x, work in cells]
        points = [(x, y) for x, y in figures if y is not None]
        if len(points) > 1:
            found.append(charts.Series(name, points))
    return found


def _median(record: Record, label: str, name: str) -> float | None:
    return record.results[label].median(name) if label in record.results else None


def _names(record: Record, labels: Iterable[str]) -> list[str]:
    """Who has a figure, or a failure, in one of these; in the order of the peers."""
    there = {name for label in labels if label in record.results for name in _of(record, label)}
    return [name for name in (*PEERS, BARE, BARE_TASKS) if name in there]


def _of(record: Record, label: str) -> Iterable[str]:
    return record.results[label].figures


def page(record: Record) -> str:
    blocks = [
        _head(record),
        _chart("throughput-asyncio", "Throughput of one process against the tasks that share it."),
        _targets(record),
        _ahead(record),
        _failing(record),
        "## Tasks",
        *_wide(record, "asyncio", "async", uvloop=False),
        *_wide(record, "uvloop", "async", uvloop=True),
        _chart("throughput-uvloop", "The same with uvloop: the client, not the loop, differs."),
        "## Threads",
        *_wide(record, "threads", "sync", uvloop=False),
        _chart("throughput-threads", "Throughput of one process against its threads."),
        "## Value sizes",
        *_sized(record),
        _chart("sizes-async", "What a value costs, by its size, with tasks."),
        _chart("sizes-sync", "The same in one thread."),
        "## Many keys in one call",
        _cells(
            record,
            {
                f"{batch} keys, {colour}": str(Workload(colour, "GET", 1, batch=batch))
                for colour in ("async", "sync")
                for batch in BATCHES
            },
            "Thousand values per second, one task or thread: `get_many` beside `MGET`.",
        ),
        "## Latency",
        _cells(
            record,
            {label.removeprefix("latency "): label for label in LATENCIES},
            f"Milliseconds, at {record.facts.get('offered load', 'a fixed load')}, which is half "
            "of what redis-py can do: 95 % GET, 5 % SET with a TTL, started when they are due, "
            "answers or no answers, and counted from when they were due; asyncio.",
        ),
        _chart("latency", "Half of the calls, 99 and 99.9 in a hundred are faster than the dots."),
        "## Footprint",
        _cells(
            record,
            {
                "import (ms of CPU)": IMPORT,
                "idle (MB)": IDLE,
                "a call in flight (KB)": IN_FLIGHT,
                **{connections(work): connections(work) for work in CONNECTED},
            },
            "*Idle*: what importing the library, connecting and one call add to a process that has "
            "asyncio. *In flight*: 10,000 tasks that wait for a server that does not answer; the "
            "task itself is in it. *Connections*: the most that the server saw.",
        ),
        _peers(record),
        (Path(__file__).parent / "method.md").read_text(encoding="utf-8").rstrip(),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def _head(record: Record) -> str:
    facts = "\n".join(f"- **{name}**: {fact}" for name, fact in record.facts.items())
    return f"""# Benchmarks

Pevensie beside its peers, and beside what the machine allows, in one run on one server. This page
and its charts are written by `scripts/bench --full`; the raw figures are in
[benchmarks.json](benchmarks.json). Client and server share the cores, so **the ratios say more than
the rates**.

{facts}

A cell has the median of the rounds, the least and the greatest, and below it *our median divided by
theirs*. Bold: ahead of us."""


def _chart(name: str, sentence: str) -> str:
    return f"![{sentence}](images/{name}.svg)\n\n{sentence}"


def _targets(record: Record) -> str:
    judged = verdicts(record)
    missed = sum(each.met is not True for each in judged)
    lines = [
        "## The figures to reach",
        "",
        f"At our defaults and values of 100 bytes; {len(judged) - missed} of {len(judged)} are "
        "reached. The ratio is ours divided by theirs (its range within one round).",
        "",
        "| workload | against | ours | theirs | ratio | target | |",
        "|---|---|---|---|---|---|---|",
    ]
    for each in judged:
        ratio = _ratio(each.ratio, each.ratios) if each.against != "–" else "–"
        cells = [each.label, each.against, each.ours, each.theirs, ratio, str(each.target)]
        lines.append(f"| {' | '.join(map(_escaped, cells))} | {MARKS[each.met]} |")
    return "\n".join(lines)


def _ahead(record: Record) -> str:
    """Every cell in which a peer is ahead of us, and in how many a limit is."""
    shares: dict[str, list[tuple[str, float]]] = {}
    for result in record.results.values():
        for name in result.figures:
            share = _share_of_ours(result, name)
            if name != OURS.name and share is not None:
                shares.setdefault(name, []).append((result.label, share))
    lines = [
        "## Where others are ahead",
        "",
        "Wherever their median is the better one, and by how many times; first, in how many of the "
        "cells that they and we have a figure for.",
        "",
    ]
    for name in (name for name in PEERS if name in shares):
        ahead = [f"{label} ({number(by)} ×)" for label, by in shares[name] if by > 1]
        if ahead:
            count = f"**{name}** {len(ahead)} of {len(shares[name])}"
            lines.append(f"- {count}" if PEERS[name].kind == "limit" else
                         f"- {count}: {'; '.join(ahead)}.")  # fmt: skip
    return "\n".join(lines)


def _share_of_ours(result: Result, name: str) -> float | None:
    """How many times as good as ours a figure is. More or fewer connections are not better."""
    ratio = result.ratio(OURS.name, name)
    if not ratio or not result.unit or name not in PEERS:
        return None
    return 1 / ratio if result.more_is_better else ratio


def _failing(record: Record) -> str:
    rows: dict[tuple[str, str], list[str]] = {}
    for result in record.results.values():
        for name, why in result.failures.items():
            figures = result.figures[name]
            times = sum(figure is None for figure in figures)
            often = f" ({times} of {len(figures)} rounds)" if times < len(figures) else ""
            rows.setdefault((name, why), []).append(result.label + often)
    lines = ["## What failed", ""]
    lines += [f"- **{name}** is not in this run: {why}." for name, why in record.absent.items()]
    for (name, why), labels in rows.items():
        lines.append(f"- **{name}**: {'; '.join(labels)}: `{why.replace('`', '')}`")
    return "\n".join(lines if len(lines) > 2 else [*lines, "Nothing."])


def _wide(record: Record, name: str, colour: str, *, uvloop: bool) -> list[str]:
    blocks = []
    for verb in VERBS:
        what = "GET" if verb == "GET" else "SET with a TTL"
        cells = {f"{work.width}": str(replace(work, verb=verb)) for work in WIDE[name]}
        where = "threads" if colour == "sync" else f"tasks, {'uvloop' if uvloop else 'asyncio'}"
        blocks.append(_cells(record, cells, f"{what}, thousand calls per second, by {where}:"))
    return blocks


def _sized(record: Record) -> list[str]:
    blocks = []
    for name, verb in product(SIZED_CELLS, VERBS):
        cells = {size_name(work.size): str(replace(work, verb=verb)) for work in SIZED_CELLS[name]}
        who = "1 thread" if name == "sizes-sync" else f"{SIZED_TASKS} tasks, asyncio"
        what = "GET" if verb == "GET" else "SET with a TTL"
        blocks.append(_cells(record, cells, f"{what}, {who}, thousand calls per second:"))
    return blocks


def _cells(record: Record, columns: dict[str, str], words: str) -> str:
    """A table of results by their labels, a row for each contestant."""
    names = _names(record, columns.values())
    if not names:
        return ""
    lines = [words, "", f"| | {' | '.join(columns)} |", "|---" * (len(columns) + 1) + "|"]
    for name in names:
        cells = [_cell(record.results.get(label), name) for label in columns.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _cell(result: Result | None, name: str) -> str:
    if result is None or name not in result.figures:
        return "–"
    middle = result.median(name)
    if middle is None:
        return "fails"
    reached = result.reached(name)
    share = _share_of_ours(result, name)
    shown = f"**{number(middle)}**" if share is not None and share > 1 else number(middle)
    if len(reached) > 1:
        shown += f" ({number(min(reached))}–{number(max(reached))})"
    ratio = result.ratio(OURS.name, name)
    if name == OURS.name or share is None or ratio is None:
        return shown
    return f"{shown}<br>{number(ratio)} ×"


def _peers(record: Record) -> str:
    lines = [
        "## The contestants",
        "",
        "| | versions | configuration |",
        "|---|---|---|",
    ]
    for name, peer in PEERS.items():
        packages = peer.packages or (peer.command,)
        versions = [
            f"{each} {record.versions[each]}" for each in packages if each in record.versions
        ]
        lines.append(f"| {name} | {', '.join(versions) or 'not here'} | {peer.note} |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return text.replace("|", "\\|")
