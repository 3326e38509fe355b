"""Every test may name the requirements it shows; ``--requirements`` writes their tests into the page of them."""

from __future__ import annotations

from collections import defaultdict
from pathlib import Path

import pytest

PAGE = Path(__file__).parent.parent / "docs" / "requirements.md"
NOT_YET = "not yet"
SHOWN = pytest.StashKey[dict[str, set[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--requirements", action="store_true", help=f"write the collected tests into {PAGE.name}")


@pytest.hookimpl(tryfirst=True)  # before anything is deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    shown = config.stash[SHOWN] = shown_by(items)
    unknown = shown.keys() - {
        row.split("|")[1].strip() for row in PAGE.read_text().splitlines() if row.startswith("| R")
    }
    if unknown:
        raise pytest.UsageError(f"{', '.join(sorted(unknown))}: not in {PAGE}")
    if config.getoption("--requirements"):
        PAGE.write_text(with_tests(PAGE.read_text(), shown))


def shown_by(items: list[pytest.Item]) -> dict[str, set[str]]:
    """The tests that carry each number, parametrized ones once."""
    shown: dict[str, set[str]] = defaultdict(set)
    for item in items:
        for marker in item.iter_markers("req"):
            for number in marker.args:
                shown[number].add(item.nodeid.split("[")[0])
    return shown


def with_tests(page: str, shown: dict[str, set[str]]) -> str:
    """The page with its last column made anew."""
    lines = []
    for line in page.splitlines():
        if line.startswith("| R"):
            _, number, sentence, *_ = line.split("|")
            tests = "<br>".join(f"`{name}`" for name in sorted(shown.get(number.strip(), ()))) or NOT_YET
            line = f"|{number}|{sentence}| {tests} |"
        lines.append(line)
    return "\n".join([*lines, ""])
