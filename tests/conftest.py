"""Every test may name the requirements it shows; ``--requirements`` writes their tests into the page of them."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.requirements import PAGE, rows, shown_by, with_tests

SHOWN = pytest.StashKey[dict[str, set[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--requirements", action="store_true", help=f"write the collected tests into {PAGE.name}")


@pytest.hookimpl(tryfirst=True)  # before anything is deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    shown = config.stash[SHOWN] = shown_by(items)
    unknown = shown.keys() - rows(PAGE.read_text()).keys()
    if unknown:
        raise pytest.UsageError(f"{', '.join(sorted(unknown))}: not in {PAGE}")
    if config.getoption("--requirements"):
        PAGE.write_text(with_tests(PAGE.read_text(), shown))


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down what has passed, for the gate; a skipped test has not."""
    file = os.environ.get("WS_SUPERVISOR_PASSED")
    if file is not None and report.when == "call" and report.outcome == "passed":
        with Path(file).open("a") as passed:
            passed.write(report.nodeid.split("[")[0] + "\n")
