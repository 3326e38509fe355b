"""The page of requirements is what the markers of the tests say, and the gate shuts when it should."""

from __future__ import annotations

import pytest

from tests import requirements
from tests.conftest import SHOWN
from tests.requirements import PAGES, PENDING, complaints, rows, with_tests


def test_the_page_names_the_tests_that_exist(request: pytest.FixtureRequest) -> None:
    if request.config.args != request.config.getini("testpaths"):
        return  # only a run of everything knows all tests
    shown = request.config.stash[SHOWN]
    for page in PAGES:
        assert with_tests(page.read_text(), shown) == page.read_text(), "run: pytest --collect-only -q --requirements"


ROWS = "| R01 | exact | `a.py::one`<br>`a.py::two` |\n| R25 | later | not yet |\n"


@pytest.mark.req("R46")
@pytest.mark.parametrize(
    ("page", "passed", "told"),
    [
        (ROWS, {"a.py::one", "a.py::two"}, []),
        (ROWS, {"a.py::one"}, ["R01: a.py::two has not passed"]),
        (ROWS.replace("`a.py::one`<br>`a.py::two`", "not yet"), set(), ["R01 is due, and no test shows it"]),
        (ROWS.replace("not yet", "`a.py::one`"), {"a.py::one", "a.py::two"}, ["R25 has tests, so it is not pending"]),
    ],
)
def test_the_gate(page: str, passed: set[str], told: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(requirements, "PENDING", frozenset({"R25"}))
    found = list(complaints(page, frozenset(passed)))
    assert len(found) == len(told)
    assert all(complaint.startswith(expected) for complaint, expected in zip(found, told, strict=True))


@pytest.mark.req("R46")
def test_every_row_is_due_or_pending() -> None:
    everybody = {number: tests for page in PAGES for number, tests in rows(page.read_text()).items()}
    assert everybody.keys() >= PENDING
    assert {number for number, tests in everybody.items() if not tests} == PENDING


@pytest.mark.req("R46")
def test_a_skipped_test_has_not_passed(pytester: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    file = pytester.path / "passed"
    pytester.makeconftest("from tests.conftest import pytest_runtest_logreport")
    pytester.makepyfile(
        "import pytest\ndef test_one(): pass\ndef test_two(): pytest.skip()\n"
        "@pytest.mark.xfail\ndef test_three(): assert False\n"
    )
    with monkeypatch.context() as only_inside:
        only_inside.setenv("WS_SUPERVISOR_PASSED", str(file))
        pytester.runpytest_inprocess("-q")
    assert file.read_text().splitlines() == ["test_a_skipped_test_has_not_passed.py::test_one"]


pytest_plugins = ["pytester"]
