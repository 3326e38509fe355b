"""Every test may name the requirements it shows; ``--requirements`` writes their tests into the page of them."""

from __future__ import annotations

import contextlib
import faulthandler
import os
import random
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest

from tests.requirements import EXCUSES, PAGES, rows, shown_by, with_tests

#: More than any test needs that is not marked as slow.
CPU_SECONDS = float(os.environ.get("WS_SUPERVISOR_TEST_CPU", "40"))
SHOWN = pytest.StashKey[dict[str, set[str]]]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--requirements", action="store_true", help="write the collected tests into their pages")


@pytest.hookimpl(tryfirst=True)  # before anything is deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    shown = config.stash[SHOWN] = shown_by(items)
    unknown = shown.keys() - {number for page in PAGES for number in rows(page.read_text())}
    if unknown:
        raise pytest.UsageError(f"{', '.join(sorted(unknown))}: on no page of requirements")
    if config.getoption("--requirements"):
        for page in PAGES:
            page.write_text(with_tests(page.read_text(), shown))


@pytest.fixture
def unused_port() -> int:
    """For a process of its own, which cannot be asked which port the system has chosen."""
    while True:  # below those that the system gives to others, in the other half of this run, say
        port = random.randrange(15_000, 30_000)
        with socket.socket() as sock, contextlib.suppress(OSError):
            sock.bind(("127.0.0.1", port))
            return port


@pytest.fixture(autouse=True)
def no_endless_test(request: pytest.FixtureRequest) -> Iterator[None]:
    """Virtual time can go round for ever where somebody waits for what never comes; so there is a cap on CPU time.

    Trio's loop cannot be interrupted safely from a signal, so the whole run ends here; it would never have ended.
    """
    if request.node.get_closest_marker("slow"):
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        request.config.pluginmanager.getplugin("capturemanager").suspend_global_capture(in_=True)
        os.write(2, f"\n{request.node.nodeid} goes round for ever: more than {CPU_SECONDS:g} s of CPU time\n".encode())
        faulthandler.dump_traceback()
        os._exit(1)

    before = signal.signal(signal.SIGPROF, stop)
    signal.setitimer(signal.ITIMER_PROF, CPU_SECONDS)
    yield
    signal.setitimer(signal.ITIMER_PROF, 0)
    signal.signal(signal.SIGPROF, before)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """Write down what has passed, for the gate; a skipped test has not, and a tool may be missing."""
    file = os.environ.get("WS_SUPERVISOR_PASSED")
    untried = [f" {why}" for why in EXCUSES if report.skipped and why in str(report.longrepr)]
    if file is not None and (untried or (report.when == "call" and report.passed)):
        with Path(file).open("a") as passed:
            passed.write("".join([report.nodeid.split("[")[0], *untried, "\n"]))
