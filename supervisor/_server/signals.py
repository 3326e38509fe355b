"""Ending on purpose: the first signal drains, the second cuts, and nothing keeps the process from ending."""

from __future__ import annotations

import contextlib
import logging
import math
import os
import signal
import socket
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from typing import NoReturn

import attrs
import trio

from .._mechanisms.supervisor import Supervisor
from .._words.limits import Timeouts

_logger = logging.getLogger("supervisor")
_SIGNALS = (signal.SIGTERM, signal.SIGINT)
#: What no signal is numbered.
_DRAINED = 255
EXIT_STUCK = 1
#: Seconds that the last words may take.
_REPORTING = 1.0


def _nothing(*_: object) -> None:
    """What a signal's handler in Python does, which there must be; and nobody, who is told something."""


@attrs.define(eq=False)
class Shutdown:
    """How far the end has come."""

    timeouts: Timeouts
    supervisor: Supervisor | None = None
    #: Tells the watchdog, where there is one, that only the last moment is left.
    drained: Callable[[], object] = _nothing
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
        self.drained()


@attrs.define(eq=False)
class Watchdog:
    """A thread that hears of signals, and ends the process if it does not end by itself.

    Told by Python's C handler, because one in Python would wait until the main thread is back from whatever blocks it;
    from the start, because a process that has no memory left could not start a thread when it is needed.
    """

    shutdown: Shutdown
    _ears: socket.socket
    _token: trio.lowlevel.TrioToken
    #: The descriptor of whoever was told of signals before (Trio's loop), and still is; -1 for nobody.
    _before: int = -1
    _asked: int = 0
    #: When the process is ended; not before a signal has asked for it.
    _last_moment: float = math.inf

    def watch(self) -> None:
        """Until nobody can tell it anything any more."""
        while True:
            left = self._last_moment - time.monotonic()
            self._ears.settimeout(None if left == math.inf else max(left, 0.001))
            try:
                heard = self._ears.recv(100)
            except TimeoutError:
                _end_process(self.shutdown.supervisor)
            if not heard:
                return
            for number in heard:
                self._hear(number)

    def _hear(self, number: int) -> None:
        if number in _SIGNALS:
            self._asked += 1
            self._end_in(self.shutdown.timeouts.drain if self._asked == 1 else 0.0)
            with contextlib.suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self.shutdown.signal)
        elif number == _DRAINED and self._asked:  # maybe early: what is left has its last moment from now
            self._end_in(0.0)
        if number != _DRAINED and self._before != -1:
            with contextlib.suppress(OSError):  # full, so it is awake; or gone
                os.write(self._before, bytes([number]))

    def _end_in(self, seconds: float) -> None:
        """When those, and what comes after the drain, are over; no earlier moment counts."""
        self._last_moment = time.monotonic() + seconds + self.shutdown.timeouts.close + self.shutdown.timeouts.exit


@contextlib.contextmanager
def watch_signals(shutdown: Shutdown) -> Iterator[None]:
    """Have SIGTERM and SIGINT ask for the end, for the length of the block; and once asked, have it come."""
    ears, voice = socket.socketpair()
    voice.settimeout(0)
    before = signal.set_wakeup_fd(voice.fileno(), warn_on_full_buffer=False)
    handlers = {number: signal.signal(number, _nothing) for number in _SIGNALS}
    shutdown.drained = partial(_tell, voice)
    watchdog = Watchdog(shutdown, ears, trio.lowlevel.current_trio_token(), before)
    thread = threading.Thread(target=watchdog.watch, name="watchdog", daemon=True)
    thread.start()
    try:
        yield
    finally:
        for number, handler in handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(before)
        shutdown.drained = _nothing
        voice.close()
        thread.join()
        ears.close()


def _tell(voice: socket.socket) -> None:
    with contextlib.suppress(BlockingIOError):  # who hears so many signals has a last moment already
        voice.send(bytes([_DRAINED]))


def _end_process(supervisor: Supervisor | None) -> NoReturn:
    """The last resort: Trio rightly waits for a task that ignores its cancellation.

    Reporting may hang, as a stuck handler may hold the log's lock, and may fail for want of memory; ending may not.
    """
    try:
        reporting = threading.Thread(target=_report_stuck, args=(supervisor,), daemon=True)
        reporting.start()
        reporting.join(_REPORTING)
    finally:
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
