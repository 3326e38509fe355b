"""The mutation score of whatever decides: ``python -m properties.mutation [CHILDREN]``; half an hour on two cores.

Needs mutmut (the extra ``mutation``). It works on a copy, in which decorated methods are decorated after they have been
defined, because mutmut passes over what is decorated; what they do is the same.
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parent.parent
MUTATED = ["supervisor/_decisions/*.py", "supervisor/_mechanisms/lifecycle.py", "supervisor/_mechanisms/keeper.py"]
DECORATORS = ("step", "enable_ki_protection", "property")
#: Whatever runs on virtual time, the quickest to convict first.
TESTS = [
    "properties/test_decisions.py",
    *(f"tests/test_{name}.py" for name in ("words", "admission", "shedding", "dues", "outbox", "bulletin", "blockage")),
    *(f"tests/test_{name}.py" for name in ("audience", "lifecycle", "supervisor", "audit")),
    "properties/test_machine.py",
    "properties/test_world.py",
]
#: It asks a class for its methods, and would be given mutants.
LISTS_METHODS = "tests/test_bulletin.py::test_ctrl_c_waits_for_whoever_writes_in_the_ledger"
SETTINGS = f"""
[tool.mutmut]
source_paths = ["supervisor"]
only_mutate = {MUTATED}
also_copy = ["properties", "docs", "README.md", ".ci"]
pytest_add_cli_args_test_selection = {TESTS}
pytest_add_cli_args = ["-p", "no:cacheprovider", "--deselect", "{LISTS_METHODS}"]
timeout_multiplier = 3.0
timeout_constant = 2.0
"""


def decorate_afterwards(source: str) -> str:
    """The same module, its decorated methods decorated at the end of their class."""
    lines = source.splitlines()
    for node in reversed([node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)]):
        decorated = [
            (method.decorator_list[0], method.name)
            for method in node.body
            if isinstance(method, ast.FunctionDef) and len(method.decorator_list) == 1
        ]
        assert node.end_lineno is not None
        end = node.end_lineno
        for decorator, name in reversed(decorated):
            if isinstance(decorator, ast.Name) and decorator.id in DECORATORS:
                lines.insert(end, f"    {name} = {decorator.id}({name})")
        for decorator, _ in reversed(decorated):
            if isinstance(decorator, ast.Name) and decorator.id in DECORATORS:
                del lines[decorator.lineno - 1]
    return "\n".join([*lines, ""])


def main(children: str = "2") -> int:
    with tempfile.TemporaryDirectory() as place:
        copy = Path(place) / "copy"
        shutil.copytree(ROOT, copy, ignore=shutil.ignore_patterns(".git", ".venv", "__pycache__", "mutants"))
        for pattern in MUTATED:
            for path in copy.glob(pattern):
                path.write_text(decorate_afterwards(path.read_text()))
        with (copy / "pyproject.toml").open("a") as file:
            file.write(SETTINGS)
        os.environ["WS_SUPERVISOR_TEST_CPU"] = "20"  # of what goes round for ever, no more than this is needed
        subprocess.run([sys.executable, "-m", "mutmut", "run", "--max-children", children], cwd=copy, check=False)
        return subprocess.run([sys.executable, "-m", "mutmut", "results"], cwd=copy, check=False).returncode


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
