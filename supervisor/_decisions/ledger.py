"""The ledger: every change of state, each one a synchronous step.

A step runs from its first line to its last with no checkpoint and no Ctrl-C in between, so that all the indexes
always agree. Events are delivered when the outermost step has ended.
"""

from __future__ import annotations

import math
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator
from itertools import islice
from typing import Any

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from .._words import events
from .._words.closing import CloseReason
from .._words.errors import (
    PER_USER,
    TOTAL,
    Draining,
    LimitReached,
    RateLimited,
    Refused,
    RoomLimitReached,
    Superseded,
    Unauthorized,
    limit_sentence,
)
from .._words.identity import Identity
from .._words.limits import Limits
from .admission import Admit, Verdict, Wait, decide, victim
from .books import Books
from .bulletin import step
from .dues import Act, expiry, lifetime, next_due, patience
from .memberships import Group, is_room
from .rates import RateBook
from .roster import Roster
from .shedding import excess, reclaimable
from .stay import Stage, Stay, User

#: An alarm that rings later than this says that our own loop stalled. Then nobody is judged by the clock for a
#: moment, so that what has arrived, and what has been cancelled, can be seen first.
LATE = 0.05
GRACE = 0.25
#: The stages of those who still have something to give back.
ENDING = (Stage.CLAIM, Stage.LEAVING, Stage.CLOSING)


@attrs.define(eq=False)
class Ledger(Books):
    """The only hand that writes in the books."""

    # -- coming ------------------------------------------------------------------------------------------------

    def credentials(self, identity: Identity, handler: Callable[[Any], Awaitable[None]]) -> dict[str, Any]:
        """What every new stay begins with: its id, and its lifetime on Trio's clock."""
        now = trio.current_time()
        ends_at, ends_for = lifetime(identity, self.limits, now, time.time())
        return {
            "id": f"{self.prefix}c{next(self._numbers)}",
            "identity": identity,
            "handler": handler,
            "opened_at": now,
            "ends_at": ends_at,
            "ends_for": ends_for,
        }

    @step
    def admit(self, stay: Stay) -> None:
        """The decision: `stay` gets a claim, or a place in the queue for one; or raises `Refused`."""
        name = stay.identity.user
        if not self.open:
            raise self._refused(stay, Draining())
        if stay.ends_at <= stay.opened_at:
            raise self._refused(stay, Unauthorized("the credential has expired"))
        if self.attempts is not None and (retry_after := self.attempts.spend(name, stay.opened_at)):
            limited = RateLimited(f"user {name!r}", self.attempts.rate, retry_after)
            if self.limits.enforce:
                raise self._refused(stay, limited)
            self._spare(stay, limited.reason, str(limited))
        user = self.users.get(name)
        before = [] if user is None else _same_session(user, stay.identity)
        if any(other.identity.takes_over > stay.identity.takes_over for other in before):
            raise self._refused(stay, Superseded(CloseReason.TAKEN_OVER.text, CloseReason.TAKEN_OVER))
        inherited = {} if user is None else self._take_over(user, stay.identity)
        if user is not None:
            self._emergency(f"user {name!r}", user.roster)
        self._emergency("total", self.total)
        verdict = decide(
            name, None if user is None else user.roster, self.total, self.ranking, self.limits, self.policies
        )
        if not self.limits.enforce:
            verdict = self._spare_all(stay, verdict)
        if isinstance(verdict, Admit):
            if verdict.evict is not None:
                self._leave(verdict.evict, CloseReason.EVICTED, verdict.sentence, policy=verdict.policy)
            self._enter(stay, Stage.CLAIM)
            for group, metadata in inherited.items():
                self._belong(stay, group, metadata)
            self._take_seats(stay)
        elif isinstance(verdict, Wait) and len(self.total.files[Stage.QUEUED]) < self.limits.lobby:
            self._enter(stay, Stage.QUEUED)
        self._promote()  # emergency cleanup may have freed more than this newcomer needs
        if stay.stage is None:
            assert not isinstance(verdict, Admit)
            try:
                raise self._refused(stay, verdict.refusal)
            finally:
                del verdict  # which would hold the error that holds this frame

    def _take_over(self, user: User, identity: Identity) -> dict[Group, Any]:
        """End what `identity` takes over; returns the rooms it was in, which nobody in them sees being left."""
        rooms: dict[Group, Any] = {}
        for older in _same_session(user, identity):
            rooms |= {group: metadata for group, metadata in older.groups.items() if is_room(group)}
            self._leave(older, CloseReason.TAKEN_OVER)
        return dict(islice(rooms.items(), self.limits.rooms))

    def _spare_all(self, stay: Stay, verdict: Verdict) -> Admit:
        """Limits are only watched: say what this verdict would have done, and let `stay` in."""
        if not isinstance(verdict, Admit):
            self._spare(stay, verdict.refusal.reason, str(verdict.refusal))
        elif verdict.evict is not None:
            self._spare(verdict.evict, CloseReason.EVICTED, verdict.sentence)
        return Admit()

    @step
    def take_from_the_slow(self, stay: Stay) -> None:
        """The wait for seats is over: those who leave too slowly lose theirs. Claims never exceed the limit, so
        this always suffices.
        """
        for roster in self._rosters(stay):
            for slow in list(roster.files[Stage.LEAVING]):
                if roster.seats in stay.seats:
                    break
                self._give_back(slow)
        assert len(stay.seats) == 2, "more claims than the limit"

    @step
    def begin(self, stay: Stay, task: trio.lowlevel.Task, scope: trio.CancelScope, nursery: trio.Nursery) -> None:
        """The connection's own task has started. It may have been told to leave already."""
        stay.begun, stay.task, stay.scope, stay.nursery = True, task, scope, nursery
        if stay.end is None:
            self._rearm(stay)
            stay.host.ring_by(self._due(stay))
        else:
            scope.cancel(stay.end.text)
        now = trio.current_time()
        waited = now - stay.opened_at
        self.bulletin.post(events.Admitted(at=now, connection=stay.id, identity=stay.identity, waited=waited))

    # -- staying -----------------------------------------------------------------------------------------------

    @enable_ki_protection
    def touch(self, stay: Stay) -> None:
        """Activity: the idle TTL starts anew. The keeper notices when the old one rings."""
        stay.last_active = trio.current_time()
        if stay.end is None:
            stay.host.roster.by_activity.move_to_end(stay)
            self.total.by_activity.move_to_end(stay)

    @step
    def renew(self, stay: Stay, expires_at: float | None) -> None:
        """A new credential: when it is over is counted anew; the connection's age is not."""
        stay.identity = attrs.evolve(stay.identity, expires_at=expires_at)
        if stay.end is None:
            self._retime(stay)

    @enable_ki_protection
    def suspect(self, stay: Stay) -> None:
        """A ping or a write is outstanding."""
        if stay.end is None:
            for roster in self._rosters(stay):
                roster.suspects[stay] = None

    @enable_ki_protection
    def unsuspect(self, stay: Stay) -> None:
        """Something that was outstanding is no longer; clears `stay` if nothing else is."""
        if stay in self.total.suspects and not stay.unresponsive(trio.current_time(), 0.0):
            for roster in self._rosters(stay):
                del roster.suspects[stay]

    @step
    def join(self, stay: Stay, group: Group, metadata: Any) -> bool:
        """Make `stay` a member of `group`; False if it is leaving already."""
        if stay.end is not None:
            return False
        if is_room(group) and group not in stay.groups:
            self._may_join(stay, group)
        self._belong(stay, group, metadata)
        return True

    def _may_join(self, stay: Stay, group: Group) -> None:
        theirs = sum(map(is_room, stay.groups))
        if theirs >= self.limits.rooms:
            raise RoomLimitReached("per connection", theirs, self.limits.rooms)
        total = self.memberships.rooms
        if total >= self.limits.rooms_total and group not in self.memberships.groups:
            raise RoomLimitReached("total", total, self.limits.rooms_total)

    @step
    def part(self, stay: Stay, group: Group) -> bool:
        """End one membership of `stay`; False if there was none."""
        return self._part(stay, group)

    # -- leaving -----------------------------------------------------------------------------------------------

    @step
    def leave(
        self, stay: Stay, reason: CloseReason, text: str = "", *, code: int | None = None, grace: float = 0.0
    ) -> bool:
        """The funnel: the first reason wins, later ones return False.

        The claim and every index are free at once, the seats when the handler is out. With `grace`, the handler is
        cancelled only that many seconds later.
        """
        left = self._leave(stay, reason, text, code=code, grace=grace)
        self._promote()
        return left

    @step
    def leave_all(self, stays: Iterable[Stay], reason: CloseReason) -> None:
        """The funnel for many at once: rooms hear of all of them at once, too."""
        for stay in tuple(stays):
            self._leave(stay, reason)
        self._promote()

    @step
    def give_up_waiting(self, stay: Stay) -> Refused:
        """A wait for a claim or a seat has ended without one: says why."""
        if not self.open:
            return Draining()
        if stay.end is not None:
            return Superseded(stay.end.text, stay.end.reason)
        by_user = stay.host.roster.full
        roster, limit = (stay.host.roster, PER_USER) if by_user else (self.total, TOTAL)
        refusal = LimitReached(stay.identity.user, limit, len(roster.claims), roster.maximum)
        self._leave(stay, CloseReason.LIMIT_REACHED, str(refusal))
        return refusal

    @step
    def refuse(self, stay: Stay, refusal: Refused) -> Refused:
        """It has a claim, and there is none for it among all nodes."""
        self._leave(stay, refusal.reason, str(refusal))
        return refusal

    @step
    def vacate(self, stay: Stay) -> float:
        """The handler is out: the seats are free. Returns for how long there may be a polite goodbye."""
        stay.scope = stay.handler = None
        self._give_back(stay)
        if stay.stage is not Stage.LEAVING:
            return 0.0
        stay.vacated_at = trio.current_time()
        self._refile(stay, Stage.CLOSING)
        stay.host.ring_by(self._due(stay))
        return patience(len(self.total.files[Stage.CLOSING]), self.limits, self.timeouts)

    @step
    def forget(self, stay: Stay) -> None:
        """Its task is over: nothing is left of it. Idempotent."""
        if stay.stage is Stage.GONE:
            return
        if stay.stage is Stage.STUCK:
            self.bulletin.post(
                events.HandlerReturned(at=trio.current_time(), connection=stay.id, identity=stay.identity)
            )
        else:
            self._conclude(stay)
        self._refile(stay, Stage.GONE)
        stay.task = stay.nursery = stay.scope = stay.handler = stay.lease = None
        user = stay.host
        if not user.roster.occupied:
            user.vacant_since = trio.current_time()
            user.ring_by(self.next_look(user))

    @step
    def withdraw(self, stay: Stay) -> None:
        """Its caller gave up before it had a task: it was never here."""
        self._leave(stay, CloseReason.GOING_AWAY)
        self._give_back(stay)
        self.forget(stay)
        self._promote()

    # -- other limits ------------------------------------------------------------------------------------------

    @step
    def set_limits(self, limits: Limits) -> tuple[Stay, ...]:
        """These from now on. Who waits for what is free now gets it; returns those who were beyond, and leave."""
        before, self.limits = self.limits, limits
        if limits.connect_rate_user != before.connect_rate_user:
            self.attempts = RateBook.of(limits.connect_rate_user)
        for user in self.users.values():
            user.roster.seats.resize(limits.per_user)
        self.total.seats.resize(limits.total)
        overdue = self._retime_all()
        beyond = (*overdue, *(self._lower() if limits.enforce else ()))
        ended = tuple(stay.id for stay in beyond)
        self.bulletin.post(events.LimitsChanged(at=trio.current_time(), before=before, after=limits, ended=ended))
        for roster in (*(user.roster for user in self.users.values()), self.total):
            for heir in list(roster.seats.heirs):
                self._take_seats(heir)
        self._promote()
        return beyond

    def _lower(self) -> Iterator[Stay]:
        """End whoever is beyond a limit, by its policy."""
        policies = self.policies
        rosters = [(user.roster, user.name, PER_USER, policies.overflow_user) for user in self.users.values()]
        for roster, name, limit, policy in [*rosters, (self.total, "", TOTAL, policies.overflow_total)]:
            while len(roster.claims) > roster.maximum:
                stay = victim(roster, self.ranking, policy)
                sentence = limit_sentence(name or stay.identity.user, limit, len(roster.claims), roster.maximum)
                self._leave(stay, CloseReason.EVICTED, sentence, policy=policy)
                yield stay

    def _retime_all(self) -> tuple[Stay, ...]:
        """Whose time is over by the new limits ends now, not when the keeper has been told."""
        everybody = [*self.total.claims, *self.total.files[Stage.QUEUED]]
        for stay in everybody:
            stay.spared_at = -math.inf
            self._retime(stay)
        return tuple(stay for stay in everybody if stay.end is not None)

    def _retime(self, stay: Stay) -> None:
        """Count anew when its time is over; its age it keeps."""
        self._count_lifetime(stay, self.limits)
        for _ in (CloseReason.IDLE, CloseReason.LIFETIME):  # over already: now, and not when the keeper looks
            due = expiry(stay, self.limits)
            if stay.stage is Stage.CLAIM and due[0] <= trio.current_time():
                self._act(stay, due[1])
        stay.host.ring_by(max(self._due(stay), trio.current_time()))  # an alarm for the past would seem to ring late

    # -- keeping time ------------------------------------------------------------------------------------------

    def next_look(self, user: User) -> float:
        """When the keeper of `user` must look again."""
        if user.vacant_since is not None:
            lingers_until = user.vacant_since + self.timeouts.linger
            return max(lingers_until, user.held_until) if self.open else user.vacant_since
        return min(map(self._due, self._timed(user)), default=float("inf"))

    @step
    def look(self, user: User, rang_for: float, rang_at: float) -> None:
        """The alarm set for `rang_for` has rung: do what was due then. What is due since has its turns yet to come."""
        if rang_at - rang_for > LATE and rang_for > user.grace_until:  # once for each due, however slow we are
            user.grace_until = trio.current_time() + GRACE
        for stay in self._timed(user):
            at, what = next_due(stay, self.limits, self.timeouts)
            if at <= rang_at:
                self._act(stay, what)
        for stay in user.roster.claims:
            self._rearm(stay)
            self.unsuspect(stay)
        self._promote()

    def _act(self, stay: Stay, what: CloseReason | Act) -> None:
        if what is Act.SET_ASIDE:
            self._set_aside(stay)
        elif what is Act.PING:
            stay.pinged_at = trio.current_time()
            self.suspect(stay)
            self._of_wire(stay, stay.wire.ping)
        elif what in (CloseReason.IDLE, CloseReason.LIFETIME) and not self.limits.enforce:
            self._excuse(stay, what)
        else:
            assert isinstance(what, CloseReason)
            self._leave(stay, what)

    def _excuse(self, stay: Stay, reason: CloseReason) -> None:
        self._spare(stay, reason)
        stay.spared_at = trio.current_time()
        if reason is CloseReason.LIFETIME:
            self._count_lifetime(stay, attrs.evolve(self.limits, lifetime=math.inf))
        self._rearm(stay)
        stay.host.ring_by(self._due(stay))

    @enable_ki_protection
    def hold(self, name: str, seconds: float) -> None:
        """A user is at another node: what is done for them here goes on for so long, without any connection."""
        user = self.users.get(name)
        if user is not None:
            user.held_until = max(user.held_until, trio.current_time() + seconds)

    @step
    def close_user(self, user: User) -> bool:
        """Whether the user is gone. Decided and done in one step: a newcomer finds this user, or nobody."""
        if user.vacant_since is None or trio.current_time() < self.next_look(user):
            return False
        del self.users[user.name]
        return True

    @staticmethod
    def _timed(user: User) -> tuple[Stay, ...]:
        return tuple(stay for stage in ENDING for stay in user.roster.files[stage])

    # -- by hand -----------------------------------------------------------------------------------------------

    def _emergency(self, limit: str, roster: Roster) -> None:
        """One more is about to come in: shed from the high-water mark, so that nobody healthy has to go."""
        surplus = excess(len(roster.claims) + 1, roster.maximum, self.policies)
        if surplus and self.limits.enforce:
            self._shed(limit, roster, surplus)
        elif surplus:
            self._spare_idlers(roster, surplus)

    def _spare_idlers(self, roster: Roster, surplus: int) -> None:
        """Limits are only watched: say who would be shed, of each once in a TTL."""
        now = trio.current_time()
        for stay in reclaimable(roster, surplus, now, self.limits, self.timeouts, self.policies):
            if now - stay.spared_at >= self.limits.idle_ttl:
                stay.spared_at = now
                self._spare(stay, CloseReason.SHED)

    def _shed(self, limit: str, roster: Roster, surplus: int) -> tuple[Stay, ...]:
        now, before = trio.current_time(), len(roster.claims)
        victims = reclaimable(roster, surplus, now, self.limits, self.timeouts, self.policies)
        for stay in victims:
            self._leave(stay, CloseReason.SHED)
        if victims:
            shed = tuple(stay.id for stay in victims)
            self.bulletin.post(events.EmergencyCleanup(at=now, limit=limit, before=before, shed=shed))
        return victims

    @step
    def shed(self) -> tuple[Stay, ...]:
        """Emergency cleanup everywhere, whatever the fill: all that is reclaimable, of everybody."""
        victims = self._shed("total", self.total, len(self.total.claims))
        self._promote()
        return victims

    @step
    def cut(self) -> tuple[Stay, ...]:
        """End everything now, without a goodbye; returns what there was to end."""
        ending = tuple(stay for stage in ENDING for stay in self.total.files[stage])
        for stay in ending:
            self._leave(stay, CloseReason.RESTART)
            assert stay.end is not None
            self._of_wire(stay, stay.wire.cut, stay.end.code, stay.end.text)
        return ending

    @step
    def shut(self) -> None:
        """Admit nobody from now on, refuse those who wait for a claim; no user lingers."""
        self.open = False
        for stay in list(self.total.files[Stage.QUEUED]):
            self._leave(stay, CloseReason.RESTART)
        for user in self.users.values():
            user.ring_by(trio.current_time())

    @step
    def post(self, event: events.Event) -> None:
        """Tell everybody who wants to know."""
        self.bulletin.post(event)


def _same_session(user: User, identity: Identity) -> list[Stay]:
    """Whom a connection that takes over finds in its place."""
    if not identity.takes_over or identity.session is None:
        return []
    files = (user.roster.files[stage] for stage in (Stage.CLAIM, Stage.QUEUED))
    return [stay for file in files for stay in file if stay.identity.session == identity.session]
