"""Runs: work of a user that outlives their connections, but never the user. Which there are, whose, and how many."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Iterator
from itertools import count

import attrs
import trio

from .._words.errors import RunLimitReached
from .._words.events import RunEnded, RunStarted, RunStuck
from .._words.limits import Limits
from .._words.record import cut
from .backlog import Backlog
from .blockage import blocked_at
from .bulletin import Bulletin, step
from .stay import User

#: Of each user so many that have ended are kept, so that whoever comes back can see how.
KEPT = 4


class Outcome(enum.Enum):
    """How a run has ended."""

    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"


@attrs.define(eq=False)
class Errand:
    """What is kept of one run. Written here only, but for its messages."""

    id: str
    name: str
    user: str
    #: Who has it; nobody, once it is over: what is kept of it must not keep them.
    host: User | None = attrs.field(repr=False)
    started_at: float
    backlog: Backlog = attrs.field(repr=False)
    scope: trio.CancelScope = attrs.field(factory=trio.CancelScope, repr=False)
    task: trio.lowlevel.Task | None = attrs.field(default=None, init=False, repr=False)
    outcome: Outcome | None = attrs.field(default=None, init=False)
    over: trio.Event = attrs.field(factory=trio.Event, init=False, repr=False)
    #: What the request had to be known by that has begun it, so that one whose reply is lost does not begin another.
    known_by: str | int | None = attrs.field(default=None, init=False)
    #: ``file:line`` if it has ignored its cancellation.
    stuck_at: str | None = attrs.field(default=None, init=False)


@attrs.define(eq=False)
class Runs:
    """All that have not ended."""

    bulletin: Bulletin
    active: dict[str, Errand] = attrs.field(factory=dict)
    #: How many each user has, those included that ignore that they were gone in between.
    shares: Counter[str] = attrs.field(factory=Counter)
    _numbers: Iterator[int] = attrs.field(factory=lambda: count(1))

    def number(self) -> str:
        """The id of the next."""
        return f"r{next(self._numbers)}"

    @step
    def begin(self, errand: Errand, limits: Limits) -> None:
        """One more, or `RunLimitReached`."""
        here = self.shares[errand.user]
        if here >= limits.runs:
            raise RunLimitReached(errand.user, here, limits.runs)
        self.shares[errand.user] += 1
        assert errand.host is not None
        self.active[errand.id] = errand
        errand.host.runs[errand.id] = errand
        self.bulletin.post(RunStarted(at=trio.current_time(), run=errand.id, user=errand.user, name=errand.name))

    @step
    def end(self, errand: Errand, outcome: Outcome, text: str = "") -> None:
        """It is over. Idempotent."""
        if errand.outcome is not None:
            return
        errand.outcome, errand.task = outcome, None
        del self.active[errand.id]
        self.shares[errand.user] -= 1
        if not self.shares[errand.user]:
            del self.shares[errand.user]
        self._file(errand)
        errand.over.set()
        now = trio.current_time()
        self.bulletin.post(
            RunEnded(
                at=now,
                run=errand.id,
                user=errand.user,
                name=errand.name,
                outcome=outcome.value,
                text=cut(text),
                duration=now - errand.started_at,
            )
        )

    @staticmethod
    def cancel(user: User) -> None:
        """All that `user` has: nobody lingers any more."""
        for errand in user.runs.values():
            errand.scope.cancel()

    @step
    def set_aside(self, user: User) -> None:
        """The user is gone, and these have ignored their cancellation: they are named, and stay counted."""
        for errand in user.runs.values():
            if errand.outcome is None:
                errand.stuck_at = "not started" if errand.task is None else blocked_at(errand.task)
                self.bulletin.post(
                    RunStuck(
                        at=trio.current_time(),
                        run=errand.id,
                        user=errand.user,
                        name=errand.name,
                        stuck_at=errand.stuck_at,
                    )
                )

    def counted(self) -> Counter[str]:
        """The shares, counted anew."""
        return Counter(errand.user for errand in self.active.values())

    @staticmethod
    def _file(errand: Errand) -> None:
        """Behind those that have ended before; and forget the one that has ended first, if they are too many."""
        user, errand.host = errand.host, None
        if user is None or user.runs.pop(errand.id, None) is None:
            return
        user.runs[errand.id] = errand
        ended = [other.id for other in user.runs.values() if other.outcome is not None]
        for old in ended[:-KEPT]:
            del user.runs[old]
