"""Who may import whom: the walls of ARCHITECTURE.md."""

from __future__ import annotations

import ast
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[2] / "src"
IO = {"socket", "ssl", "select", "selectors", "asyncio", "threading", "time", "subprocess"}
SANS_IO = "pevensie.redis._"

# A module (or everything below a name that ends with a dot) may import these of ours.
MAY_IMPORT = {
    "pevensie.errors": [],
    "pevensie.drivers": ["pevensie.errors"],
    "pevensie.cache": ["pevensie.cache", "pevensie.drivers", "pevensie.errors"],
    "pevensie.memory": ["pevensie.drivers", "pevensie.errors"],
    "pevensie.redis._sync": ["pevensie.redis", "pevensie.errors"],
    "pevensie.redis._async": ["pevensie.redis", "pevensie.errors"],
    "pevensie.redis._io": ["pevensie.redis.config", "pevensie.redis._io", "pevensie.errors"],
    "pevensie.redis": ["pevensie.redis", "pevensie.errors"],
    "pevensie": ["pevensie"],
}
NEVER = {
    "pevensie.redis._sync": ["pevensie.redis._async"],
    "pevensie.redis._async": ["pevensie.redis._sync"],
}
FRONT = [
    "pevensie.cli",
    "pevensie._cli_errors",
    "pevensie._demo",
    "pevensie._demo_view",
    "pevensie.__main__",
]
"""Applications of the library: nothing of the library knows them."""


def modules() -> list[str]:
    files = sorted(SOURCE.rglob("*.py"))
    names = [".".join(file.relative_to(SOURCE).with_suffix("").parts) for file in files]
    return [name.removesuffix(".__init__") for name in names]


def imports(module: str, *, top_level_only: bool = False) -> set[str]:
    """The full names of what *module* imports; with *top_level_only*, when it is imported."""
    path = SOURCE.joinpath(*module.split("."))
    file = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    found: set[str] = set()

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.Import):
            found.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: relative import"
            found.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif (isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING") or (
            top_level_only and isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        ):
            return
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(file.read_text(encoding="utf-8")))
    return found


def below(name: str, roof: str) -> bool:
    return name == roof or name.startswith(f"{roof}.")


def sans_io(module: str) -> bool:
    shells = ("pevensie.redis._io", "pevensie.redis._sync", "pevensie.redis._async")
    return module.startswith(SANS_IO) and not any(below(module, shell) for shell in shells)


@pytest.mark.parametrize("module", modules())
def test_arrows(module: str) -> None:
    roof = max((name for name in MAY_IMPORT if below(module, name)), key=len)
    ours = {name for name in imports(module) if below(name, "pevensie")}
    for name in ours:
        if module == "pevensie.redis.driver" and name.endswith((".RedisStore", ".AsyncRedisStore")):
            continue  # the one place that opens a shell, when asked to
        if name.startswith("pevensie.redis._io.embedded") and module == "pevensie.redis":
            continue
        assert any(below(name, allowed) for allowed in MAY_IMPORT[roof]), name
        assert not any(below(name, wall) for wall in NEVER.get(roof, [])), name
        assert module in FRONT or not any(below(name, front) for front in FRONT), name


@pytest.mark.parametrize("module", [module for module in modules() if sans_io(module)])
def test_sans_io_modules_touch_no_socket_thread_loop_or_clock(module: str) -> None:
    loaded = {name.partition(".")[0] for name in imports(module, top_level_only=True)}
    assert not loaded & IO
    assert loaded <= {*sys.stdlib_module_names, "hiredis", "pevensie"}
    ours = {name for name in imports(module) if below(name, "pevensie.redis")}
    assert all(sans_io(name) or below(name, "pevensie.redis.config") for name in ours)


def test_the_walls_stand_where_the_code_is() -> None:
    """A renamed package must not leave a rule that guards nothing."""
    known = modules()
    for name in [*MAY_IMPORT, *NEVER, *FRONT]:
        assert name in known, name
    assert sum(sans_io(module) for module in known) >= 6
