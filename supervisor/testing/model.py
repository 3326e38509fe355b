"""An account of who should be in, kept by somebody else: the simplest bookkeeping that can be right.

It is told what the outside does (who arrives, speaks, leaves) and hears what the supervisor says of itself. Whatever
the one does not justify in the other is a problem. It shares no code with what it judges.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable

import attrs
import trio

from .._mechanisms.connection import Connection
from .._mechanisms.supervisor import Handler, Supervisor
from .._words import events
from .._words.closing import CloseReason, End
from .._words.limits import Limits, Overflow, Policies, Timeouts
from .wire import FaultWire, Peer

#: Two ways of adding up the same floating-point numbers may differ by this much.
HAIR = 1e-6
#: Beyond ``timeouts.close``, a goodbye that does not end by itself is given this long.
OVERRUN = 0.1
#: What happens to nobody while limits are only watched.
_LIMITED = (CloseReason.EVICTED, CloseReason.SHED, CloseReason.IDLE, CloseReason.LIFETIME)


@attrs.define(eq=False)
class Guest:
    """Somebody who wanted to come in."""

    id: str
    user: str
    wire: FaultWire
    arrived: float
    active: float
    #: Of a session, which a newer connection may take over.
    session: str | None = None
    takes_over: bool = False
    #: When whoever waits for it to end loses patience.
    patience: float = math.inf
    #: Whether its handler is known to end when it is cancelled.
    obedient: bool = False
    #: What its handler's end would be a reason for, once that has begun.
    out: CloseReason | None = None
    #: Whether its handler is inside.
    running: bool = False
    aside: bool = False
    admitted: bool = False
    left: events.Leaving | None = None
    closed: events.Closed | None = None

    def idle(self, now: float) -> float:
        return now - max(self.active, self.wire.received_at)

    def unresponsive(self, now: float, seconds: float) -> bool:
        """Whether it may be called so, from what its wire has seen."""
        pinged = self.wire.unanswered[0] if self.wire.unanswered else math.inf
        stalled = math.inf if self.wire.stalled_since is None else self.wire.stalled_since
        return min(pinged, stalled) <= now - seconds + HAIR


@attrs.define(eq=False)
class Model:
    """Subscribe it to a supervisor, and tell it what happens outside; then ask for its `problems`."""

    limits: Limits
    timeouts: Timeouts
    policies: Policies
    #: Whether `active` is told of all activity; otherwise only received messages are known.
    hears_everything: bool = True
    guests: dict[str, Guest] = attrs.field(factory=dict)
    claims: list[Guest] = attrs.field(factory=list)
    queue: list[Guest] = attrs.field(factory=list)
    problems: list[str] = attrs.field(factory=list)
    inside: Counter[str] = attrs.field(factory=Counter)
    refused: int = 0
    draining: bool = False
    _arriving: Guest | None = None
    _evicted: bool = False
    #: Who may be given which reason by hand, and whether for good; otherwise until the next comparison.
    _told: list[tuple[CloseReason, Callable[[Guest], bool], bool]] = attrs.field(factory=list)
    #: Who has got a claim by waiting, since the last comparison.
    _promoted: set[str] = attrs.field(factory=set)

    # -- what the outside does ---------------------------------------------------------------------------------

    def arriving(
        self,
        user: str,
        wire: FaultWire,
        patience: float = math.inf,
        session: str | None = None,
        *,
        takes_over: bool = False,
    ) -> Guest:
        """Somebody arrives: to be told right before the supervisor is, with nothing between."""
        self._settle()
        now = trio.current_time()
        guest = Guest(f"c{len(self.guests) + 1}", user, wire, now, now, session, takes_over, patience)
        self.guests[guest.id] = guest
        self._arriving, self._evicted = guest, False
        return guest

    def active(self, connection: str) -> None:
        """The handler of a connection has sent or received a message."""
        self.guests[connection].active = trio.current_time()

    def watch(self, handler: Handler) -> Handler:
        """`handler`, of whose beginning and end the model knows."""

        async def watched(conn: Connection) -> None:
            guest = self.guests[conn.id]
            self.inside[guest.user] += 1
            if not guest.admitted or guest.left is not None or len(conn.seats) != 2:
                self._complain(guest, "its handler began, though it was not in")
            guest.out, guest.running = CloseReason.FAILED, True
            try:
                await handler(conn)
                guest.out = CloseReason.RETURNED
            finally:
                self.inside[guest.user] -= 1
                guest.running = False

        return watched

    def told(self, reason: CloseReason, whom: Callable[[Guest], bool], *, for_good: bool = False) -> None:
        """Somebody is about to end by hand, for `reason`, nobody but `whom`."""
        self._settle()
        self._told.append((reason, whom, for_good))
        self.draining = self.draining or reason is CloseReason.RESTART

    def limiting(self, limits: Limits) -> None:
        """Other limits are about to be set."""
        self._settle()
        self.limits = limits

    # -- what the supervisor says ------------------------------------------------------------------------------

    def __call__(self, event: events.Event) -> None:
        """Hear one event."""
        match event:
            case events.Leaving():
                self._leaving(event)
            case events.Refused():
                self._refused(event)
            case events.EmergencyCleanup():
                self._emergency(event)
            case events.Admitted():
                self._admitted(event)
            case events.Closed():
                self._closed(event)
            case events.HandlerReturned():
                self.guests[event.connection].aside = False
            case events.Failed(what="audit"):
                self.problems.append(f"the audit failed: {event.exception!r}")
            case events.Failed(what="wire", connection=str(connection)) if not self.guests[connection].wire.faults:
                self.problems.append(f"{connection}: its wire failed: {event.exception!r}")

    def _leaving(self, event: events.Leaving) -> None:
        if event.reason not in (CloseReason.SHED, CloseReason.EVICTED, CloseReason.TAKEN_OVER):
            self._settle()
        guest = self.guests.get(event.connection)
        if guest is None or guest.left is not None:
            self.problems.append(f"{event.connection} leaves, but was not in")
            return
        if not self._justified(guest, event):
            self._complain(guest, f"leaves for no reason: {event.reason.name} after {guest.idle(event.at):g} s")
        guest.left = event
        self.claims = [other for other in self.claims if other is not guest]
        self.queue = [other for other in self.queue if other is not guest]
        self._promote()

    def _justified(self, guest: Guest, event: events.Leaving) -> bool:
        now, reason = event.at, event.reason
        if any(reason is told and whom(guest) for told, whom, _ in self._told):
            return True
        if not self.limits.enforce and reason in _LIMITED and not self._sheds_by_hand(reason):
            return False
        match reason:
            case CloseReason.EVICTED:
                return self._may_be_evicted(guest)
            case CloseReason.TAKEN_OVER:
                newer = self._arriving
                same = newer is not None and (newer.user, newer.session) == (guest.user, guest.session)
                return same and newer is not None and newer.takes_over and guest.session is not None
            case CloseReason.SHED:
                idle_after = self.policies.shed_idle_after or self.limits.idle_ttl / 2
                return guest.idle(now) >= idle_after - HAIR or guest.unresponsive(now, self.timeouts.suspect)
            case CloseReason.IDLE:
                return guest.idle(now) >= self.limits.idle_ttl - HAIR
            case CloseReason.LIFETIME:
                return now - guest.arrived >= self.limits.lifetime - HAIR
            case CloseReason.UNRESPONSIVE:
                return guest.unresponsive(now, self.timeouts.pong)
            case CloseReason.RETURNED:
                return guest.out is reason
            case CloseReason.FAILED:
                return guest.out is reason or bool(guest.wire.faults)
            case CloseReason.LIMIT_REACHED:
                return guest in self.queue
            case CloseReason.CLOSED:  # that is what whoever calls `close` wants
                return not self.hears_everything
            case CloseReason.TOO_SLOW:
                return guest.wire.kind is not Peer.HEALTHY or bool(guest.wire.faults)
            case CloseReason.GOING_AWAY:
                return now >= guest.patience - HAIR
            case CloseReason.PEER_LOST if guest.wire.kind is Peer.REFUSES or guest.wire.faults:
                return True
        return reason is guest.wire.ended_for

    def _may_be_evicted(self, guest: Guest) -> bool:
        """Only for an arrival at a full limit, one for each, and whom the policy names; or if a limit was lowered."""
        newcomer = self._arriving
        if newcomer is None:
            return self._is_beyond(guest)
        if self._evicted:
            return False
        self._evicted = True
        theirs = self._of(newcomer.user)
        if len(theirs) >= self.limits.per_user:
            return self._is_victim(guest, self.policies.overflow_user, theirs)
        full = len(self.claims) >= self.limits.total
        return full and self._is_victim(guest, self.policies.overflow_total, self.claims)

    def _is_beyond(self, guest: Guest) -> bool:
        theirs = self._of(guest.user)
        if len(theirs) > self.limits.per_user:
            return self._is_victim(guest, self.policies.overflow_user, theirs)
        full = len(self.claims) > self.limits.total
        return full and self._is_victim(guest, self.policies.overflow_total, self.claims)

    def _is_victim(self, guest: Guest, policy: Overflow, among: list[Guest]) -> bool:
        if guest not in among:
            return False
        match policy:
            case Overflow.EVICT_OLDEST:
                return guest is among[0]
            case Overflow.EVICT_IDLEST:
                return not self.hears_everything or guest.active <= min(other.active for other in among) + HAIR
            case Overflow.EVICT_GREEDIEST:
                share = Counter(other.user for other in among)
                oldest = next(other for other in among if other.user == guest.user)
                return guest is oldest and share[guest.user] == max(share.values())
        return self._arriving is None and guest is among[-1]

    def _sheds_by_hand(self, reason: CloseReason) -> bool:
        return reason is CloseReason.SHED and any(told is reason for told, _, _ in self._told)

    def _emergency(self, event: events.EmergencyCleanup) -> None:
        """The connections have been said to leave before this."""
        if self._arriving is None and self._sheds_by_hand(CloseReason.SHED):
            return
        total = event.limit == "total"
        maximum = self.limits.total if total else self.limits.per_user
        excess = event.before + 1 - math.floor(maximum * self.policies.shed_to + HAIR)
        if event.before + 1 < maximum * self.policies.shed_at - HAIR or len(event.shed) > excess:
            self.problems.append(f"emergency at {event.before} of {maximum}: {len(event.shed)} shed, of {excess}")

    def _refused(self, event: events.Refused) -> None:
        self.refused += 1
        guest = self.guests[event.connection]
        if guest.left is not None:  # it has begun to leave while it was waiting
            return
        self._arriving = None
        if not self._may_be_refused(guest, event):
            self._complain(guest, f"refused for no reason: {event.text}")
        guest.left = events.Leaving(
            at=event.at, connection=guest.id, identity=event.identity, end=End(event.reason, 0, event.text, event.at)
        )

    def _may_be_refused(self, guest: Guest, event: events.Refused) -> bool:
        if self.draining or event.hard:
            return self.draining or self._slow_to_go(guest.user) > self.limits.stuck_per_user
        theirs = self._of(guest.user)
        idle_after = self.policies.shed_idle_after or self.limits.idle_ttl / 2
        if len(theirs) >= self.limits.per_user:
            policy, crowd = self.policies.overflow_user, theirs
        elif len(self.claims) >= self.limits.total:
            policy, crowd = self.policies.overflow_total, self.claims
        else:
            return False
        tried = not self.hears_everything or all(other.idle(event.at) < idle_after + HAIR for other in crowd)
        return tried and (
            policy is Overflow.REJECT or (policy is Overflow.WAIT and len(self.queue) >= self.limits.lobby)
        )

    def _admitted(self, event: events.Admitted) -> None:
        self._settle()
        guest = self.guests.get(event.connection)
        if guest is None or guest.admitted or guest in self.queue:
            self.problems.append(f"{event.connection} was admitted twice, or never arrived")
        else:
            guest.admitted = True

    def _closed(self, event: events.Closed) -> None:
        self._settle()
        guest = self.guests[event.connection]
        if guest.closed is not None or not guest.admitted or guest.left is None or guest.left.end != event.end:
            self._complain(guest, "closed twice, or never admitted, or for another reason")
        guest.closed, guest.aside = event, event.stuck_at is not None
        if guest.aside and (guest.obedient or not guest.running) and not guest.wire.faults:
            self._complain(guest, f"set aside at {event.stuck_at}, though only its peer was slow")
        if event.cleanup > max(self.timeouts.close + OVERRUN, self.timeouts.handler_exit) + HAIR:
            self._complain(guest, f"cleanup took {event.cleanup:g} s")

    # -- who should be in --------------------------------------------------------------------------------------

    def _settle(self) -> None:
        """Whoever arrived and has not been refused has a claim by now, or waits for one."""
        guest, self._arriving = self._arriving, None
        if guest is None:
            self._promote()
        elif self._has_room(guest):
            self.claims.append(guest)
        else:
            self.queue.append(guest)
            full = len(self._of(guest.user)) >= self.limits.per_user
            if (self.policies.overflow_user if full else self.policies.overflow_total) is not Overflow.WAIT:
                self._complain(guest, f"came in, though {len(self._of(guest.user))} of {len(self.claims)} were there")

    def _has_room(self, guest: Guest) -> bool:
        free = len(self.claims) < self.limits.total and len(self._of(guest.user)) < self.limits.per_user
        return free or not self.limits.enforce

    def _promote(self) -> None:
        """Who waits has what is free, but after the newcomer for whom it was freed."""
        if self._arriving is not None:
            return
        for guest in list(self.queue):
            if self._has_room(guest):
                self.queue.remove(guest)
                self._promoted.add(guest.id)
                guest.active = trio.current_time()
                self.claims.append(guest)

    def _slow_to_go(self, user: str) -> int:
        """How many tasks of theirs are there still, though they have been told to leave."""
        theirs = (guest for guest in self.guests.values() if guest.user == user and guest.admitted)
        return sum(guest.aside or (guest.left is not None and guest.closed is None) for guest in theirs)

    def _of(self, user: str) -> list[Guest]:
        return [guest for guest in self.claims if guest.user == user]

    def _complain(self, guest: Guest, problem: str) -> None:
        self.problems.append(f"{guest.id} of {guest.user!r}: {problem}")

    # -- comparing ---------------------------------------------------------------------------------------------

    def compare(self, supervisor: Supervisor) -> None:
        """Whether the supervisor has in whom this model has in. Holds whenever no task is in the middle of a step."""
        self._settle()
        self._promote()
        self._look_for_overdue()
        self._compare_claims(supervisor)
        self._told = [entry for entry in self._told if entry[2]]
        self._promoted.clear()

    def _compare_claims(self, supervisor: Supervisor) -> None:
        theirs = [conn.id for conn in supervisor.connections()]
        ours = [guest.id for guest in self.claims]
        if theirs == ours:
            return
        if set(theirs) != set(ours):
            wrong, missing = set(theirs) - set(ours), set(ours) - set(theirs)
            self.problems.append(f"in, and should not be: {wrong}; should be, and are not: {missing}")
        elif [name for name in theirs if name not in self._promoted] != [
            name for name in ours if name not in self._promoted
        ]:
            self.problems.append(f"in the order {theirs}; should be {ours}")
        # Several were promoted in one step, or in several; either order is fair.
        self.claims.sort(key=lambda guest: theirs.index(guest.id) if guest.id in theirs else -1)

    def _look_for_overdue(self) -> None:
        now = trio.current_time()
        for guest in self.claims if self.limits.enforce else ():
            idle = self.hears_everything and guest.idle(now) > self.limits.idle_ttl + HAIR
            if idle or now - guest.arrived > self.limits.lifetime + HAIR:
                self._complain(guest, f"should have ended, idle for {guest.idle(now):g} s")

    def closing(self) -> None:
        """The house is about to close: everybody may be ended, from now on."""
        for reason in (CloseReason.GOING_AWAY, CloseReason.RESTART):
            self.told(reason, lambda guest: True, for_good=True)

    def compare_at_the_end(self, supervisor: Supervisor) -> None:
        """Whether everybody who was admitted has closed, the counts agree, and nothing is left."""
        self.compare(supervisor)
        figures = supervisor.statistics()
        admitted = [guest for guest in self.guests.values() if guest.admitted]
        self.problems += [f"{guest.id}: admitted, never closed" for guest in admitted if guest.closed is None]
        self.problems += [f"{guest.id}: {breach}" for guest in self.guests.values() for breach in guest.wire.breaches]
        closed = Counter(guest.closed.reason.word for guest in admitted if guest.closed is not None)
        if (figures.admitted, figures.closed) != (len(admitted), closed) or sum(
            figures.refused.values()
        ) != self.refused:
            self.problems.append(f"counted {figures.admitted} {figures.closed}, were {len(admitted)} {closed}")
        if self.claims or self.queue or +self.inside:
            self.problems.append(f"still in: {self.claims} {self.queue} {+self.inside}")
        self.problems += left_behind(supervisor)


def left_behind(supervisor: Supervisor) -> Iterable[str]:
    """What is not at the baseline of an empty house."""
    figures = supervisor.statistics()
    names = ("connections", "users", "rooms", "runs", "waiting", "leaving", "closing", "stuck", "seats")
    remain = {name: getattr(figures, name) for name in names}
    yield from (f"{count} {name} remain" for name, count in remain.items() if count)
    yield from supervisor.audit()
