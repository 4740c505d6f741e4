"""How ``pevensie demo`` is shown: tables where rich is installed, plain text where it is not."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from typing import Final

from pevensie._demo import Section, Step

Viewer = Callable[[Section], None]

LINE_WIDTH: Final = 59
"""Columns of the longest line of the demo; what came back fits beside it in a terminal of 80."""


def viewer() -> Viewer:
    """What shows a section on stdout. No colour with NO_COLOR, nor where stdout is no terminal."""
    try:
        return _rich()
    except ImportError:
        return _plain


def _mark(step: Step) -> str:
    mark = "✓" if step.held else "✗"
    try:
        mark.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        return "ok" if step.held else "FAILED"
    return mark


def _plain(section: Section) -> None:
    lines = [section.title]
    lines += [f"  {_mark(s)} {s.line:<{LINE_WIDTH}}  {s.result}" for s in section.steps]
    sys.stdout.write("\n".join(lines) + "\n\n")
    sys.stdout.flush()


def _rich() -> Viewer:
    from rich.console import Console
    from rich.syntax import Syntax
    from rich.table import Table
    from rich.text import Text

    console = Console(
        markup=False, color_system=None if os.environ.get("NO_COLOR") else "auto", highlight=False
    )
    python = Syntax("", "python", theme="ansi_dark", background_color="default")

    def coloured(line: str) -> Text:
        if line.startswith("redis-cli "):
            return Text(line, style="yellow")
        text = python.highlight(line)
        text.rstrip()
        text.no_wrap, text.overflow = False, "fold"
        return text

    def show(section: Section) -> None:
        table = Table.grid(padding=(0, 1))
        table.add_column()
        table.add_column(min_width=min(LINE_WIDTH, console.width - 21))
        table.add_column()
        for step in section.steps:
            if step.held:
                table.add_row(Text(_mark(step), style="green"), coloured(step.line), step.result)
            else:
                table.add_row(Text(_mark(step), style="red"), coloured(step.line))
                table.add_row(None, Text(step.result, style="red"))
        is_code = section.title.endswith(":")
        title = coloured(section.title) if is_code else Text(section.title, style="bold")
        console.rule(title, align="left", style="dim")
        console.print(table)
        console.print()

    return show
