"""One connection's stay, from its claim to the moment when nothing of it is left; and its user."""

from __future__ import annotations

import enum
import math
from collections.abc import Awaitable, Callable, Hashable
from typing import TYPE_CHECKING, Any, Protocol

import attrs
import trio

from .._words.closing import CloseReason, End
from .._words.events import Closed
from .._words.identity import Identity
from .outbox import Outbox, Queued

if TYPE_CHECKING:
    from .._words.wire import Wire
    from .roster import Roster
    from .runs import Errand
    from .seats import Seats


class Stage(enum.IntEnum):
    """Where a stay is filed; its whole state besides `Stay.end`. Only ever moves down this list."""

    #: Under `Overflow.WAIT`: wants a claim, holds nothing.
    QUEUED = 0
    #: Admitted and not leaving: waiting for its seats, or serving. Claims are what limits limit.
    CLAIM = 1
    #: Told to leave; its handler is still in.
    LEAVING = 2
    #: Its handler is out and its seats are back; saying goodbye to the peer.
    CLOSING = 3
    #: Set aside: a task that ignores its cancellation is all that is left.
    STUCK = 4
    #: Nothing is left, and nothing refers to it.
    GONE = 5


@attrs.define(eq=False)
class User:
    """A user while they have connections (and for ``timeouts.linger`` after): the host of their nursery."""

    name: str
    roster: Roster
    #: What is queued in all their outboxes.
    queued: Queued
    #: Hosts every connection of this user; None before the keeper has opened it and after it has closed it.
    nursery: trio.Nursery | None = None
    opened: trio.Event = attrs.field(factory=trio.Event)
    #: What the keeper sleeps in; its deadline is the earliest due of all connections of this user.
    alarm: trio.CancelScope | None = None
    vacant_since: float | None = None
    #: They are at another node, and what is done for them here goes on until then.
    held_until: float = -math.inf
    #: Under how many claims the ranking has them.
    ranked: int = 0
    #: Those that have not ended, and the last that have.
    runs: dict[str, Errand] = attrs.field(factory=dict)
    #: Our own loop was late: until then nobody is expired for a silence that may have been ours.
    grace_until: float = -math.inf

    def ring_by(self, when: float) -> None:
        """Have the keeper look again at `when`, or earlier."""
        if self.alarm is not None and when < self.alarm.deadline:
            self.alarm.deadline = when


class Lease(Protocol):
    """What a stay holds among all nodes. Given back in the steps that give back what it holds here; idempotent."""

    def leave(self) -> None:
        """The claim is free."""
        ...

    def give_back(self) -> None:
        """The seats are free, too."""
        ...


@attrs.define(eq=False)
class Stay:
    """What the ledger keeps of one connection. Stage, end, seats and groups are written by the ledger only."""

    id: str
    identity: Identity
    wire: Wire
    handler: Callable[[Any], Awaitable[None]] | None = attrs.field(repr=False)
    opened_at: float
    #: When lifetime or credential are over, and which of them.
    ends_at: float
    ends_for: CloseReason
    last_active: float = attrs.field(init=False)
    host: User = attrs.field(init=False, repr=False)
    stage: Stage | None = attrs.field(default=None, init=False)
    end: End | None = attrs.field(default=None, init=False)
    #: Cancels what may be cancelled of it now: the wait for a claim or a seat, then the handler.
    scope: trio.CancelScope | None = attrs.field(default=None, init=False, repr=False)
    #: The tokens it holds, each known by its limit.
    seats: list[Seats] = attrs.field(factory=list, init=False, repr=False)
    lease: Lease | None = attrs.field(default=None, init=False, repr=False)
    task: trio.lowlevel.Task | None = attrs.field(default=None, init=False, repr=False)
    nursery: trio.Nursery | None = attrs.field(default=None, init=False, repr=False)
    #: The rooms and runs it is a member of, with its metadata there.
    groups: dict[Hashable, Any] = attrs.field(factory=dict, init=False, repr=False)
    begun: bool = attrs.field(default=False, init=False)
    #: The handler has received at least once, so the end of the messages is how it learns of the peer's leaving.
    reads: bool = attrs.field(default=False, init=False)
    #: Messages that wait for the socket, while somebody writes them out.
    outbox: Outbox | None = attrs.field(default=None, init=False, repr=False)
    #: When the handler was out.
    vacated_at: float | None = attrs.field(default=None, init=False, repr=False)
    #: Nobody waits for the peer's goodbye any more, or ever did.
    forced: bool = attrs.field(default=False, init=False, repr=False)
    pinged_at: float = attrs.field(default=-math.inf, init=False, repr=False)
    #: When it last was to leave, and did not have to because limits are only watched.
    spared_at: float = attrs.field(default=-math.inf, init=False, repr=False)
    closed: Closed | None = attrs.field(default=None, init=False, repr=False)
    #: Set once `closed` is; made only when somebody waits.
    gone: trio.Event | None = attrs.field(default=None, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        self.last_active = self.opened_at

    @property
    def robbed(self) -> bool:
        """Slow to leave, and its seats already taken by a newcomer: counts as stuck at once."""
        return self.begun and self.stage is Stage.LEAVING and not self.seats

    def unresponsive(self, now: float, suspect: float) -> bool:
        """Whether a ping has not been answered, or a write has not moved, for `suspect` seconds."""
        silent, stalled = self.wire.silent_since, self.wire.stalled_since
        pinged = silent is not None and silent < self.pinged_at <= now - suspect
        return pinged or (stalled is not None and stalled <= now - suspect)
