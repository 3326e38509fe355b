"""Every decision module agrees with its model."""

from __future__ import annotations

import pytest
from hypothesis import settings

from properties import decisions


@pytest.mark.req("R01", "R03", "R10", "R39", "R52")
@pytest.mark.parametrize("machine", decisions.MACHINES, ids=lambda machine: machine.__name__)
def test_it_does_what_its_model_does(machine) -> None:
    case = machine.TestCase
    case.settings = settings(max_examples=100, stateful_step_count=25)
    case("runTest").runTest()


@pytest.mark.req("R03", "R06", "R12", "R13")
@pytest.mark.parametrize("function", decisions.FUNCTIONS, ids=lambda function: function.__name__)
def test_it_says_what_its_model_says(function) -> None:
    function(300)
