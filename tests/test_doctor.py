"""Whether a machine is fit, what options there are, and where log lines go."""

from __future__ import annotations

import importlib.metadata
import json
import logging
import socket
import sys
import time

import pytest

from supervisor import Limits
from supervisor.cli.config import effective
from supervisor.cli.doctor import examine
from supervisor.cli.log import MAX_WAITING, LogLine, Spooler, TextLine


def states(port: int = 0, limits: Limits = Limits()) -> dict[str, str]:
    return {finding.what: finding.state for finding in examine("127.0.0.1", port, limits)}


def test_a_fit_machine() -> None:
    assert "ill" not in states(limits=Limits(total=10, lobby=10)).values()


def test_a_port_that_is_taken() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert states(taken.getsockname()[1])["the port"] == "ill"


def test_too_few_file_descriptors() -> None:
    assert states(limits=Limits(total=10_000_000))["file descriptors"] == "ill"


def test_another_package_of_our_name(monkeypatch: pytest.MonkeyPatch) -> None:
    owners = {"supervisor": ["websocket-supervisor", "supervisor"]}
    monkeypatch.setattr(importlib.metadata, "packages_distributions", lambda: owners)
    assert states()["the name supervisor"] == "ill"


# -- config ----------------------------------------------------------------------------------------------------


def test_options_say_where_they_come_from(monkeypatch: pytest.MonkeyPatch, tmp_path) -> None:
    monkeypatch.setenv("WS_SUPERVISOR_TOTAL", "7")
    monkeypatch.setenv("WS_SUPERVISOR_PER_USER", "3")
    found = {name: (value, source) for name, value, source in effective(("--per-user", "9", "--admin-token", "x"))}
    assert found["per_user"] == (9, "command line")
    assert found["total"] == (7, "environment, WS_SUPERVISOR_TOTAL")
    assert found["admin_token"] == ("***", "command line")
    assert found["idle_ttl"] == (300.0, "default")
    assert found["overflow_user"] == ("evict-oldest", "default")


def test_a_file_is_read_and_the_environment_wins(tmp_path) -> None:
    """In a process of its own: where the file is, is decided when the command line is imported."""
    import os
    import subprocess

    (tmp_path / "ws-supervisor.toml").write_text('[serve]\nper-user = 4\ntotal = 44\nlog-format = "json"\n')
    environ = {**os.environ, "WS_SUPERVISOR_TOTAL": "55"}
    command = [sys.executable, "-m", "supervisor", "config"]
    said = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=True).stdout
    rows = {line.split()[0]: line.split()[1:] for line in said.splitlines() if line}
    assert rows["per_user"] == ["4", "ws-supervisor.toml"]
    assert rows["log_format"] == ["json", "ws-supervisor.toml"]
    assert rows["total"] == ["55", "environment,", "WS_SUPERVISOR_TOTAL"]
    (tmp_path / "ws-supervisor.toml").write_text("[serve]\nper-uesr = 4\n")
    failed = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    assert failed.returncode != 0
    assert "per-uesr" in failed.stdout + failed.stderr


# -- log -------------------------------------------------------------------------------------------------------


def record(text: str, **extra: object) -> logging.LogRecord:
    return logging.makeLogRecord({"msg": text, "levelname": "INFO", **extra})


@pytest.mark.req("R35")
def test_a_line_of_json_has_the_fields_of_its_event() -> None:
    line = json.loads(LogLine().format(record("closed reason=idle", event={"event": "closed", "reason": "idle"})))
    assert (line["event"], line["reason"], line["level"], line["message"]) == (
        "closed",
        "idle",
        "info",
        "closed reason=idle",
    )
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        failed = record("failed", exc_info=sys.exc_info())
    assert "RuntimeError: boom" in json.loads(LogLine().format(failed))["traceback"]


@pytest.mark.req("R19", "R35")
def test_a_log_that_nobody_reads_holds_up_nobody_and_says_what_was_lost() -> None:
    spooler = Spooler()
    began = time.monotonic()
    for number in range(MAX_WAITING + 5):
        spooler.handle(record(f"line {number}"))
    assert time.monotonic() - began < 5
    assert spooler.lost == 5
    for _ in range(MAX_WAITING):
        spooler.waiting.get_nowait()
    spooler.handle(record("again"))
    assert [spooler.waiting.get_nowait().getMessage() for _ in range(2)] == [
        "5 log lines were lost: nobody read them",
        "again",
    ]


def test_a_waiting_line_holds_nothing_of_what_failed() -> None:
    spooler = Spooler()
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        spooler.handle(record("failed", exc_info=sys.exc_info()))
    waiting = spooler.waiting.get_nowait()
    assert waiting.exc_info is None
    assert "RuntimeError: boom" in waiting.getMessage()


@pytest.mark.req("R35", "A53")
def test_what_an_exception_says_cannot_look_like_a_line() -> None:
    try:
        raise ValueError("x\n2026-01-01 00:00:00,000 WARNING  ordered peer=127.0.0.1\x1b[2J")
    except ValueError:
        failed = record("failed", exc_info=sys.exc_info())
    first, *rest = TextLine().format(failed).splitlines()
    assert first.endswith("failed")
    assert all(line.startswith("    ") and line.isprintable() for line in rest)
