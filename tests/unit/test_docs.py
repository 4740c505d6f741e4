"""If the documentation says it, it is so: examples run, tables and trees are the code's."""

from __future__ import annotations

import dataclasses
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import pevensie
from pevensie.cache import Cache
from pevensie.redis import RedisConfig

ROOT = Path(__file__).parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


def examples() -> list[Any]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in re.finditer(r"```python\n(.*?)```", text, re.DOTALL):
            line = text.count("\n", 0, match.start()) + 1
            found.append(pytest.param(match[1], id=f"{page.name}:{line}"))
    return found


@pytest.mark.parametrize("source", examples())
def test_examples_run_when_pasted(source: str, tmp_path: Path) -> None:
    """Each alone, with every warning an error, and what a comment says is printed is printed."""
    done = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-"],
        input=source,
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert (done.returncode, done.stderr) == (0, "")
    promised = re.findall(r"^\s*print\(.*\)  # (.*)$", source, re.MULTILINE)
    for words in promised:
        assert words.partition(" …")[0].partition(": there")[0] in done.stdout


def test_the_readme_is_short() -> None:
    assert len(PAGES[0].read_text(encoding="utf-8").splitlines()) < 200


def test_links_lead_somewhere() -> None:
    for page in [*PAGES, ROOT / "ARCHITECTURE.md", ROOT / "CONTRIBUTING.md"]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name}: {target}"


def table(heading: str) -> dict[str, list[str]]:
    """The first table below *heading* in the README, by the code that its rows begin with."""
    text = PAGES[0].read_text(encoding="utf-8").partition(heading)[2]
    rows = re.findall(r"^\| (`[^|]*) \|(.*)\|$", text, re.MULTILINE)
    return {row[0]: [cell.strip() for cell in row[1].split(" | ")] for row in rows}


def test_the_configuration_table_is_the_dataclass() -> None:
    rows = table("## Configuration")
    fields = {f"`{field.name}`": field for field in dataclasses.fields(RedisConfig)}
    assert list(rows)[: len(fields)] == list(fields)
    for name, field in fields.items():
        default = repr(field.default).replace("'", '"')
        assert rows[name][0] == f"`{default}`"


def test_the_method_table_is_the_class() -> None:
    text = PAGES[0].read_text(encoding="utf-8")
    rows = re.findall(r"^\| (`[a-z_]+\(.*?) \|", text, re.MULTILINE)
    documented = re.findall(r"`([a-z_]+\(.*?\))`", " ".join(rows))
    real = []
    for name, method in vars(Cache).items():
        if name.startswith("_"):
            continue
        parameters = list(inspect.signature(method).parameters.values())[1:]
        bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in parameters]
        real.append(f"{name}{inspect.Signature(bare)}")
    assert sorted(documented) == sorted(real)


def test_the_error_tree_is_the_modules() -> None:
    def tree(text: str) -> list[str]:
        return [line.strip() for line in text.splitlines() if re.search(r"├|└|^\s*Pevensie", line)]

    doc = pevensie.errors.__doc__ or ""
    drawn = tree(doc)[1:] if tree(doc)[0] != "PevensieError" else tree(doc)
    readme = PAGES[0].read_text(encoding="utf-8").partition("## Errors")[2]
    assert tree(readme)[: len(drawn)] == drawn
    names = re.findall(r"[├└]── (\w+)", "\n".join(drawn))
    for name in names:
        assert getattr(pevensie, name) is getattr(pevensie.redis, name)
        assert issubclass(getattr(pevensie, name), pevensie.PevensieError)
    assert len(names) == 13
