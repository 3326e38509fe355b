"""Run the checks against whatever owns connections, and say what was found: what ``ws-supervisor verify`` does."""

from __future__ import annotations

import enum
import json
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator
from typing import Any

import attrs

from .._words.profiles import Profile, choose_profile
from .checks import CHECKS, Budget, Check
from .subject import Finding, Lab, NotHere
from .suites import CATEGORIES

#: Apple's system counts the resident set in bytes, the others in kilobytes.
_MAXRSS_PER_MB = 1024 * 1024 if sys.platform == "darwin" else 1024
#: How much of a finding is told; the steps of Hypothesis fit.
_MOST_LINES = 60
#: What may be asked for, besides the name of a check.
WORDS = (*CATEGORIES, "all", "unit", "integration", "e2e", "regression")


class Outcome(enum.Enum):
    """What became of one check."""

    HELD = "held"
    BROKEN = "broken"
    NOT_HERE = "not here"


@attrs.frozen(kw_only=True)
class Row:
    """One check at one door."""

    check: str
    category: str
    requirements: tuple[str, ...]
    door: str
    level: str
    outcome: Outcome
    #: What convicts, or why it was not made; else empty.
    text: str
    #: Seconds since the epoch, when it began.
    at: float
    seconds: float


@attrs.frozen(kw_only=True)
class Report:
    """Everything that was found."""

    rows: tuple[Row, ...]
    seed: int
    examples: int
    profile: str
    seconds: float
    #: The most memory that this process has held so far, in megabytes.
    peak_mb: float

    @property
    def broken(self) -> tuple[Row, ...]:
        """What convicts."""
        return tuple(row for row in self.rows if row.outcome is Outcome.BROKEN)

    @property
    def exercised(self) -> int:
        """How many rows were tried at all; none is a failure too."""
        return sum(row.outcome is not Outcome.NOT_HERE for row in self.rows)

    @property
    def acquitted(self) -> bool:
        """Whether something was tried, and nothing found."""
        return bool(self.exercised) and not self.broken

    def by_requirement(self) -> dict[str, Outcome]:
        """The verdict on each: broken if any of its rows is, not here if none was tried."""
        verdicts: dict[str, list[Outcome]] = defaultdict(list)
        for row in self.rows:
            for number in row.requirements:
                verdicts[number].append(row.outcome)
        order = (Outcome.BROKEN, Outcome.HELD, Outcome.NOT_HERE)
        return {number: next(it for it in order if it in seen) for number, seen in sorted(verdicts.items())}

    def as_json(self) -> str:
        """For machines: peak memory, timings, how many cleanups held, key mismatches, and all evidence."""
        cleanup = [row for row in self.rows if row.category == "cleanup" and row.outcome is not Outcome.NOT_HERE]
        held = sum(row.outcome is Outcome.HELD for row in cleanup)
        summary: dict[str, Any] = {
            "acquitted": self.acquitted,
            "exercised": self.exercised,
            "seed": self.seed,
            "examples": self.examples,
            "profile": self.profile,
            "seconds": round(self.seconds, 3),
            "peak_mb": round(self.peak_mb, 1),
            "cleanup_success_rate": held / len(cleanup) if cleanup else None,
            "mismatches": [row.text for row in self.broken if "mismatch" in row.text],
            "requirements": {number: outcome.value for number, outcome in self.by_requirement().items()},
            "rows": [attrs.asdict(row, value_serializer=_plain) for row in self.rows],
        }
        return json.dumps(summary, indent=2)


def _plain(_: object, __: object, value: Any) -> Any:
    return value.value if isinstance(value, Outcome) else value


def verify(
    labs: Iterable[Lab],
    words: Collection[str] = ("all",),
    *,
    examples: int = 20,
    seed: int = 0,
    fail_fast: bool = False,
    profile: Profile | None = None,
    begin: Callable[[str], None] = lambda check: None,
    progress: Callable[[Row], None] = lambda row: None,
) -> Report:
    """Make every check that `words` ask for, in every lab; `begin` is called before each, `progress` after.

    `words` are categories, levels, or names of checks; ValueError for one that is none of them. `examples` bounds how
    much each random check tries, `seed` is where it begins. With `fail_fast` it ends at the first finding.
    """
    unknown = set(words) - set(WORDS) - {check.name for check in CHECKS}
    if unknown:
        raise ValueError(f"unknown: {', '.join(sorted(unknown))}; known are {', '.join(WORDS)}, and names of checks")
    chosen = choose_profile() if profile is None else profile
    budget = Budget(examples, seed, chosen.memory_growth_mb, chosen.stress_cycles)
    started, rows = time.monotonic(), []
    for row in _rows(labs, words, budget, begin):
        rows.append(row)
        progress(row)
        if fail_fast and row.outcome is Outcome.BROKEN:
            break
    return Report(
        rows=tuple(rows),
        seed=seed,
        examples=examples,
        profile=chosen.name,
        seconds=time.monotonic() - started,
        peak_mb=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / _MAXRSS_PER_MB,
    )


def _rows(labs: Iterable[Lab], words: Collection[str], budget: Budget, begin: Callable[[str], None]) -> Iterator[Row]:
    for lab in labs:
        for category in CATEGORIES:
            for check in CHECKS:
                if check.category == category and lab.door in check.doors and check.words(lab.door) & set(words):
                    begin(check.sentence)
                    yield _make(check, lab, budget)


def _make(check: Check, lab: Lab, budget: Budget) -> Row:
    at, started = time.time(), time.monotonic()
    outcome, text = Outcome.HELD, ""
    try:
        check.run(lab, budget)
    except BaseException as exception:  # noqa: ASYNC103, BLE001 - what must get out, `_judge` raises
        outcome, text = _judge(exception)
    return Row(
        check=check.name,
        category=check.category,
        requirements=check.requirements,
        door=lab.door,
        level=check.level.value if lab.door == "memory" else "e2e",
        outcome=outcome,
        text=text,
        at=at,
        seconds=time.monotonic() - started,
    )


def _judge(exception: BaseException) -> tuple[Outcome, str]:
    leaves = list(_leaves(exception))
    for leaf in leaves:
        if isinstance(leaf, KeyboardInterrupt | SystemExit):
            raise exception
    for leaf in leaves:
        if isinstance(leaf, Finding):
            return Outcome.BROKEN, _told(leaf)
    for leaf in leaves:
        if isinstance(leaf, NotHere):
            return Outcome.NOT_HERE, str(leaf)
    told = [leaf if str(leaf) or leaf.__cause__ is None else leaf.__cause__ for leaf in leaves[:3]]
    return Outcome.BROKEN, "; ".join(f"{type(leaf).__name__}: {_told(leaf)}" for leaf in told)


def _told(exception: BaseException) -> str:
    """What it says, and what has been noted on it: the steps that Hypothesis took, above all."""
    lines = [str(exception), *(line for note in getattr(exception, "__notes__", ()) for line in note.splitlines())]
    return "\n      ".join(lines[:_MOST_LINES])


def _leaves(exception: BaseException) -> Iterator[BaseException]:
    if isinstance(exception, BaseExceptionGroup):
        for inner in exception.exceptions:
            yield from _leaves(inner)
    else:
        yield exception
