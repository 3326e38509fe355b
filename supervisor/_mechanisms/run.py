"""A run: a task in its user's nursery that speaks to those who follow it, whichever of their connections are here."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any, Concatenate, ParamSpec, TypeVar, cast

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from .._decisions.ledger import Ledger
from .._decisions.memberships import Group
from .._decisions.runs import Errand, Outcome
from .._words.errors import RunFailed
from .._words.events import Failed
from .._words.frames import numbered
from .._words.record import describe
from .connection import Connection
from .lifecycle import interrupts
from .nodes import Nodes

P = ParamSpec("P")
T = TypeVar("T")
#: The event with which every run ends.
ENDED = "run_ended"


@attrs.define(eq=False)
class Run(Errand):
    """Named work of one user, over when its function returns, fails or is cancelled; at the latest with its user."""

    _ledger: Ledger = attrs.field(repr=False, kw_only=True)
    _nodes: Nodes | None = attrs.field(default=None, repr=False, kw_only=True)
    result: Any = attrs.field(default=None, init=False, repr=False)
    error: str = attrs.field(default="", init=False)

    @property
    def _group(self) -> Group:
        """Of its own kind: an application's names for what it follows are another matter."""
        return Group("errand", self.id)

    @property
    def followers(self) -> tuple[Connection, ...]:
        """The connections that follow it now."""
        return cast("tuple[Connection, ...]", self._ledger.memberships.members(self._group))

    def emit(self, event: str, data: Any = None) -> int:
        """Tell all followers, never waiting; the event's number.

        The last ``limits.run_messages`` are kept for those who follow later, or come back; of their bytes at most
        ``limits.run_bytes``. A follower that does not read is a slow consumer, see `Connection.send_nowait`; a run
        that is not to be faster than its followers awaits `drained`. TypeError or ValueError if `data` is not for JSON,
        RuntimeError if the run is over.
        """
        if self.outcome is not None:
            raise RuntimeError(f"run {self.id!r} is over")
        number = self.backlog.last + 1
        told = {"type": "run", "run": self.id, "event": event, "data": data}
        text = json.dumps(told, separators=(",", ":"), allow_nan=False)
        frame = numbered(text, number)
        self.backlog.add(frame)
        if self._nodes is not None:
            self._nodes.emit(self, number, text)
        for follower in self.followers:
            follower.send_nowait(frame)
        return number

    async def drained(self) -> None:
        """Wait until nothing is queued for any of its followers: backpressure.

        Those who do not read at all leave, so this ends; unless somebody else keeps their queues full.
        """
        for follower in self.followers:
            await follower.drained()
        await trio.lowlevel.checkpoint()

    def follow(self, conn: Connection, after: int | None = None) -> bool:
        """Have `conn` told from now on; and first of everything after the event number `after`, if it is given.

        A connection that follows already is not told anything twice. False if some of it is not kept any more, or was
        never said, or could not be queued: then the client must be told so. ValueError for another user's connection.
        """
        if conn.user != self.user:
            raise ValueError(f"run {self.id!r} is not of user {conn.user!r}")
        if self._group in conn.groups:
            return after in (None, self.backlog.last)
        missed = () if after is None else self.backlog.after(after)
        if self.outcome is None and not self._ledger.join(conn, self._group, None):
            return False
        taken = [conn.send_nowait(frame) for frame in missed or ()]
        return missed is not None and all(taken)

    async def wait(self) -> Any:
        """Wait until it has ended; its result. `RunFailed` if it has failed, or was cancelled."""
        await self.over.wait()
        if self.outcome is not Outcome.COMPLETED:
            raise RunFailed(self.id, self.error or "cancelled")
        return self.result

    def cancel(self) -> bool:
        """Cancel it; False if it is over."""
        self.scope.cancel()
        return self.outcome is None

    @enable_ki_protection
    def conclude(self, outcome: Outcome, result: Any = None, error: str = "") -> None:
        """It is over, for this reason: everybody is told, and nobody follows it any more. Idempotent.

        Of a failure, followers are told the exception's type; a result that is not for JSON is told as None.
        """
        if self.outcome is not None:
            return
        self.result, self.error = result, error
        told = {"outcome": outcome.value, "error": error.partition(":")[0] or None}
        try:
            self.emit(ENDED, {**told, "result": result})
        except (TypeError, ValueError, RecursionError):
            self.emit(ENDED, {**told, "result": None})
        finally:
            for follower in self.followers:
                self._ledger.part(follower, self._group)
            self._ledger.runs.end(self, outcome, error)
            if self._nodes is not None:
                self._nodes.know(self)


async def live(
    ledger: Ledger, run: Run, async_fn: Callable[Concatenate[Run, P], Awaitable[T]], *args: P.args, **kwargs: P.kwargs
) -> None:
    """The run's own task. Whatever it raises ends it, and nothing else, also while its user's nursery is cancelled."""
    run.task = trio.lowlevel.current_task()
    try:
        with run.scope:
            result = await async_fn(run, *args, **kwargs)
            run.conclude(Outcome.COMPLETED, result)
    except BaseException as exception:  # noqa: ASYNC103 - what must get out is decided in the next line
        if interrupts(exception) or _only_cancelled(exception):
            raise
        run.conclude(Outcome.FAILED, error=describe(exception))
        ledger.post(Failed(at=trio.current_time(), what="run", exception=exception, run=run.id, user=run.user))
    finally:
        run.conclude(Outcome.CANCELLED)


def _only_cancelled(exception: BaseException) -> bool:
    if isinstance(exception, BaseExceptionGroup):
        return exception.split(trio.Cancelled)[1] is None
    return isinstance(exception, trio.Cancelled)
