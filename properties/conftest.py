from __future__ import annotations

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="play the property world of this seed only")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of connections fail on purpose; nobody wants to read that."""
    caplog.set_level("CRITICAL", "supervisor")
