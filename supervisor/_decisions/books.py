"""The books: everybody who is here, and the moves that keep all indexes in agreement.

None of them is a step by itself, and nobody but the ledger makes them.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable, Iterator
from itertools import count
from typing import Any

import attrs
import trio

from .._words import events
from .._words.closing import CloseReason, End
from .._words.errors import HardLimitReached, Refused, Superseded
from .._words.limits import Limits, Overflow, Policies, Timeouts
from .._words.wire import SEVERED
from .blockage import blocked_at
from .bulletin import Bulletin
from .dues import expiry, lifetime, next_due
from .histories import Histories
from .memberships import Group, Memberships, is_room
from .outbox import Queued
from .ranking import Ranking
from .rates import RateBook
from .roster import Roster
from .runs import Runs
from .stay import Stage, Stay, User

#: How much a handler's own deadline lies behind the moment at which its keeper ends it. A stall of our loop that is
#: shorter than this expires nobody wrongly.
SLACK = 5.0


@attrs.define(eq=False)
class Books:
    """What is written down of everybody."""

    limits: Limits
    timeouts: Timeouts
    policies: Policies
    #: Starts the keeper of a new user.
    keep: Callable[[User], None]
    total: Roster
    users: dict[str, User] = attrs.field(factory=dict)
    connections: dict[str, Stay] = attrs.field(factory=dict)
    memberships: Memberships = attrs.field(factory=Memberships)
    ranking: Ranking = attrs.field(factory=Ranking)
    bulletin: Bulletin = attrs.field(factory=Bulletin)
    #: What is queued in everybody's outboxes.
    queued: Queued = attrs.field(factory=Queued)
    histories: Histories = attrs.field(factory=Histories)
    runs: Runs = attrs.field(init=False)
    open: bool = True
    #: What the ids of connections and runs begin with: they differ from those of other nodes.
    prefix: str = ""
    #: Attempts of each user; None without ``limits.connect_rate_user``.
    attempts: RateBook | None = attrs.field(init=False)
    _numbers: Iterator[int] = attrs.field(factory=lambda: count(1))

    def __attrs_post_init__(self) -> None:
        self.runs = Runs(self.bulletin)
        self.attempts = RateBook.of(self.limits.connect_rate_user)

    # -- coming in ---------------------------------------------------------------------------------------------

    def _enter(self, stay: Stay, stage: Stage) -> None:
        name = stay.identity.user
        user = self.users.get(name)
        if user is None:
            user = self.users[name] = User(name, Roster.of(self.limits.per_user), Queued(self.queued))
            self.keep(user)
        stay.host = user
        user.vacant_since = None
        self.connections[stay.id] = stay
        self._refile(stay, stage)
        user.ring_by(self._due(stay))

    def _take_seats(self, stay: Stay) -> None:
        for roster in self._rosters(stay)[len(stay.seats) :]:
            if not roster.seats.take(stay, enforce=self.limits.enforce):
                return
        if stay.scope is not None:
            stay.scope.cancel()

    def _promote(self) -> None:
        """Claims have been freed: those who wait for one get theirs, in order of arrival."""
        for stay in list(self.total.files[Stage.QUEUED]):
            if self.limits.enforce and self.total.full:
                return
            if not (self.limits.enforce and stay.host.roster.full):
                stay.last_active = trio.current_time()
                self._refile(stay, Stage.CLAIM)
                self._take_seats(stay)
                if stay.scope is not None:
                    stay.scope.cancel()
                stay.host.ring_by(self._due(stay))

    def _refused(self, stay: Stay, refusal: Refused) -> Refused:
        self.bulletin.post(
            events.Refused(
                at=trio.current_time(),
                connection=stay.id,
                identity=stay.identity,
                reason=refusal.reason,
                text=str(refusal),
                hard=isinstance(refusal, HardLimitReached),
            )
        )
        return refusal

    def _spare(self, stay: Stay, reason: CloseReason, text: str = "") -> None:
        self.bulletin.post(
            events.Spared(
                at=trio.current_time(),
                connection=stay.id,
                identity=stay.identity,
                reason=reason,
                text=text or reason.text,
            )
        )

    # -- going out ---------------------------------------------------------------------------------------------

    def _leave(
        self,
        stay: Stay,
        reason: CloseReason,
        text: str = "",
        *,
        code: int | None = None,
        grace: float = 0.0,
        policy: Overflow | None = None,
    ) -> bool:
        if stay.end is not None:
            return False
        now = trio.current_time()
        stay.end = End(reason, code or reason.code, text or reason.text, now)
        self.bulletin.post(
            events.Leaving(at=now, connection=stay.id, identity=stay.identity, end=stay.end, policy=policy)
        )
        for group in list(stay.groups):
            self._part(stay, group)
        self._refile(stay, Stage.LEAVING)
        if stay.lease is not None:
            stay.lease.leave()
        if not self.open and not stay.host.roster.claims:
            self.runs.cancel(stay.host)
        if stay.scope is not None and grace:
            stay.scope.deadline = min(stay.scope.deadline, now + grace)
        elif stay.scope is not None:
            stay.scope.cancel(stay.end.text)
        stay.host.ring_by(self._due(stay))
        return True

    def _give_back(self, stay: Stay) -> None:
        while stay.seats:
            heir = stay.seats[-1].give_back(stay)
            if heir is not None:
                self._take_seats(heir)
        if stay.lease is not None:
            stay.lease.give_back()

    def _set_aside(self, stay: Stay) -> None:
        """Its time to leave is over, and its task is still there: everything but the task is taken back."""
        assert stay.end is not None
        self._of_wire(stay, stay.wire.cut, stay.end.code, stay.end.text)
        self._give_back(stay)
        self._refile(stay, Stage.STUCK)
        self._conclude(stay, blocked_at(stay.task) if stay.task is not None else "not started")

    def _conclude(self, stay: Stay, stuck_at: str | None = None) -> None:
        now = trio.current_time()
        end = stay.end
        assert end is not None
        stay.closed = events.Closed(
            at=now,
            connection=stay.id,
            identity=stay.identity,
            end=end,
            duration=end.at - stay.opened_at,
            cleanup=now - end.at,
            overrun=(now if stay.vacated_at is None else stay.vacated_at) - end.at,
            forced=stay.forced or stuck_at is not None,
            stuck_at=stuck_at,
        )
        del self.connections[stay.id]
        stay.wire = SEVERED
        if stay.gone is not None:
            stay.gone.set()
        if stay.begun:
            self.bulletin.post(stay.closed)
        else:
            self._refused(stay, Superseded(end.text, end.reason))

    # -- belonging ---------------------------------------------------------------------------------------------

    def _belong(self, stay: Stay, group: Group, metadata: Any) -> None:
        if is_room(group) and self.bulletin.watchers and _news(stay, group, metadata):
            self.bulletin.diff(group.name).came(stay, metadata)
        self.memberships.join(stay, group, metadata)

    def _part(self, stay: Stay, group: Hashable) -> bool:
        if is_room(group) and group in stay.groups:
            self.bulletin.diff(group.name).went(stay, stay.groups[group])
        return self.memberships.leave(stay, group)

    # -- time --------------------------------------------------------------------------------------------------

    def _due(self, stay: Stay) -> float:
        return next_due(stay, self.limits, self.timeouts)[0]

    def _rearm(self, stay: Stay) -> None:
        """A handler's own deadline is its TTL with some slack: it holds even if no keeper ever looks again."""
        if stay.begun and stay.scope is not None:
            stay.scope.deadline = expiry(stay, self.limits)[0] + SLACK

    def _count_lifetime(self, stay: Stay, limits: Limits) -> None:
        age = trio.current_time() - stay.opened_at
        stay.ends_at, stay.ends_for = lifetime(stay.identity, limits, stay.opened_at, time.time() - age)
        self._rearm(stay)

    # -- filing, and wires -------------------------------------------------------------------------------------

    def _rosters(self, stay: Stay) -> tuple[Roster, Roster]:
        return stay.host.roster, self.total

    def _refile(self, stay: Stay, stage: Stage) -> None:
        for roster in self._rosters(stay):
            roster.refile(stay, stage)
        self.ranking.note(stay.host, len(stay.host.roster.claims))
        stay.stage = stage

    def _of_wire(self, stay: Stay, call: Callable[..., None], *args: Any) -> None:
        try:
            call(*args)
        except Exception as exception:  # noqa: BLE001 - a wire that breaks its word must not break a step
            self.bulletin.post(
                events.Failed(
                    at=trio.current_time(),
                    what="wire",
                    exception=exception,
                    connection=stay.id,
                    identity=stay.identity,
                )
            )


def _news(stay: Stay, group: Group, metadata: Any) -> bool:
    return group not in stay.groups or bool(stay.groups[group] != metadata)
