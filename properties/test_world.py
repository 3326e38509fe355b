"""Random worlds: whoever comes, fails and leaves in whatever order, nothing is ever inconsistent and nothing is left.

Replay one: ``pytest properties --seed 1234``.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys

import pytest

from properties.schedules import play_one
from supervisor.testing.schedule import Fingerprint

CHUNK = 50
CHUNKS = 4
#: How many seeds CI tries, in two processes, beginning anywhere.
MANY = 10_000


@pytest.mark.req("R01", "R10", "R15", "R16", "R42")
@pytest.mark.parametrize("chunk", range(CHUNKS))
def test_no_orphan_in_any_world(chunk: int, request: pytest.FixtureRequest) -> None:
    seed = request.config.getoption("--seed")
    for number in [seed] if seed is not None else range(chunk * CHUNK, (chunk + 1) * CHUNK):
        world = play_one(number, Fingerprint())
        assert not world.problems, f"replay with: pytest properties --seed {number}\n{world.problems[:3]}"


@pytest.mark.slow
@pytest.mark.req("R10", "R42")
def test_no_orphan_in_ten_thousand_schedules(record_property) -> None:
    first = random.randrange(10**9)
    parts = [(first, first + MANY // 2), (first + MANY // 2, first + MANY)]
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "properties.schedules", *map(str, part)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        for part in parts
    ]
    schedules: set[str] = set()
    for process in processes:
        said, complaint = process.communicate()
        assert process.returncode == 0, complaint.decode()
        schedules.update(json.loads(said)["schedules"])
    record_property("distinct schedules", len(schedules))
    assert len(schedules) >= MANY * 0.999  # two worlds in which hardly anybody comes may be the same


def test_the_same_seed_is_the_same_run() -> None:
    first, second = Fingerprint(), Fingerprint()
    play_one(7, first)
    play_one(7, second)
    assert first.digest == second.digest


def test_another_seed_is_another_run() -> None:
    digests = set()
    for seed in range(50):
        fingerprint = Fingerprint()
        play_one(seed, fingerprint)
        digests.add(fingerprint.digest)
    assert len(digests) == 50
