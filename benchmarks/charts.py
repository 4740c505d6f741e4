"""Charts as SVG, written by hand: lines on logarithmic axes, and dots for percentiles.

Each names its series where the line ends, says in the title which way is better, and carries a
background and colours for a light and a dark page.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from itertools import pairwise
from typing import Final

OURS: Final = "pevensie"
COLOURS: Final = {
    OURS: ("#0969da", "#58a6ff"),
    "redis-py": ("#cf222e", "#ff7b72"),
    "redis-py-untimed": ("#a0522d", "#e0a080"),
    "valkey-py": ("#9a6700", "#e3b341"),
    "coredis": ("#8250df", "#bc8cff"),
    "glide": ("#1a7f37", "#3fb950"),
    "glide-sync": ("#1a7f37", "#3fb950"),
    "vcache-driver": ("#bc4c00", "#f0883e"),
    "aiocache": ("#0e7490", "#39c5cf"),
    "cashews": ("#bf3989", "#f778ba"),
    "py-key-value": ("#57606a", "#9ea7b3"),
    "dogpile.cache": ("#3b5a00", "#a5d64c"),
    "django-redis": ("#4d2d00", "#d4b483"),
}
"""On a light page, and on a dark one. The limits have the colour of the axes, and a broken line."""

WIDTH, HEIGHT = 860, 480
LEFT, RIGHT, TOP, BOTTOM = 64, 140, 62, 52
LINE: Final = 15  # between two labels, at least

STYLE: Final = """
text { font: 12px system-ui, -apple-system, "Segoe UI", sans-serif; fill: #1f2328 }
.title { font-size: 16px; font-weight: 600 } .ours { font-weight: 700 } .end { text-anchor: end }
.middle { text-anchor: middle } .faint { fill: #59636e } .page { fill: #ffffff }
.grid { stroke: #d1d9e0; stroke-width: 1 } .line { fill: none; stroke-width: 1.8 }
.line.ours { stroke-width: 3.5 } .limit { stroke-dasharray: 5 4 } .hair { stroke-width: 0.7 }
"""
DARK: Final = """
text { fill: #f0f6fc } .faint { fill: #9198a1 } .page { fill: #0d1117 } .grid { stroke: #3d444d }
"""


@dataclass(frozen=True)
class Series:
    name: str
    points: list[tuple[float, float]]  # those that exist, by x


def lines(
    title: str,
    x_title: str,
    y_title: str,
    series: list[Series],
    x_names: Callable[[float], str] = "{:g}".format,
) -> str:
    """Both axes logarithmic; the ticks of the x axis are the values that were measured."""
    series = [each for each in series if each.points]
    xs = sorted({x for each in series for x, _ in each.points})
    ys = [y for each in series for _, y in each.points]
    low, high = min(ys) / 1.15, max(ys) * 1.15
    right, floor = WIDTH - RIGHT, HEIGHT - BOTTOM

    def across(x: float) -> float:
        return LEFT + (right - LEFT) * _share(x, xs[0], xs[-1])

    def up(y: float) -> float:
        return floor - (floor - TOP) * _share(y, low, high)

    parts = []
    for tick in _ticks(low, high):
        parts.append(_line(LEFT, up(tick), right, up(tick), "grid"))
        parts.append(_text(LEFT - 8, up(tick) + 4, f"{tick:g}", "end faint"))
    for x in xs:
        parts.append(_line(across(x), TOP, across(x), floor, "grid"))
        parts.append(_text(across(x), floor + 18, x_names(x), "middle faint"))
    parts.append(_text((LEFT + right) / 2, floor + 40, x_title, "middle"))
    parts.append(_text(LEFT - 48, TOP - 12, y_title, ""))
    ends = [up(each.points[-1][1]) for each in series]
    places = _apart(ends, TOP, floor)
    # Ours last, so that it is on top.
    for index in sorted(range(len(series)), key=lambda index: series[index].name == OURS):
        each, (x, y) = series[index], series[index].points[-1]
        path = " ".join(f"{across(x):.1f},{up(y):.1f}" for x, y in each.points)
        names = _classes(each.name)
        parts.append(f'<polyline class="line {names}" points="{path}"/>')
        for x, y in each.points:
            parts.append(_dot(across(x), up(y), names))
        parts.append(_line(across(x) + 4, up(y), right + 10, places[index], f"hair {names}"))
        parts.append(_text(right + 14, places[index] + 4, each.name, f"name {names}"))
    return _page(title, parts, HEIGHT)


def percentiles(title: str, x_title: str, rows: list[tuple[str, list[float]]]) -> str:
    """A row for each name: its dots from left to right, each with its figure."""
    height = TOP + BOTTOM + 30 * len(rows)
    left, right, floor = 150, WIDTH - 40, height - BOTTOM
    figures = [figure for _, row in rows for figure in row]
    low, high = min(figures) / 1.3, max(figures) * 1.3

    def across(x: float) -> float:
        return left + (right - left) * _share(x, low, high)

    parts = []
    for tick in _ticks(low, high):
        parts.append(_line(across(tick), TOP, across(tick), floor, "grid"))
        parts.append(_text(across(tick), floor + 18, f"{tick:g}", "middle faint"))
    parts.append(_text((left + right) / 2, floor + 40, x_title, "middle"))
    for index, (name, row) in enumerate(rows):
        y, names = TOP + 30 * index + 20, _classes(name)
        parts.append(_text(left - 12, y + 4, name, f"end name {names}"))
        parts.append(_line(across(row[0]), y, across(row[-1]), y, f"line {names}"))
        edge = 0.0
        for figure in row:
            parts.append(_dot(across(figure), y, names))
            if across(figure) > edge:
                parts.append(_text(across(figure), y - 7, f"{figure:.3g}", "middle faint"))
                edge = across(figure) + 30
    return _page(title, parts, height)


# -- pieces --------------------------------------------------------------------------------------


def _share(value: float, low: float, high: float) -> float:
    """Where a value lies between two, on a logarithmic scale."""
    return math.log(value / low) / math.log(high / low) if high > low else 0.5


def _ticks(low: float, high: float) -> list[float]:
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    steps = (1, 2, 5) if high / low < 2000 else (1,)
    return [t for d in decades for s in steps if low <= (t := s * 10.0**d) <= high]


def _apart(places: list[float], top: float, floor: float) -> list[float]:
    """The same, in their order, but none nearer to the next than a line of text."""
    order = sorted(range(len(places)), key=places.__getitem__)
    found = list(places)
    for before, index in pairwise(order):
        found[index] = max(found[index], found[before] + LINE)
    limit = floor
    for index in reversed(order):
        found[index] = max(min(found[index], limit), top)
        limit = found[index] - LINE
    return found


def _key(name: str) -> str:
    return "p-" + "".join(letter if letter.isalnum() else "-" for letter in name)


def _classes(name: str) -> str:
    if name not in COLOURS:
        return "limit"
    return f"{_key(name)} ours" if name == OURS else _key(name)


def _line(x1: float, y1: float, x2: float, y2: float, names: str) -> str:
    return f'<line class="{names}" x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"/>'


def _dot(x: float, y: float, names: str) -> str:
    return f'<circle class="dot {names}" cx="{x:.1f}" cy="{y:.1f}" r="3"/>'


def _text(x: float, y: float, text: str, names: str) -> str:
    return f'<text class="{names}" x="{x:.1f}" y="{y:.1f}">{escape(text)}</text>'


def _colours(dark: bool) -> str:
    rows = {_key(name): pair[dark] for name, pair in COLOURS.items()}
    rows["limit"] = "#9198a1" if dark else "#59636e"
    return "\n".join(
        f"line.{name}, polyline.{name} {{ stroke: {colour} }} "
        f"circle.{name}, text.name.{name} {{ fill: {colour} }}"
        for name, colour in rows.items()
    )


def _page(title: str, parts: list[str], height: int) -> str:
    dark = f"@media (prefers-color-scheme: dark) {{{DARK}{_colours(dark=True)}\n}}"
    return "\n".join(
        [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
            f'width="{WIDTH}" height="{height}" role="img" aria-label="{escape(title)}">',
            f"<style>{STYLE}{_colours(dark=False)}\n{dark}</style>",
            f'<rect class="page" width="{WIDTH}" height="{height}" rx="6"/>',
            _text(16, 28, title, "title"),
            *parts,
            "</svg>\n",
        ]
    )
