"""What has happened so far, counted from the events; and the snapshot that statistics are."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType

import attrs

from .._decisions.ledger import Ledger
from .._decisions.stay import Stage
from .._words import events
from .._words.events import Event


@attrs.define(eq=False)
class Tally:
    """A subscriber that counts."""

    admitted: int = 0
    refused: Counter[str] = attrs.field(factory=Counter)
    turned_away: Counter[str] = attrs.field(factory=Counter)
    closed: Counter[str] = attrs.field(factory=Counter)
    failures: Counter[str] = attrs.field(factory=Counter)
    spared: Counter[str] = attrs.field(factory=Counter)
    runs_ended: Counter[str] = attrs.field(factory=Counter)
    hard_limits: int = 0
    set_aside: int = 0
    emergencies: int = 0
    shed: int = 0
    longest_cleanup: float = 0.0
    #: Admitted and not given back; now, and at most.
    inside: int = 0
    peak: int = 0

    def __call__(self, event: Event) -> None:
        """Count one event."""
        match event:
            case events.Admitted():
                self.admitted += 1
                self.inside += 1
                self.peak = max(self.peak, self.inside)
            case events.Refused():
                self.refused[event.reason.word] += 1
                self.hard_limits += event.hard
            case events.TurnedAway():
                self.turned_away[event.error] += 1
            case events.Closed():
                self.inside -= 1
                self.closed[event.reason.word] += 1
                self.set_aside += event.stuck_at is not None
                self.longest_cleanup = max(self.longest_cleanup, event.cleanup)
            case events.EmergencyCleanup():
                self.emergencies += 1
                self.shed += len(event.shed)
            case events.RunEnded():
                self.runs_ended[event.outcome] += 1
            case events.Spared():
                self.spared[event.reason.word] += 1
            case events.Failed():
                self.failures[event.what] += 1


@attrs.frozen(kw_only=True)
class Statistics:
    """How things stand, at one moment. ``connections`` are the admitted that are not leaving."""

    connections: int
    users: int
    rooms: int
    #: Runs that have not ended.
    runs: int
    #: Under `Overflow.WAIT`: waiting for a claim.
    waiting: int
    #: Cancelled, handlers still in.
    leaving: int
    #: Handlers out, saying goodbye.
    closing: int
    #: Set aside, tasks still there.
    stuck: int
    #: Tokens of the total limit that are held.
    seats: int
    #: With as many connections as they may have.
    users_at_limit: int
    #: Queued towards slow consumers.
    outbox_bytes: int
    per_user_limit: int
    total_limit: int
    #: False: limits are only watched.
    enforce: bool
    draining: bool
    #: Since the start; the most there have been at once, those that leave included.
    peak: int
    admitted: int
    refused: Mapping[str, int]
    #: At the door, before it was known who they were; by the word for it.
    turned_away: Mapping[str, int]
    closed: Mapping[str, int]
    failures: Mapping[str, int]
    #: What would have happened if limits were enforced, by the reason.
    spared: Mapping[str, int]
    #: By their outcome.
    runs_ended: Mapping[str, int]
    hard_limits: int
    set_aside: int
    emergencies: int
    shed: int
    #: Seconds, from a first reason to everything given back.
    longest_cleanup: float


def take_statistics(ledger: Ledger, tally: Tally) -> Statistics:
    """A frozen snapshot."""
    files = ledger.total.files
    return Statistics(
        connections=len(ledger.total.claims),
        users=len(ledger.users),
        rooms=ledger.memberships.rooms,
        runs=len(ledger.runs.active),
        waiting=len(files[Stage.QUEUED]),
        leaving=len(files[Stage.LEAVING]),
        closing=len(files[Stage.CLOSING]),
        stuck=len(files[Stage.STUCK]),
        seats=int(ledger.total.seats.limiter.borrowed_tokens),
        users_at_limit=ledger.ranking.count(ledger.limits.per_user),
        outbox_bytes=ledger.queued.bytes,
        per_user_limit=ledger.limits.per_user,
        total_limit=ledger.total.maximum,
        enforce=ledger.limits.enforce,
        draining=not ledger.open,
        peak=tally.peak,
        admitted=tally.admitted,
        refused=MappingProxyType(dict(tally.refused)),
        turned_away=MappingProxyType(dict(tally.turned_away)),
        closed=MappingProxyType(dict(tally.closed)),
        failures=MappingProxyType(dict(tally.failures)),
        spared=MappingProxyType(dict(tally.spared)),
        runs_ended=MappingProxyType(dict(tally.runs_ended)),
        hard_limits=tally.hard_limits,
        set_aside=tally.set_aside,
        emergencies=tally.emergencies,
        shed=tally.shed,
        longest_cleanup=tally.longest_cleanup,
    )
