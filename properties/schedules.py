"""Worlds by the thousand: ``python -m properties.schedules FIRST LAST``; it says as JSON how many schedules that was.

Every other world is sprinkled with more checkpoints than there are.
"""

from __future__ import annotations

import contextlib
import json
import logging
import sys

from properties.sprinkle import sprinkled
from supervisor.testing.schedule import Fingerprint
from supervisor.testing.world import World, play


def play_one(seed: int, fingerprint: Fingerprint) -> World:
    """The world of one seed, as it is always played here."""
    with sprinkled(seed) if seed % 2 else contextlib.nullcontext():
        return play(seed, fingerprint)


def main(first: int, last: int) -> int:
    logging.getLogger("supervisor").setLevel(logging.CRITICAL + 1)
    digests, steps, connections = [], 0, 0
    for seed in range(first, last):
        fingerprint = Fingerprint()
        world = play_one(seed, fingerprint)
        if world.problems:
            sys.stderr.write(f"replay with: pytest properties --seed {seed}\n{world.problems[:3]}\n")
            return 1
        digests.append(fingerprint.digest)
        steps += fingerprint.steps
        connections += len(world.model.guests)
    json.dump({"schedules": digests, "steps": steps, "connections": connections}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), int(sys.argv[2])))
