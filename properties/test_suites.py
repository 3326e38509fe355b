"""The checks convict the manager of the reports for what was reported, and acquit ours; by the same code."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from properties.reported import Reported
from properties.shapes import SHAPES
from supervisor import hub
from supervisor.testing import verify
from supervisor.testing.checks import CHECKS, Budget
from supervisor.testing.labs import Memory, Sockets
from supervisor.testing.suites import CATEGORIES
from supervisor.testing.verify import Outcome

#: What each category must find in the manager, in the words of the reports.
REPORTED = {
    "limits": ["Expected 5 connections, got 10", "HARD LIMIT: User still over limit after cleanup (20/20)"],
    "ttl": ["still there 360 s later, expected to end after 300 s", "25 orphaned user_connections remain"],
    "memory": ["MB exceeds acceptable threshold"],
    "cleanup": ["127 orphaned user_connections remain", "100 % key mismatch", "0 of 25 could be ended by hand"],
    "stress": ["150 orphaned user_connections remain"],
    "scenarios": ["100 % key mismatch", "HARD LIMIT: User still over limit after cleanup (5/5)"],
}
#: Checks that the manager passes, or that it cannot be put to; each with its reason.
SPARED = {
    "users_do_not_share_a_limit": "it counts every user apart, too",
    "being_spoken_to_does_not": "it cannot publish",
    "no_connection_is_held_when_it_is_gone": "that is told of a supervisor's connections",
    "nothing_is_left_for_the_collector": "what it leaks, it holds",
    "random_worlds_audited_after_every_step": "it has no audit",
    "random_steps_agree_with_a_model": "its reasons are not told",
}


@pytest.mark.req("R44")
@pytest.mark.parametrize("category", CATEGORIES)
def test_every_category_convicts_the_reported_manager(category: str) -> None:
    report = verify([Reported()], [category])
    told = "\n".join(row.text for row in report.broken)
    for reason in REPORTED[category]:
        assert reason in told
    spared = {row.check for row in report.rows if row.outcome is not Outcome.BROKEN}
    assert spared <= SPARED.keys(), "a check that convicts nobody here"


def each_check() -> list:
    return [
        pytest.param(
            check,
            lab,
            id=f"{check.category}-{check.name}-{lab.door}",
            marks=() if lab.door == "memory" else pytest.mark.slow,
        )
        for lab in (Memory(hub), Sockets(hub))
        for check in CHECKS
        if lab.door in check.doors
    ]


@pytest.mark.req("R36", "R44")
@pytest.mark.parametrize(("check", "lab"), each_check())
def test_ours_is_acquitted(check, lab) -> None:
    check.run(lab, Budget(examples=20, growth_mb=50, cycles=50))


@pytest.mark.slow
@pytest.mark.req("R36")
@pytest.mark.parametrize("handler", SHAPES, ids=lambda handler: handler.__name__)
def test_no_honest_handler_is_convicted(handler) -> None:
    report = verify([Memory(handler)], ["limits", "ttl", "cleanup", "stress", "scenarios"], examples=10)
    assert report.broken == ()
    assert report.exercised >= 25


def run_verify(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "supervisor", "verify", *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parent.parent)


@pytest.mark.req("R23", "R36", "R44")
def test_a_leaky_handler_is_convicted_by_the_name_of_the_leak() -> None:
    done = run_verify("no_connection_is_held_when_it_is_gone", "--app", "docs.examples.leaky_chat:handler")
    assert done.returncode == 1
    assert "100 connections are gone, and held by" in done.stdout
    assert "docs.examples.leaky_chat.SOCKETS" in done.stdout
    assert "a coroutine that has not ended: keep_alive" in done.stdout
    assert "replay: ws-supervisor verify no_connection_is_held_when_it_is_gone --seed 0" in done.stdout


@pytest.mark.slow
@pytest.mark.req("R23", "R36")
def test_its_tasks_and_files_are_named_too() -> None:
    name = "five_hundred_rapid_cycles_leave_no_task_and_no_file"
    done = run_verify(name, "--app", "docs.examples.leaky_chat:handler")
    assert done.returncode == 1
    assert "500 times task: docs.examples.leaky_chat.keep_alive is still running" in done.stdout
    assert "times file descriptor" in done.stdout
    assert "docs/examples/leaky_chat.py:" in done.stdout.rpartition("and by 20 more")[2]


@pytest.mark.req("R36")
def test_a_correct_handler_is_acquitted() -> None:
    done = run_verify("limits", "cleanup", "memory", "--door", "memory", "--app", "docs.examples.chat:handler")
    assert done.returncode == 0, done.stdout
    assert "acquitted" in done.stdout
