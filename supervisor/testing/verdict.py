"""How a report reads: a line for each check while it runs, then the verdict, and how to see a finding again."""

from __future__ import annotations

import shlex
from collections.abc import Iterator

from .verify import Outcome, Report, Row

_MARKS = {Outcome.HELD: "✓", Outcome.BROKEN: "✗", Outcome.NOT_HERE: "–"}


def line_of(row: Row) -> str:
    """One line while it runs."""
    sentence = row.check.replace("_", " ")
    why = f"\n      {row.text}" if row.text else ""
    return f"{_MARKS[row.outcome]} {row.door:<8} {row.category:<9} {sentence}  ({row.seconds:.1f} s){why}"


def verdict(report: Report, *, app: str | None = None, url: str | None = None) -> Iterator[str]:
    """What it all means: each requirement, each finding with the command that replays it, and one last sentence."""
    yield ""
    verdicts = report.by_requirement()
    for outcome, words in ((Outcome.HELD, "held"), (Outcome.BROKEN, "BROKEN"), (Outcome.NOT_HERE, "not tried here")):
        numbers = [number for number, it in verdicts.items() if it is outcome]
        if numbers:
            yield f"{words}: {' '.join(numbers)}"
    for row in report.broken:
        yield f"\n✗ {' '.join(row.requirements)} {row.check.replace('_', ' ')}: {row.text}"
        yield f"  replay: {replay(report, row, app=app, url=url)}"
    yield ""
    yield _last_sentence(report)


def _last_sentence(report: Report) -> str:
    figures = f"{report.exercised} checks in {report.seconds:.1f} s, peak {report.peak_mb:.0f} MB"
    if not report.exercised:
        return "convicted: not a single check could be made"
    if report.broken:
        return f"convicted: {len(report.broken)} of {figures}"
    return f"acquitted: {figures}"


def replay(report: Report, row: Row, *, app: str | None = None, url: str | None = None) -> str:
    """The command that makes this check again, alone and by the same seed."""
    command = ["ws-supervisor", "verify", row.check, "--seed", str(report.seed), "--examples", str(report.examples)]
    if url is not None:
        command += ["--url", url]
    else:
        command += ["--door", row.door] + (["--app", app] if app is not None else [])
    return shlex.join(command)
