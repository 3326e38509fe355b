"""Random worlds: whoever comes, fails and leaves in whatever order, nothing is ever inconsistent and nothing is left.

Replay one: ``pytest properties --seed 1234``.
"""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from properties.mutants import CONVICTED, MUTANTS
from properties.world import run

CHUNK = 100


def convict(seed: int) -> None:
    world = run(seed)
    assert not world.problems, f"replay with: pytest properties --seed {seed}\n{world.problems[:3]}"


@pytest.mark.req("R01", "R10", "R15", "R16", "R42")
@pytest.mark.parametrize("chunk", range(4))
def test_no_orphan_in_any_world(chunk: int, request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--seed")
    for number in [seed] if seed is not None else range(chunk * CHUNK, (chunk + 1) * CHUNK):
        convict(number)


@pytest.mark.slow
@pytest.mark.req("R10", "R42")
def test_no_orphan_in_thousands_of_worlds() -> None:
    for seed in range(10_000, 13_000):
        convict(seed)


def test_the_same_seed_is_the_same_run() -> None:
    first, second = run(7), run(7)
    assert (first.steps, first.admitted, first.closed) == (second.steps, second.admitted, second.closed)


@pytest.mark.req("R10")
@pytest.mark.parametrize("mutant", MUTANTS)
def test_the_worlds_convict_a_broken_ledger(mutant: str) -> None:
    """In a process of its own, because what is broken may never end; that convicts it too."""
    done = subprocess.run([sys.executable, "-m", "properties.mutants", mutant], capture_output=True, check=False)
    assert done.returncode in (CONVICTED, -signal.SIGALRM), done.stderr.decode()[-500:]


def test_what_is_not_broken_is_acquitted() -> None:
    done = subprocess.run([sys.executable, "-m", "properties.mutants", "none"], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()[-500:]
