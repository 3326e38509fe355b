"""Runs that can be repeated: virtual time, and a schedule that is drawn from a seed.

Trio runs the tasks of one batch in an order of its own choice. Here that order comes from a seeded generator, so that
each seed is one schedule, and the same seed is the same run.
"""

from __future__ import annotations

import hashlib
import math
import queue
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import attrs
import outcome
import trio
import trio._core._run as trio_run
from trio.testing import MockClock, wait_all_tasks_blocked

T = TypeVar("T")
#: Seconds of real time after which a step of a stepped run is taken for endless.
_PATIENCE = 60


def seed_schedule(seed: int) -> None:
    """Let the next run of Trio in this process be scheduled by `seed`.

    Trio has no public way to say so; what is used here is what its own entry point for Hypothesis uses.
    """
    setattr(trio_run, "_ALLOW_DETERMINISTIC_SCHEDULING", True)  # noqa: B010 - declared final, for everybody else
    trio_run._r.seed(seed)


def run(seed: int, async_fn: Callable[..., Awaitable[T]], *args: Any, instruments: list[trio.abc.Instrument]) -> T:
    """``trio.run`` on virtual time, by the schedule of `seed`."""
    seed_schedule(seed)
    return trio.run(async_fn, *args, clock=MockClock(autojump_threshold=0), instruments=instruments)


@attrs.define(eq=False)
class Fingerprint(trio.abc.Instrument):
    """Tells schedules apart: by which tasks ran, in which order."""

    _hash: Any = attrs.field(factory=hashlib.blake2b)
    steps: int = 0

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Note one step."""
        self.steps += 1
        self._hash.update(task.name.encode())

    @property
    def digest(self) -> str:
        """The same for the same schedule only."""
        return str(self._hash.hexdigest()[:16])


class Stepper:
    """A run of Trio that goes on while synchronous code, such as a rule of Hypothesis, tells it to.

    Between two steps it stands still, in time too.
    """

    def __init__(self, seed: int) -> None:
        seed_schedule(seed)
        self.clock = MockClock()
        self._mail: queue.SimpleQueue[Callable[[], object]] = queue.SimpleQueue()
        self.nursery: trio.Nursery | None = None
        self._final: outcome.Outcome[None] | None = None
        trio.lowlevel.start_guest_run(
            self._main,
            run_sync_soon_threadsafe=self._mail.put,
            done_callback=self._finish,
            clock=self.clock,
        )
        self._pump_until(lambda: self.nursery is not None)

    async def _main(self) -> None:
        async with trio.open_nursery() as nursery:
            self._token = trio.lowlevel.current_trio_token()
            self.nursery = nursery
            await trio.sleep_forever()

    def _finish(self, final: outcome.Outcome[None]) -> None:
        self._final = final

    def _pump_until(self, done: Callable[[], bool]) -> None:
        while not done():
            if self._final is not None:
                self._final.unwrap()
                raise RuntimeError("the run has ended in the middle of a step")
            self._mail.get(timeout=_PATIENCE)()

    def run(self, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """Run one step, and return when every task is blocked again."""
        box: list[outcome.Outcome[T]] = []

        async def step() -> None:
            captured = await outcome.acapture(async_fn, *args)
            await wait_all_tasks_blocked()
            box.append(captured)

        assert self.nursery is not None
        self._token.run_sync_soon(self.nursery.start_soon, step)
        self._pump_until(lambda: bool(box))
        return box[0].unwrap()

    def tasks(self) -> list[str]:
        """The names of those that run besides the stepper's own."""
        return self.call(lambda: [task.name for task in self.nursery.child_tasks if "Stepper" not in task.name])  # type: ignore[union-attr]

    def call(self, function: Callable[..., T], *args: Any) -> T:
        """Call a synchronous function inside the run."""

        async def call() -> T:
            return function(*args)

        return self.run(call)

    def advance(self, seconds: float) -> None:
        """Let time pass, and everything happen when it is due."""

        async def sleep() -> None:
            self.clock.autojump_threshold = 0
            await trio.sleep(seconds)
            self.clock.autojump_threshold = math.inf

        self.run(sleep)

    def close(self) -> None:
        """Cancel what still runs; what has failed meanwhile is raised."""
        assert self.nursery is not None
        if self._final is None:
            self._token.run_sync_soon(self.nursery.cancel_scope.cancel)
        while self._final is None:
            self._mail.get(timeout=_PATIENCE)()
        self._final.unwrap()
