"""The shape of the house itself."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import supervisor

ROOT = Path(supervisor.__file__).parent
FLOORS = [
    "_words",
    "_engines",
    "_decisions",
    "_mechanisms",
    "_cluster",
    "_server",
    "client",
    "testing",
    "pytest_plugin",
    "cli",
    "__main__",
]
MODULES = sorted(path for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")


def floor_of(path: Path) -> int:
    return FLOORS.index(path.relative_to(ROOT).parts[0].removesuffix(".py"))


def imported_from(path: Path) -> list[tuple[int, Path]]:
    """Where the relative imports of one module lead, type-checking ones included."""
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = path.parents[node.level - 1]
            found.append((node.lineno, base / (node.module or "").replace(".", "/")))
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_only_point_downward(path: Path) -> None:
    for line, target in imported_from(path):
        if target in (ROOT, ROOT / "cli"):  # the front door, which the command line may use
            assert "cli" in path.parts or path.name == "__main__.py", f"{path}:{line}"
            continue
        assert floor_of(target) <= floor_of(path), f"{path}:{line} imports upward"


def test_engines_know_only_words() -> None:
    engines = [path for path in MODULES if "_engines" in path.parts]
    for path in engines:
        for line, target in imported_from(path):
            assert target.relative_to(ROOT).parts[0] in ("_words", "_engines"), f"{path}:{line}"


@pytest.mark.req("R42")
@pytest.mark.parametrize(
    "path", [path for path in MODULES if {"_decisions", "_words"} & set(path.parts)], ids=lambda path: path.stem
)
def test_nothing_that_decides_can_wait(path: Path) -> None:
    if path.stem == "wire":  # describes what waits, and does not decide
        return
    for node in ast.walk(ast.parse(path.read_text())):
        assert not isinstance(node, ast.AsyncFunctionDef | ast.Await | ast.AsyncFor | ast.AsyncWith), path


def test_the_front_door_exports_exactly_this() -> None:
    names = {name for name in vars(supervisor) if not name.startswith(("_", "@"))}
    assert names - {"cli", "client", "testing", "pytest_plugin"} == set(EXPORTS.split())


EXPORTS = """
Audience BadRequest CloseReason ClusterOptions Connection ConnectionClosed Draining End Forbidden Frame
HardLimitReached Hub Identity IdentityMismatch LimitReached Limits Membership NotFound Options OutcomeUnknown Overflow
Policies Profile Rate RateLimited Recorder Refused Remote Request RoomLimitReached Run RunFailed RunLimitReached
Server SlowConsumer Statistics Superseded Supervisor SupervisorError Timeouts Told Unauthorized Unavailable Wire
WireClosed choose_profile echo events hub open_supervisor serve tune_collector
"""
