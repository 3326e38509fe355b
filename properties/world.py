"""A random world on the virtual clock: users, peers and handlers of every kind, one schedule per seed.

After every single task step everything is audited, so that an inconsistency of one scheduler pass is found too.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from collections.abc import Awaitable, Callable

import attrs
import trio
import trio._core._run as trio_run
from trio.testing import MockClock

from supervisor import (
    CloseReason,
    Connection,
    ConnectionClosed,
    Identity,
    Limits,
    Overflow,
    Policies,
    Refused,
    Supervisor,
    Timeouts,
    events,
    open_supervisor,
)
from supervisor._decisions.dues import next_due
from supervisor._decisions.stay import Stage
from tests.fakes import FakeWire

NAMES = "abc"
WIRES = ("polite", "polite", "mute", "raises", "slow", "shields", "never-reads", "refuses")
HANDLERS = (
    *("sleep", "sleep", "sleep", "return", "raise", "stray", "active", "slow-exit", "slow-exit"),
    *("shield", "swallow", "nursery", "kick", "join", "hooks", "reads"),
)
# Times that meet: sums of these fall into one batch with the supervisor's own bounds.
PAUSES = (0, 0, 0, 0.05, 0.1, 0.4, 0.5, 1, 7)


def stray_cancelled() -> BaseException:
    """A `Cancelled` that belongs to no scope around whoever raises it."""

    async def main() -> BaseException:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:
                return cancelled.with_traceback(None)
        raise AssertionError

    return trio.run(main)


STRAY = stray_cancelled()


@attrs.define(eq=False)
class World(trio.abc.Instrument):
    """One run: what it was dealt, what it saw, and what was wrong."""

    rng: random.Random
    limits: Limits = attrs.field(init=False)
    policies: Policies = attrs.field(init=False)
    timeouts: Timeouts = attrs.field(init=False)
    supervisor: Supervisor | None = None
    inside: Counter[str] = attrs.field(factory=Counter)
    wires: list[FakeWire] = attrs.field(factory=list)
    problems: list[object] = attrs.field(factory=list)
    admitted: set[str] = attrs.field(factory=set)
    closed: set[str] = attrs.field(factory=set)
    spoke_at: dict[str, float] = attrs.field(factory=dict)
    steps: int = 0

    def __attrs_post_init__(self) -> None:
        deal = self.rng.choice
        self.limits = Limits(
            per_user=deal([1, 2, 3]),
            total=deal([1, 2, 4, 6]),
            stuck=deal([0, 1, 2, 99]),
            idle_ttl=deal([1, 5, 300]),
            lifetime=deal([math.inf, math.inf, 3]),
            closing=deal([0, 1, 100]),
        )
        self.timeouts = Timeouts(linger=deal([0, 0, 1]), wait=deal([0, 0.1, 1]), ping_interval=deal([2, 20]), pong=1)
        self.policies = Policies(
            overflow_user=deal([Overflow.EVICT_OLDEST, Overflow.EVICT_IDLEST, Overflow.REJECT, Overflow.WAIT]),
            overflow_total=deal(list(Overflow)),
        )

    # -- oracles -----------------------------------------------------------------------------------------------

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by Trio between any two steps of any two tasks."""
        if self.supervisor is None:
            return
        self.steps += 1
        self.problems += self.supervisor.audit()
        ledger, now = self.supervisor._ledger, trio.current_time()
        for stay in (*ledger.total.files[Stage.CLAIM], *ledger.total.files[Stage.LEAVING]):
            due, what = next_due(stay, ledger.limits, ledger.timeouts)
            if due < now - 1e-9:
                self.problems.append(("overdue", stay.id, what, now - due))
        for name, handlers in self.inside.items():
            user = ledger.users.get(name)
            bound = self.limits.per_user
            if user is not None:
                bound += len(user.roster.files[Stage.STUCK]) + sum(s.robbed for s in user.roster.files[Stage.LEAVING])
            if handlers > bound:
                self.problems.append(("too many handlers", name, handlers, bound))

    def hear(self, event: events.Event) -> None:
        """Every admitted connection closes exactly once, and only an admitted one does."""
        match event:
            case events.Admitted():
                self.admitted.add(event.connection)
            case events.Closed():
                if event.connection in self.closed or event.connection not in self.admitted:
                    self.problems.append(("closed twice, or never admitted", event))
                self.closed.add(event.connection)
                idle_since = self.spoke_at.get(event.connection, -math.inf)
                if event.reason is CloseReason.IDLE and event.end.at - idle_since < 1 - 1e-9:
                    self.problems.append(("not idle", event))
                if event.cleanup > self.timeouts.close + 0.1 + 1e-9:
                    self.problems.append(("cleanup took too long", event))
            case events.Failed(what="wire" | "subscriber" | "audit"):
                self.problems.append(event)

    # -- actors ------------------------------------------------------------------------------------------------

    def handler(self, kind: str, wire: FakeWire) -> Callable[[Connection], Awaitable[None]]:
        """A handler of one kind, counted while it is inside."""

        async def handle(conn: Connection) -> None:
            self.inside[conn.user] += 1
            if len(conn.seats) != 2 or conn.end is not None:
                self.problems.append(("started without seats", conn))
            try:
                await getattr(self, "do_" + kind.replace("-", "_"))(conn, wire)
            finally:
                self.inside[conn.user] -= 1

        return handle

    async def do_sleep(self, conn: Connection, wire: FakeWire) -> None:
        await trio.sleep_forever()

    async def do_return(self, conn: Connection, wire: FakeWire) -> None:
        await trio.sleep(self.rng.choice([0, 0.01, 0.3, 2]))

    async def do_raise(self, conn: Connection, wire: FakeWire) -> None:
        await trio.sleep(self.rng.choice([0, 0.05]))
        raise ValueError("handler raises")

    async def do_stray(self, conn: Connection, wire: FakeWire) -> None:
        raise self.rng.choice([STRAY, BaseExceptionGroup("stray", [STRAY, KeyError(1)])]).with_traceback(None)

    async def do_active(self, conn: Connection, wire: FakeWire) -> None:
        for number in range(30):
            await trio.sleep(0.5)
            await conn.send(str(number))
            self.spoke_at[conn.id] = trio.current_time()

    async def do_slow_exit(self, conn: Connection, wire: FakeWire) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.rng.choice([0, 0.05, 0.1, 0.2, 0.5]))

    async def do_shield(self, conn: Connection, wire: FakeWire) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(self.rng.choice([1, 3, 30]))

    async def do_swallow(self, conn: Connection, wire: FakeWire) -> None:
        for _ in range(5):
            try:
                await trio.sleep(1)
            except trio.Cancelled:
                pass

    async def do_nursery(self, conn: Connection, wire: FakeWire) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep(0.1)
            raise RuntimeError("handler raises in a nursery")

    async def do_kick(self, conn: Connection, wire: FakeWire) -> None:
        await trio.sleep(0.01)
        for other in conn.supervisor.connections():
            if self.rng.random() < 0.5:
                other.close()
        await trio.sleep(1)

    async def do_join(self, conn: Connection, wire: FakeWire) -> None:
        conn.follow("run")
        with conn.join("corridor"):
            await trio.sleep(self.rng.choice([0, 0.1]))
        conn.join("hall")
        try:
            while True:
                conn.supervisor.room("hall").publish("x")
                await trio.sleep(0.5)
        finally:
            try:
                conn.join("closing")
            except ConnectionClosed:
                pass
            else:
                self.problems.append(("joined while leaving", conn))

    async def do_hooks(self, conn: Connection, wire: FakeWire) -> None:
        async def failing() -> None:
            raise KeyError("hook raises")

        conn.on_close(trio.sleep, self.rng.choice([0, 0.1, 30]))
        conn.on_close(failing)
        await trio.sleep(self.rng.choice([0, 0.5]))

    async def do_reads(self, conn: Connection, wire: FakeWire) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.peer_talks, wire)
            async for _ in conn:
                pass
            await trio.sleep(self.rng.choice([0, 0.1, 1]))

    async def peer_talks(self, wire: FakeWire) -> None:
        """Two messages, then gone."""
        for message in "ab":
            await trio.sleep(self.rng.choice([0, 0.1, 1]))
            wire.deliver(message)
        wire.hang_up(self.rng.choice([CloseReason.PEER_CLOSED, CloseReason.PEER_LOST]))

    # -- the play ----------------------------------------------------------------------------------------------

    async def connect(self, supervisor: Supervisor) -> None:
        """One connection; its caller may lose patience."""
        wire = FakeWire(self.rng.choice(WIRES), answers_pings=self.rng.random() < 0.7)
        self.wires.append(wire)
        handler = self.handler(self.rng.choice(HANDLERS), wire)
        with trio.move_on_after(self.rng.choice([math.inf, math.inf, 0, 0.05, 0.1, 1])):
            started = trio.current_time()
            try:
                await supervisor.supervise(wire, Identity(user=self.rng.choice(NAMES)), handler)
            except Refused:
                waited = trio.current_time() - started
                if waited > self.timeouts.evict + self.timeouts.wait + 1e-9:
                    self.problems.append(("refused too late", waited))

    async def meddle(self, supervisor: Supervisor) -> None:
        """Somebody cleans up by hand, now and then."""
        what = self.rng.random()
        live = supervisor.connections()
        if what < 0.1 and live:
            await supervisor.disconnect(self.rng.choice(live).id)
        elif what < 0.15:
            await supervisor.shed()
        elif what < 0.2:
            await supervisor.expire_idle(self.rng.choice([1, 2]))
        elif what < 0.22:
            await supervisor.drain(rate=self.rng.choice([2, math.inf]), deadline=1)

    async def play(self) -> None:
        """Let them all come, and see that nothing is left when the house has closed."""
        with trio.CancelScope() as outer:
            async with trio.open_nursery() as callers:
                async with open_supervisor(
                    limits=self.limits, timeouts=self.timeouts, policies=self.policies
                ) as supervisor:
                    self.supervisor = supervisor
                    supervisor.subscribe(self.hear)
                    for _ in range(self.rng.randint(3, 20)):
                        for _ in range(self.rng.choice([1, 1, 2, 8])):
                            callers.start_soon(self.connect, supervisor)
                        callers.start_soon(self.meddle, supervisor)
                        await trio.sleep(self.rng.choice(PAUSES))
                    if self.rng.random() < 0.3:
                        outer.cancel()
                    closing_at = trio.current_time()
                took = trio.current_time() - closing_at
                if not supervisor.statistics().set_aside and took > self.timeouts.close + 1e-9:
                    self.problems.append(("closed late", took))
        self.look_around(supervisor)

    def look_around(self, supervisor: Supervisor) -> None:
        """The exact baseline."""
        figures = supervisor.statistics()
        if figures.connections or figures.users or figures.seats or figures.stuck or figures.closing or figures.waiting:
            self.problems.append(("left behind", figures))
        if self.admitted != self.closed:
            self.problems.append(("admitted, never closed", self.admitted - self.closed))
        if supervisor._ledger.connections or supervisor._ledger.memberships.groups:
            self.problems.append("orphans")
        if +self.inside:
            self.problems.append(("handlers inside", self.inside))
        self.problems += supervisor.audit()


def run(seed: int, *instruments: trio.abc.Instrument) -> World:
    """Play the world of `seed`, with Trio's schedule drawn from it too; the same seed is the same run."""
    trio_run._ALLOW_DETERMINISTIC_SCHEDULING = True
    trio_run._r.seed(seed)
    world = World(random.Random(seed))
    trio.run(world.play, clock=MockClock(autojump_threshold=0), instruments=[world, *instruments])
    return world
