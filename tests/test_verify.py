"""Verify: what it says, how it exits, and that it works against a server somewhere."""

from __future__ import annotations

import contextlib
import json
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator

import attrs
import pytest
import trio
import trustme

from supervisor import hub
from supervisor.testing import Outcome, Report, Row, verify
from supervisor.testing.checks import CHECKS, Budget, Check, Level
from supervisor.testing.labs import Deployed, Memory
from supervisor.testing.subject import Finding, NotHere
from supervisor.testing.suites import CATEGORIES
from supervisor.testing.verdict import line_of, replay, verdict
from supervisor.testing.verify import WORDS


def row_of(outcome: Outcome = Outcome.HELD, text: str = "", **fields: object) -> Row:
    known = {"check": "some_check", "category": "limits", "requirements": ("R01",), "door": "memory", "level": "unit"}
    return Row(**{**known, "outcome": outcome, "text": text, "at": 0.0, "seconds": 0.25, **fields})


def report_of(*rows: Row) -> Report:
    return Report(rows=rows, seed=7, examples=20, profile="test", seconds=1.5, peak_mb=50.0)


@pytest.mark.req("R36")
def test_the_verdict_on_a_requirement_is_that_of_its_worst_row() -> None:
    rows = [
        row_of(),
        row_of(Outcome.BROKEN, "Expected 5 connections, got 10"),
        row_of(requirements=("R02",)),
        row_of(Outcome.NOT_HERE, "not from here", requirements=("R02", "R03")),
    ]
    report = report_of(*rows)
    assert report.by_requirement() == {"R01": Outcome.BROKEN, "R02": Outcome.HELD, "R03": Outcome.NOT_HERE}
    assert (report.acquitted, report.exercised) == (False, 3)
    told = "\n".join(verdict(report, app="my.app:handler"))
    assert "held: R02\nBROKEN: R01\nnot tried here: R03" in told
    assert "✗ R01 some check: Expected 5 connections, got 10" in told
    assert "replay: ws-supervisor verify some_check --seed 7 --examples 20 --door memory --app my.app:handler" in told
    assert told.endswith("convicted: 1 of 3 checks in 1.5 s, peak 50 MB")


@pytest.mark.req("R36")
def test_nothing_tried_is_a_failure() -> None:
    report = report_of(row_of(Outcome.NOT_HERE, "not from here"))
    assert not report.acquitted
    assert list(verdict(report))[-1] == "convicted: not a single check could be made"
    assert not report_of().acquitted


def test_a_row_is_a_line() -> None:
    assert line_of(row_of()) == "✓ memory   limits    some check  (0.2 s)"
    assert line_of(row_of(Outcome.NOT_HERE, "why")).startswith("– memory")
    assert replay(report_of(), row_of(), url="wss://h/ws").endswith("--examples 20 --url wss://h/ws")


@pytest.mark.req("R36")
def test_the_report_is_json() -> None:
    cleanup = {"category": "cleanup"}
    report = report_of(row_of(), row_of(**cleanup), row_of(Outcome.BROKEN, "100 % key mismatch", **cleanup))
    summary = json.loads(report.as_json())
    assert summary["cleanup_success_rate"] == 0.5
    assert summary["mismatches"] == ["100 % key mismatch"]
    assert summary["requirements"] == {"R01": "broken"}
    assert summary["rows"][2]["outcome"] == "broken"
    assert (summary["peak_mb"], summary["seed"]) == (50.0, 7)


# -- running -------------------------------------------------------------------------------------------------------


def crashes(lab: object, budget: object) -> None:
    raise ExceptionGroup("both", [KeyError("a bug"), ExceptionGroup("inner", [Finding("what convicts")])])


def dies(lab: object, budget: object) -> None:
    raise KeyError("a bug")


def is_not_here(lab: object, budget: object) -> None:
    raise ExceptionGroup("one", [NotHere("nobody is")])


def is_interrupted(lab: object, budget: object) -> None:
    raise BaseExceptionGroup("one", [KeyboardInterrupt()])


@pytest.mark.req("R36")
def test_whatever_is_raised_becomes_a_row(monkeypatch) -> None:
    module = sys.modules["supervisor.testing.verify"]
    checks = [Check(f.__name__, "limits", ("R01",), ("memory",), Level.UNIT, f) for f in (crashes, dies, is_not_here)]
    monkeypatch.setattr(module, "CHECKS", checks)
    seen: list[Row] = []
    report = verify([Memory(hub)], ["unit"], progress=seen.append)
    assert [(row.outcome, row.text) for row in report.rows] == [
        (Outcome.BROKEN, "what convicts"),
        (Outcome.BROKEN, "KeyError: 'a bug'"),
        (Outcome.NOT_HERE, "nobody is"),
    ]
    assert seen == list(report.rows)
    assert len(verify([Memory(hub)], fail_fast=True).rows) == 1
    assert verify([Memory(hub)], ["e2e"]).rows == ()
    monkeypatch.setattr(module, "CHECKS", [attrs.evolve(checks[0], run=is_interrupted)])
    with pytest.raises(BaseExceptionGroup):
        verify([Memory(hub)])


def test_unknown_words_are_an_error() -> None:
    with pytest.raises(ValueError, match="unknown: nonsense; known are limits, ttl"):
        verify([Memory(hub)], ["limits", "nonsense"])


@pytest.mark.req("R36")
def test_every_check_is_found_by_its_words() -> None:
    assert {check.category for check in CHECKS} == set(CATEGORIES)
    assert len({check.name for check in CHECKS}) == len(CHECKS)
    for check in CHECKS:
        assert check.requirements
        for door in check.doors:
            words = check.words(door)
            assert {"all", check.category, check.name} <= words
            assert ("e2e" in words) is (door != "memory")
            assert words - {check.name} <= set(WORDS)


@pytest.mark.req("R36", "R08")
def test_the_profile_decides_what_is_too_much(monkeypatch) -> None:
    budgets: list[Budget] = []
    check = Check("c", "memory", ("R21",), ("memory",), Level.UNIT, lambda lab, budget: budgets.append(budget))
    monkeypatch.setattr(sys.modules["supervisor.testing.verify"], "CHECKS", [check])
    monkeypatch.setenv("WS_SUPERVISOR_ENV", "ci")
    report = verify([Memory(hub)], examples=3, seed=9)
    assert (report.profile, budgets) == ("ci", [Budget(3, 9, 50, 50)])


# -- somewhere else ------------------------------------------------------------------------------------------------


@contextlib.contextmanager
def deployed(*flags: str) -> Iterator[str]:
    """A server in a process of its own; its URL."""
    command = [sys.executable, "-m", "supervisor", "serve", "--port", "0", *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = next(line for line in process.stderr if "serving on" in line)
            yield line.split()[-1].replace("http", "ws") + "ws"
        finally:
            process.terminate()
            process.communicate()


@pytest.mark.slow
@pytest.mark.req("R36")
def test_a_deployed_server_is_verified_by_its_url(tmp_path) -> None:
    with deployed("--per-user", "3") as url:
        command = [sys.executable, "-m", "supervisor", "verify", "limits", "scenarios", "--url", url]
        path = tmp_path / "report.json"
        done = subprocess.run([*command, "--report", str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "acquitted" in done.stdout
    rows = json.loads(path.read_text())["rows"]
    assert {row["door"] for row in rows} == {"deployed"}
    assert {row["outcome"] for row in rows} == {"held"}
    assert len(rows) >= 5


@pytest.mark.req("R36")
def test_a_deployed_server_may_speak_tls(tmp_path) -> None:
    authority, files = trustme.CA(), {name: str(tmp_path / name) for name in ("ca", "cert", "key")}
    certificate = authority.issue_cert("127.0.0.1")
    authority.cert_pem.write_to_path(files["ca"])
    certificate.cert_chain_pems[0].write_to_path(files["cert"])
    certificate.private_key_pem.write_to_path(files["key"])
    with deployed("--certfile", files["cert"], "--keyfile", files["key"]) as url:
        assert url.startswith("wss://")
        trusting = Deployed(url, ssl_context=ssl.create_default_context(cafile=files["ca"]))
        assert verify([trusting], ["the_oldest_leaves_for_a_newcomer"]).acquitted
        assert "SSL" in verify([Deployed(url)], ["the_oldest_leaves_for_a_newcomer"]).broken[0].text


@pytest.mark.req("R36")
def test_without_its_token_nothing_can_be_tried() -> None:
    with deployed("--admin-token", "secret") as url:
        refused = verify([Deployed(url)], ["limits"])
        allowed = verify([Deployed(url, "secret")], ["the_oldest_leaves_for_a_newcomer"])
    assert {row.outcome for row in refused.rows} == {Outcome.NOT_HERE}
    assert not refused.acquitted
    assert "wants another token" in refused.rows[0].text
    assert allowed.acquitted, allowed.broken


@pytest.mark.req("R36")
def test_where_nobody_answers_nothing_is_acquitted() -> None:
    report = verify([Deployed("ws://127.0.0.1:1/ws")], ["the_oldest_leaves_for_a_newcomer"])
    assert "nobody answers as a supervisor does" in report.rows[0].text
    assert not report.acquitted


@pytest.mark.slow
@pytest.mark.req("R36")
def test_everything_fits_into_a_minute() -> None:
    """50 seconds on two cores is what is promised of ``verify all --examples 20``."""
    started = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "supervisor", "verify", "all", "--examples", "20"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout
    assert time.monotonic() - started <= 50


@pytest.mark.req("R36")
def test_a_check_that_never_ends_is_a_finding() -> None:
    async def waits_for_ever(lab: Memory) -> None:
        async with lab.open():
            await trio.sleep_forever()

    with pytest.raises(Finding, match="nothing happens any more"):
        Memory(hub).run(0, waits_for_ever, Memory(hub))
