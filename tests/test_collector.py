"""The collector, tuned and put back."""

from __future__ import annotations

import gc

import pytest

from supervisor import tune_collector
from supervisor._server.collector import THRESHOLDS


@pytest.fixture(autouse=True)
def put_back():
    before = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*before)


def test_what_exists_is_passed_over_and_what_comes_is_looked_at_rarely() -> None:
    assert gc.get_freeze_count() == 0
    tune_collector()
    assert gc.get_freeze_count() > 1000
    assert gc.get_threshold() == THRESHOLDS
