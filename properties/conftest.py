from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings

from tests.conftest import no_endless_test as no_endless_test
from tests.conftest import pytest_runtest_logreport as pytest_runtest_logreport

# The default run tries the same examples every time; `-m slow` tries others, and says how to repeat what it finds.
settings.register_profile(
    "default", derandomize=True, deadline=None, database=None, suppress_health_check=[HealthCheck.too_slow]
)
settings.load_profile("default")


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--seed", type=int, help="play the property world of this seed only")


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """Thousands of connections fail on purpose; nobody wants to read that."""
    caplog.set_level("CRITICAL", "supervisor")
