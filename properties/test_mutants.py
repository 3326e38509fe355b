"""A core that is broken in one place is convicted, whatever the place; the one that is not is acquitted."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

import supervisor
from properties.mutants import CONVICTED, MUTANTS, Mutant


def convicted(name: str) -> bool:
    """In a process of its own, because what is broken may never end; that convicts it too."""
    done = subprocess.run([sys.executable, "-m", "properties.mutants", name], capture_output=True, check=False)
    assert done.returncode in (0, CONVICTED, -signal.SIGALRM), done.stderr.decode()[-500:]
    return done.returncode != 0


@pytest.mark.slow
@pytest.mark.req("R44")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_a_broken_core_is_convicted(mutant: str) -> None:
    assert convicted(mutant)


@pytest.mark.slow
def test_what_is_not_broken_is_acquitted() -> None:
    assert not convicted("none")


@pytest.mark.parametrize("mutant", MUTANTS.values(), ids=MUTANTS)
def test_what_is_to_be_broken_is_still_there(mutant: Mutant) -> None:
    source = Path(supervisor.__file__).parent.joinpath(*mutant.module.split(".")).with_suffix(".py").read_text()
    assert source.count(mutant.before) == 1


@pytest.mark.req("R44")
@pytest.mark.parametrize("mutant", ["another key for cleaning up"])
def test_some_of_the_broken_are_convicted_at_once(mutant: str) -> None:
    assert convicted(mutant)
