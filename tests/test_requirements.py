"""The page of requirements is what the markers of the tests say."""

from __future__ import annotations

import pytest

from tests.conftest import PAGE, SHOWN, with_tests


def test_the_page_names_the_tests_that_exist(request: pytest.FixtureRequest) -> None:
    if request.config.args != request.config.getini("testpaths"):
        return  # only a run of everything knows all tests
    shown = request.config.stash[SHOWN]
    assert with_tests(PAGE.read_text(), shown) == PAGE.read_text(), "run: pytest --collect-only -q --requirements"
