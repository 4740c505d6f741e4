"""Importing is light: a worker that never connects does not pay for what connecting loads."""

from __future__ import annotations

import subprocess
import sys

import pytest

HEAVY = ["socket", "ssl", "asyncio", "hiredis", "subprocess", "urllib.parse", "logging", "msgspec"]


def loaded_by(source: str) -> set[str]:
    program = f"import sys; before = set(sys.modules); {source}; print(*set(sys.modules) - before)"
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    return set(done.stdout.split())


@pytest.mark.parametrize(
    "source",
    [
        "import pevensie",
        "import pevensie.cache, pevensie.redis",
        "import pevensie.redis as r; r.new_cache_driver(r.RedisConfig(host='x'))",
        "import pevensie.memory",
    ],
)
def test_importing_loads_nothing_heavy(source: str) -> None:
    assert not loaded_by(source) & set(HEAVY)


def test_the_sync_shell_does_not_load_asyncio() -> None:
    loaded = loaded_by("import pevensie; pevensie.from_url('redis://x').lazy()")
    assert "hiredis" in loaded
    assert "asyncio" not in loaded
