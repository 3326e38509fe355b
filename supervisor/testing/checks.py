"""What a check is: a function of a lab. What it raises as a `Finding` convicts the subject."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Callable
from typing import Any

import attrs

from .subject import Lab


class Level(enum.Enum):
    """How much of the house a check needs."""

    UNIT = "unit"
    INTEGRATION = "integration"


@attrs.frozen
class Check:
    """One check: what it shows, and where it can be made."""

    name: str
    category: str
    requirements: tuple[str, ...]
    doors: tuple[str, ...]
    level: Level
    run: Callable[[Lab, Budget], None]

    @property
    def sentence(self) -> str:
        """Its name, as words."""
        return self.name.replace("_", " ")

    def words(self, door: str) -> frozenset[str]:
        """By which words it is asked for, at one door."""
        level = self.level.value if door == "memory" else "e2e"
        reported = {"regression"} if self.category == "scenarios" else set()
        return frozenset({"all", self.category, self.name, level} | reported)


@attrs.frozen
class Budget:
    """How much is to be tried, and by which seed."""

    examples: int = 20
    seed: int = 0
    #: From the environment's profile.
    growth_mb: float = 100
    cycles: int = 100


#: Every check there is; the modules of `suites` fill it.
CHECKS: list[Check] = []
EVERYWHERE = ("memory", "sockets", "deployed")
OURS = ("memory", "sockets")
MEMORY = ("memory",)


def check(
    *requirements: str, doors: tuple[str, ...] = EVERYWHERE, level: Level = Level.INTEGRATION
) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Make a check of an ``async`` function of a lab and a budget, or of a plain one that runs the lab itself."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        category = function.__module__.rpartition(".")[2]

        def run(lab: Lab, budget: Budget) -> None:
            if inspect.iscoroutinefunction(function):
                lab.run(budget.seed, function, lab, budget)
            else:
                function(lab, budget)

        CHECKS.append(Check(function.__name__, category, requirements, doors, level, run))
        return function

    return register
