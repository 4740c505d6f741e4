"""Both type checkers agree with ``tests/typing``: what must be refused is, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
USED_TOO_EARLY = """
import pevensie

pevensie.from_url("redis://localhost").get("ship", 1)
"""


def check(checker: str, path: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", checker, str(path)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_the_public_api_has_the_types_it_says(checker: str) -> None:
    done = check(checker, ROOT / "tests" / "typing" / "api.py")
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("checker", ["mypy", "pyright"])
def test_using_a_cache_before_connect_is_refused(checker: str, tmp_path: Path) -> None:
    program = tmp_path / "early.py"
    program.write_text(USED_TOO_EARLY)
    done = check(checker, program)
    assert done.returncode != 0
    assert '"get"' in done.stdout
    assert "PevensieCache" in done.stdout
