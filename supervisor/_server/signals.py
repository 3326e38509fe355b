"""Ending on purpose: the first signal drains, the second cuts, and nothing keeps the process from ending."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import threading
from collections.abc import Iterator
from types import FrameType

import attrs
import trio

from .._mechanisms.supervisor import Supervisor
from .._words.limits import Timeouts

_logger = logging.getLogger("supervisor")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_STUCK = 1
#: Seconds that the last words may take.
_REPORTING = 1.0


@attrs.define(eq=False)
class Shutdown:
    """How far the end has come."""

    timeouts: Timeouts
    supervisor: Supervisor | None = None
    #: Ends the process if it does not end by itself; there only once a signal has asked for the end.
    _watchdog: threading.Timer | None = None
    _asked: trio.Event = attrs.field(factory=trio.Event)
    #: Cancelled when somebody asks again: the patience is over.
    _draining: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def signal(self) -> None:
        """Ask for the end: a drain; asked again, a cut."""
        if self._asked.is_set():
            self._draining.cancel()
        self._asked.set()

    async def wait(self, supervisor: Supervisor) -> None:
        """Wait until asked, then drain, or be cut short."""
        self.supervisor = supervisor
        await self._asked.wait()
        with self._draining:
            await supervisor.drain()
        if self._draining.cancelled_caught:
            await supervisor.cut()
        if self._watchdog is not None:  # drained early: what is left has its last moment from now
            self.watch(0.0)

    def watch(self, seconds: float) -> None:
        """Have the process ended when `seconds`, and what comes after the drain, are over; no earlier watch counts."""
        self.rest()
        last_moment = seconds + self.timeouts.close + self.timeouts.exit
        self._watchdog = threading.Timer(last_moment, _end_process, (self.supervisor,))
        self._watchdog.daemon = True
        self._watchdog.start()

    def rest(self) -> None:
        """Everything has ended, or is watched anew."""
        if self._watchdog is not None:
            self._watchdog.cancel()


@contextlib.contextmanager
def watch_signals(shutdown: Shutdown) -> Iterator[None]:
    """Have SIGTERM and SIGINT ask for the end, for the length of the block; and once asked, have it come.

    Plain signal handlers and a thread, because they run even while a handler blocks the whole loop.
    """
    token = trio.lowlevel.current_trio_token()
    asked = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        shutdown.watch(shutdown.timeouts.drain if asked == 1 else 0.0)
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(shutdown.signal)

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        shutdown.rest()


def _end_process(supervisor: Supervisor | None) -> None:
    """The last resort, in a thread of its own: Trio rightly waits for a task that ignores its cancellation.

    Reporting may hang, as a stuck handler may hold the log's lock; ending may not.
    """
    reporting = threading.Thread(target=_report_stuck, args=(supervisor,), daemon=True)
    reporting.start()
    reporting.join(_REPORTING)
    os._exit(EXIT_STUCK)


def _report_stuck(supervisor: Supervisor | None) -> None:
    for conn in () if supervisor is None else supervisor.stuck():
        place = conn.closed.stuck_at if conn.closed is not None else "?"
        _logger.critical("exiting although a handler is stuck connection=%s user=%r at %s", conn.id, conn.user, place)
    for run in () if supervisor is None else supervisor.runs():
        _logger.critical("exiting although a run is not over run=%s user=%r at %s", run.id, run.user, run.stuck_at)
    _logger.critical("exiting with status %d: the last moment is over", EXIT_STUCK)
    for handler in _logger.handlers + logging.getLogger().handlers:
        handler.flush()
