"""Runs that can be repeated: virtual time, and a schedule that is drawn from a seed.

Trio runs the tasks of one batch in an order of its own choice. Here that order comes from a seeded generator, so that
each seed is one schedule, and the same seed is the same run.
"""

from __future__ import annotations

import hashlib
import math
import queue
import time
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


def virtual_clock() -> MockClock:
    """Time that jumps to the next deadline as soon as everybody waits for one; but not while a thread is at work.

    A thread's time is real: a handler that asks a database in a thread would find all deadlines over when it is back.
    Threads are known by the tokens of Trio's default limiter.
    """
    clock = MockClock(autojump_threshold=0)
    jump = clock._autojump

    def jump_unless_threads_work() -> None:
        if not trio.to_thread.current_default_thread_limiter().borrowed_tokens:
            jump()

    setattr(clock, "_autojump", jump_unless_threads_work)  # noqa: B010 - it is final, for everybody else
    return clock


def run(seed: int, async_fn: Callable[..., Awaitable[T]], *args: Any, instruments: list[trio.abc.Instrument]) -> T:
    """``trio.run`` on virtual time, by the schedule of `seed`."""
    seed_schedule(seed)
    return trio.run(async_fn, *args, clock=virtual_clock(), instruments=instruments)


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


async def _settle() -> None:
    """Wait until every task waits, and no thread is at work."""
    await wait_all_tasks_blocked()
    while trio.to_thread.current_default_thread_limiter().borrowed_tokens:
        await trio.to_thread.run_sync(time.sleep, 0.001, limiter=trio.CapacityLimiter(1))
        await wait_all_tasks_blocked()


class Stepper:
    """A run of Trio that goes on while synchronous code, such as a rule of Hypothesis, tells it to.

    Between two steps it stands still, in time too.
    """

    def __init__(self, seed: int) -> None:
        seed_schedule(seed)
        self.clock = virtual_clock()
        self.clock.autojump_threshold = math.inf
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
            await _settle()
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
            await trio.lowlevel.checkpoint()
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
            self.clock.autojump_threshold = 0  # or whoever shields a sleep would never come to its end
        while self._final is None:
            self._mail.get(timeout=_PATIENCE)()
        self._final.unwrap()
