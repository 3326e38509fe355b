"""Ledgers that are broken in one place each; the worlds must convict every one.

Run one with ``python -m properties.mutants NAME``.
"""

from __future__ import annotations

import importlib
import logging
import os
import signal
import sys
from typing import Any

import trio

from properties.world import run

CONVICTED = 3
SEEDS = 200
#: Task steps, and seconds, after which a broken world is taken for endless. Sound ones take 200 steps on average.
ENDLESS_STEPS = 50_000
ENDLESS_SECONDS = 6


def nothing(*args: Any, **kwargs: Any) -> None:
    """Instead of something."""


MUTANTS: dict[str, tuple[str, Any]] = {
    "claims beyond the limit": ("roster.Roster.full", property(lambda self: False)),
    "a token is not given back": ("ledger.Ledger._give_back", nothing),
    "the evicted keep their claim": ("ledger.Ledger._leave", nothing),
    "rooms are forgotten": ("memberships.Memberships.leave_all", nothing),
    "nobody is set aside": ("ledger.Ledger._set_aside", nothing),
    "heirs are forgotten": ("seats.Seats.give_back", lambda self, stay: self.limiter.release_on_behalf_of(stay)),
    "the keeper sleeps on": ("stay.User.ring_by", nothing),
    "users are not closed": ("ledger.Ledger.close_user", nothing),
    "nobody is forgotten": ("ledger.Ledger.forget", nothing),
    "who waits is not promoted": ("ledger.Ledger._promote", nothing),
    "handlers are not rearmed": ("ledger.Ledger._rearm", nothing),
    "activity is not kept in order": (
        "ledger.Ledger.touch",
        lambda self, stay: setattr(stay, "last_active", trio.current_time()),
    ),
    "activity does not count": ("ledger.Ledger.touch", nothing),
}


class Patience(trio.abc.Instrument):
    """Ends the process when a world does not come to its end."""

    steps = 0

    def before_run(self) -> None:
        self.steps = 0
        signal.alarm(ENDLESS_SECONDS)

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        self.steps += 1
        if self.steps > ENDLESS_STEPS:
            os._exit(CONVICTED)


def main(name: str) -> int:
    """0 if every world is well, `CONVICTED` if one is not."""
    logging.getLogger("supervisor").setLevel(logging.CRITICAL + 1)
    patience = Patience()
    if name != "none":
        place, replacement = MUTANTS[name]
        module, cls, attribute = place.split(".")
        owner = getattr(importlib.import_module(f"supervisor._decisions.{module}"), cls)
        setattr(owner, attribute, replacement)
    try:
        well = not any(run(seed, patience).problems for seed in range(SEEDS))
    except BaseException:  # noqa: BLE001 - what is broken may break in any way
        well = False
    return 0 if well else CONVICTED


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
