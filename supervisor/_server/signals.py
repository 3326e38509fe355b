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

from .._decisions.stay import Stage
from .._mechanisms.supervisor import Supervisor

_logger = logging.getLogger("supervisor")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
EXIT_STUCK = 1
#: Seconds that the last words may take.
_REPORTING = 1.0


@attrs.define(eq=False)
class Shutdown:
    """How far the end has come."""

    supervisor: Supervisor
    _asked: trio.Event = attrs.field(factory=trio.Event)
    #: Cancelled when somebody asks again: the patience is over.
    _draining: trio.CancelScope = attrs.field(factory=trio.CancelScope)

    def signal(self) -> None:
        """Ask for the end: a drain; asked again, a cut."""
        if self._asked.is_set():
            self._draining.cancel()
        self._asked.set()

    async def wait(self) -> None:
        """Wait until asked, then drain, or be cut short."""
        await self._asked.wait()
        with self._draining:
            await self.supervisor.drain()
        if self._draining.cancelled_caught:
            await self.supervisor.cut()


@contextlib.contextmanager
def watch_signals(shutdown: Shutdown) -> Iterator[None]:
    """Have SIGTERM and SIGINT ask for the end, for the length of the block.

    Plain signal handlers, because they run even while a handler blocks the whole loop. Once asked, a thread watches
    that the process ends: it outlives this block, as a stuck handler does.
    """
    token = trio.lowlevel.current_trio_token()
    timeouts = shutdown.supervisor.timeouts
    last_moment = timeouts.close + timeouts.exit
    asked = 0

    def on_signal(number: int, frame: FrameType | None) -> None:
        nonlocal asked
        asked += 1
        _end_process_after(last_moment + (timeouts.drain if asked == 1 else 0.0), shutdown.supervisor)
        with contextlib.suppress(trio.RunFinishedError):
            token.run_sync_soon(shutdown.signal)

    before = {number: signal.signal(number, on_signal) for number in _SIGNALS}
    try:
        yield
    finally:
        if asked == 1:  # drained early: what is left has its last moment from now
            _end_process_after(last_moment, shutdown.supervisor)
        for number, handler in before.items():
            signal.signal(number, handler)


def _end_process_after(seconds: float, supervisor: Supervisor) -> None:
    timer = threading.Timer(seconds, _end_process, (supervisor,))
    timer.daemon = True
    timer.start()


def _end_process(supervisor: Supervisor) -> None:
    """The last resort, in a thread of its own: Trio rightly waits for a task that ignores its cancellation.

    Reporting may hang, as a stuck handler may hold the log's lock; ending may not.
    """
    reporting = threading.Thread(target=_report_stuck, args=(supervisor,), daemon=True)
    reporting.start()
    reporting.join(_REPORTING)
    os._exit(EXIT_STUCK)


def _report_stuck(supervisor: Supervisor) -> None:
    for stay in list(supervisor._ledger.total.files[Stage.STUCK]):
        place = stay.closed.stuck_at if stay.closed is not None else "?"
        _logger.critical(
            "exiting although a handler is stuck connection=%s user=%r at %s", stay.id, stay.host.name, place
        )
    _logger.critical("exiting with status %d: the last moment is over", EXIT_STUCK)
    for handler in _logger.handlers + logging.getLogger().handlers:
        handler.flush()
