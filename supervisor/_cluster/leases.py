"""Leases: what connections of this node hold among all nodes."""

from __future__ import annotations

import math
from functools import partial

import attrs
import trio

from .._decisions.ledger import Ledger
from .._mechanisms.connection import Connection
from .._words.closing import CloseReason
from .._words.errors import PER_USER, TOTAL, LimitReached, Superseded, Unavailable, limit_sentence
from .._words.limits import Overflow
from .line import Line, Operation

#: How a policy is decided by the engine. It does not know who is idle, so the idlest is the oldest there.
_REFUSE = frozenset({Overflow.REJECT, Overflow.WAIT})
#: Seconds between two looks whether there is a claim, for whoever waits for one.
_LOOK_AGAIN = 0.05
_NO_LIMIT = 1_000_000_000


@attrs.define(eq=False)
class Held:
    """One connection's lease."""

    leases: Leases
    conn: Connection
    claim: str
    #: It was let in, by all nodes, or by this one as long as they cannot be asked.
    granted: bool = False
    _left: bool = False
    _given_back: bool = False

    def leave(self) -> None:
        """The claim is free."""
        if not self._left:
            self._left = True
            self.leases.tell("leave", self.claim)

    def give_back(self) -> None:
        """The seats are free, too."""
        if not self._given_back:
            self._left = self._given_back = True
            self.leases.held.pop(self.claim, None)
            self.leases.tell("give_back", self.claim)


@attrs.define(eq=False)
class Leases:
    """All of this node's, by what the engine calls them."""

    ledger: Ledger
    line: Line
    #: Without the engine, whoever this node has room for comes in.
    local: bool
    #: Seconds to wait for the engine.
    patience: float
    held: dict[str, Held] = attrs.field(factory=dict)
    #: Seats at other nodes that somebody here waits for.
    _awaited: dict[str, trio.Event] = attrs.field(factory=dict)

    def tell(self, name: str, claim: str) -> None:
        """Have the engine know; a node that the engine has given up has nothing to give back."""
        if self.line.alive:
            self.line.ask(name, claim)

    async def claim(self, conn: Connection) -> None:
        """See `Nodes.claim`."""
        held = Held(self, conn, f"{conn.id} {conn.user}")
        conn.lease = self.held[held.claim] = held
        until = trio.current_time() + self.ledger.timeouts.wait
        while True:
            answer = await self._ask(conn)
            if conn.end is not None:
                return
            if answer is None:
                held.granted = True
                return
            outcome, *rest = answer
            if outcome == b"late":
                raise self.ledger.refuse(conn, Superseded(CloseReason.TAKEN_OVER.text, CloseReason.TAKEN_OVER))
            if outcome == b"in":
                held.granted = True
                await self._wait_for_seats(conn, [bytes(claim).decode("utf-8", "surrogatepass") for claim in rest])
                return
            refusal = self._refusal(conn, rest[0] == b"total", int(rest[1]))
            policies = self.ledger.policies
            policy = policies.overflow_user if refusal.limit == PER_USER else policies.overflow_total
            if policy is not Overflow.WAIT or trio.current_time() + _LOOK_AGAIN > until:
                raise self.ledger.refuse(conn, refusal)
            await self._sleep(conn, trio.Event(), _LOOK_AGAIN)

    async def _ask(self, conn: Connection) -> list[bytes] | None:
        """What the engine says; None if it says nothing, and this node may do without."""
        operation = self.line.ask("claim", *self._arguments(conn))
        operation.over = trio.Event()
        try:
            await self._sleep(conn, operation.over, self.patience if self.line.alive else 0.0)
        finally:
            if conn.end is not None or trio.current_effective_deadline() == -math.inf:
                self.line.forget(operation)
        if operation.answer is not None or conn.end is not None:
            answer: list[bytes] | None = operation.answer
            return answer
        operation.then = partial(self._judge, conn)  # if it is under way, its answer counts whenever it comes
        self.line.forget(operation)
        if self.local:
            if self.line.alive and operation.error is not None:
                self.line.ask("claim", *self._arguments(conn, restoring=True), then=operation.then)
            return None
        raise self.ledger.refuse(conn, Unavailable("it is not known now who is at the other nodes"))

    def _arguments(self, conn: Connection, *, restoring: bool = False) -> tuple[str | int, ...]:
        identity, limits, policies = conn.identity, self.ledger.limits, self.ledger.policies
        per_user, total = (limits.per_user, limits.total) if limits.enforce else (_NO_LIMIT, _NO_LIMIT)
        user, everybody = (
            "refuse" if restoring or policy in _REFUSE else policy.value
            for policy in (policies.overflow_user, policies.overflow_total)
        )
        takes_over = 0 if identity.session is None or restoring else int(identity.takes_over)
        return (
            conn.user, conn.id, identity.session or "", takes_over, per_user, total, user, everybody,
        )  # fmt: skip

    def _refusal(self, conn: Connection, total: bool, current: int) -> LimitReached:  # noqa: FBT001 - said by name above
        limits = self.ledger.limits
        limit, maximum = (TOTAL, limits.total) if total else (PER_USER, limits.per_user)
        return LimitReached(conn.user, limit, current, maximum)

    async def _wait_for_seats(self, conn: Connection, claims: list[str]) -> None:
        """Those who leave slowly, at whichever node, lose theirs after ``timeouts.evict``."""
        until = trio.current_time() + self.ledger.timeouts.evict
        events = {claim: self._awaited.setdefault(claim, trio.Event()) for claim in claims}
        for claim, event in events.items():
            await self._sleep(conn, event, until - trio.current_time())
            self._awaited.pop(claim, None)
            if not event.is_set():
                self.line.ask("rob", claim)

    async def _sleep(self, conn: Connection, event: trio.Event, at_most: float) -> None:
        """Until it is set, the time is over, or `conn` is told to leave; never mind why it was woken."""
        until = trio.current_time() + at_most
        while not event.is_set() and conn.end is None and trio.current_time() < until:
            with trio.CancelScope(deadline=until) as conn.scope:
                await event.wait()
            conn.scope = None
        await trio.lowlevel.checkpoint_if_cancelled()

    # -- what the engine says --------------------------------------------------------------------------------

    def freed(self, claim: str) -> None:
        """A seat that somebody waits for is free."""
        event = self._awaited.pop(claim, None)
        if event is not None:
            event.set()

    def evicted(self, why: str, claim: str) -> None:
        """Somebody at another node, or here, has taken the claim of one of ours."""
        held = self.held.get(claim)
        if held is None:
            return
        conn, limits = held.conn, self.ledger.limits
        if why == "session":
            self.ledger.hold(conn.user, self.patience + 1.0)  # for what they follow, they will say so
            self.ledger.leave(conn, CloseReason.TAKEN_OVER)
            return
        limit, maximum = (PER_USER, limits.per_user) if why == "user" else (TOTAL, limits.total)
        self.ledger.leave(conn, CloseReason.EVICTED, limit_sentence(conn.user, limit, maximum, maximum))

    def check(self) -> None:
        """Somebody may have taken claims of ours while this node did not hear: ask."""

        def told(claims: list[bytes]) -> None:
            for claim in claims:
                self.evicted("user", claim.decode("utf-8", "surrogatepass"))

        self.line.ask("evicted", then=told)

    def restate(self) -> list[Operation]:
        """When this node begins anew: who is here must have a claim again, oldest first, or leave."""
        serving = [held.conn for held in self.held.values() if held.granted and held.conn.end is None]
        return [
            Operation("claim", self._arguments(conn, restoring=True), partial(self._judge, conn)) for conn in serving
        ]

    def _judge(self, conn: Connection, answer: list[bytes]) -> None:
        """It came in without being asked for; now it is known whether there was room."""
        if answer[0] == b"full":
            refusal = self._refusal(conn, answer[1] == b"total", int(answer[2]))
            self.ledger.leave(conn, CloseReason.EVICTED, str(refusal))
