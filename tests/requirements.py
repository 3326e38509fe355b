"""The pages of requirements and of attacks, and the gate: what is due has a test that has passed.

``python -m tests.requirements PASSED`` reads the file that a run has written because ``WS_SUPERVISOR_PASSED`` named it.
"""

from __future__ import annotations

import re
import sys
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path

import pytest

from supervisor.testing.checks import CHECKS, Level
from supervisor.testing.suites import CATEGORIES

DOCS = Path(__file__).parent.parent / "docs"
#: Requirements are called R01, attacks A01.
PAGES = (DOCS / "requirements.md", DOCS / "attacks.md")
_ROW = re.compile(r"\| ([RA]\d\d) \|")
NOT_YET = "not yet"
#: Rows that are not due yet; whoever shows one takes it off this list, and it never comes back.
PENDING: frozenset[str] = frozenset()
#: Why a test may not have been tried where the gate is asked: tools that not every machine can have.
NO_PROMTOOL = "promtool is in Debian's package prometheus"
NO_SPIN = "spin is in Debian's package spin, and needs a C compiler"
NO_BROWSER = "a browser is in Debian's package chromium, and playwright drives it"
EXCUSES = (NO_PROMTOOL, NO_BROWSER, NO_SPIN)
_TABLE = "<!-- generated from the checks of supervisor.testing -->"


def rows(page: str) -> dict[str, frozenset[str]]:
    """Each requirement with the tests that the page names."""
    found = {}
    for line in page.splitlines():
        if row := _ROW.match(line):
            tests = line.split("|")[3]
            found[row[1]] = frozenset(name.strip(" `") for name in tests.split("<br>")) - {NOT_YET}
    return found


def shown_by(items: Iterable[pytest.Item]) -> dict[str, set[str]]:
    """The tests that carry each number, parametrized ones once."""
    shown: dict[str, set[str]] = defaultdict(set)
    for item in items:
        for marker in item.iter_markers("req"):
            for number in marker.args:
                shown[number].add(item.nodeid.split("[")[0])
    return shown


def with_tests(page: str, shown: Mapping[str, set[str]]) -> str:
    """The page with its last column, and its table of checks if it has one, made anew."""
    above, table, _ = page.partition(_TABLE)
    lines = []
    for line in above.splitlines():
        if row := _ROW.match(line):
            sentence = line.split("|")[2]
            tests = "<br>".join(f"`{name}`" for name in sorted(shown.get(row[1], ()))) or NOT_YET
            line = f"| {row[1]} |{sentence}| {tests} |"
        lines.append(line)
    return "\n".join([*lines, *([_TABLE, "", *_checks_by_level()] if table else []), ""])


def _checks_by_level() -> Iterable[str]:
    yield "| | check | unit | integration | e2e | regression |"
    yield "|---|---|---|---|---|---|"
    for category in CATEGORIES:
        for check in CHECKS:
            if check.category == category:
                memory, sockets = "memory" in check.doors, "sockets" in check.doors
                marks = (
                    memory and check.level is Level.UNIT,
                    memory and check.level is Level.INTEGRATION,
                    sockets,
                    category == "scenarios",
                )
                cells = " | ".join("✓" if mark else "" for mark in marks)
                yield f"| {category} | {check.sentence} ({', '.join(check.requirements)}) | {cells} |"


def complaints(page: str, passed: frozenset[str]) -> Iterable[str]:
    """Why the gate stays shut: a row that is due and has no test, or a test named on the page that has not passed."""
    for number, tests in rows(page).items():
        if not tests and number not in PENDING:
            yield f"{number} is due, and no test shows it"
        if tests and number in PENDING:
            yield f"{number} has tests, so it is not pending any more"
        yield from (f"{number}: {name} has not passed" for name in sorted(tests - passed))


def main(file: str) -> int:
    """0 if everything that is due has passed."""
    lines = Path(file).read_text().splitlines()
    untried = sorted({(line.removesuffix(f" {why}"), why) for line in lines for why in EXCUSES if line.endswith(why)})
    sys.stdout.writelines(f"not tried here, {why}: {name}\n" for name, why in untried)
    passed = frozenset([*lines, *(name for name, _ in untried)])
    found = [complaint for page in PAGES for complaint in complaints(page.read_text(), passed)]
    sys.stdout.write("\n".join([*found, f"{len(found)} complaints about the requirements", ""]))
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
