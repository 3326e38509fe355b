"""What happens, as typed and frozen records. Whoever wants to know subscribes; nothing is logged in the mechanisms."""

from __future__ import annotations

import attrs

from .closing import CloseReason, End
from .identity import Identity
from .limits import Limits, Overflow


@attrs.frozen(kw_only=True)
class Event:
    """The root of all events; `at` is `trio.current_time`."""

    at: float


@attrs.frozen(kw_only=True)
class Admitted(Event):
    """A connection has its seats and starts. Exactly one `Closed` follows."""

    connection: str
    identity: Identity
    #: Seconds from its arrival to its seats.
    waited: float


@attrs.frozen(kw_only=True)
class Refused(Event):
    """A connection was not admitted; the id is one that nobody else gets."""

    connection: str
    identity: Identity
    reason: CloseReason
    text: str
    hard: bool = False


@attrs.frozen(kw_only=True)
class TurnedAway(Event):
    """A request was refused at the door, before it was known to be anybody's; `error` as its JSON answer has it."""

    peer: str
    status: int
    error: str
    text: str
    request: str | None = None


@attrs.frozen(kw_only=True)
class Leaving(Event):
    """The first reason for a connection to end: its claim and its memberships are free, its time to leave runs.

    What follows is its `Closed`; or its `Refused`, if it was still waiting for its seats.
    """

    connection: str
    identity: Identity
    end: End
    #: What chose it, if it was evicted for somebody else.
    policy: Overflow | None = None

    @property
    def reason(self) -> CloseReason:
        """Why it leaves."""
        return self.end.reason


@attrs.frozen(kw_only=True)
class Closed(Event):
    """Everything of a connection is given back; its `duration` in seconds.

    With `stuck_at` (``file:line``) the handler is still there: set aside, its task counted until `HandlerReturned`.
    """

    connection: str
    identity: Identity
    end: End
    duration: float
    #: Seconds from the first reason to here; and to the handler's end, or to here if it has none.
    cleanup: float
    overrun: float
    #: There was no time for a goodbye, or it was not answered in time.
    forced: bool
    stuck_at: str | None = None

    @property
    def reason(self) -> CloseReason:
        """Why it ended."""
        return self.end.reason


@attrs.frozen(kw_only=True)
class HandlerReturned(Event):
    """A stuck handler that had been set aside has ended after all."""

    connection: str
    identity: Identity


@attrs.frozen(kw_only=True)
class EmergencyCleanup(Event):
    """An admission reached the high-water mark of a limit (``user 'ann'`` or ``total``) and connections were shed."""

    limit: str
    before: int
    shed: tuple[str, ...]


@attrs.frozen(kw_only=True)
class Spared(Event):
    """Under ``enforce=False``: a limit would have kept a connection out, or ended it, for `reason`; and did not."""

    connection: str
    identity: Identity
    reason: CloseReason
    text: str


@attrs.frozen(kw_only=True)
class LimitsChanged(Event):
    """Other limits are in force; those who were beyond them, `ended`, leave."""

    before: Limits
    after: Limits
    ended: tuple[str, ...]


@attrs.frozen(kw_only=True)
class RunStarted(Event):
    """A user's run has begun. Exactly one `RunEnded` follows."""

    run: str
    user: str
    name: str


@attrs.frozen(kw_only=True)
class RunEnded(Event):
    """It is over: ``completed``, ``failed`` or ``cancelled``; `duration` in seconds."""

    run: str
    user: str
    name: str
    outcome: str
    text: str
    duration: float


@attrs.frozen(kw_only=True)
class RunStuck(Event):
    """A run has ignored its cancellation, though its user is gone: it is there still, at that line."""

    run: str
    user: str
    name: str
    stuck_at: str


@attrs.frozen(kw_only=True)
class Ordered(Event):
    """An operator has given an order over HTTP: who, what, with which words, and what came of it."""

    peer: str
    order: str
    body: str
    status: int
    outcome: str
    request: str | None = None


@attrs.frozen(kw_only=True)
class Failed(Event):
    """A handler, hook, subscriber or background task raised. It ended what it belonged to, and nothing else."""

    #: ``handler``, ``hook``, ``close``, ``wire``, ``reader``, ``run``, ``subscriber``, ``audit``,
    #: ``feed``, ``request`` or ``accept``.
    what: str
    exception: BaseException
    connection: str | None = None
    identity: Identity | None = None
    #: Of a run: which, and whose.
    run: str | None = None
    user: str | None = None


@attrs.frozen(kw_only=True)
class Audited(Event):
    """The periodic audit has recomputed every index; `orphans` names each inconsistency."""

    orphans: tuple[str, ...]


@attrs.frozen(kw_only=True)
class NodeConnected(Event):
    """Our node has reached the engine that it shares with others; `anew` if it had to say again who is here."""

    node: str
    anew: bool


@attrs.frozen(kw_only=True)
class NodeDisconnected(Event):
    """Our node has lost the engine, or could not reach it: `text` says why."""

    node: str
    text: str


@attrs.frozen(kw_only=True)
class NodeLost(Event):
    """Another node was given up, or has `left` by itself: its seats are free."""

    node: str
    left: bool = False


@attrs.frozen(kw_only=True)
class MessagesLost(Event):
    """What an audience was told between these numbers is known to nobody any more; clients see it by the numbers."""

    audience: str
    after: int
    before: int


@attrs.frozen(kw_only=True)
class DrainStarted(Event):
    """Nobody is admitted any more; `connections` are about to be closed."""

    connections: int


@attrs.frozen(kw_only=True)
class DrainFinished(Event):
    """Everybody who was there when the drain started has left."""

    closed: int
    stuck: int
