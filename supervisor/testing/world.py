"""A random world on virtual time: users, peers and handlers of every kind, come, fail and leave; one seed, one run.

After every single task step everything is audited, so that an inconsistency of one scheduler pass is found too.
"""

from __future__ import annotations

import math
import random
from collections import Counter
from functools import partial
from typing import Any, TypeVar

import attrs
import trio

from .._decisions.dues import next_due
from .._decisions.stay import Stage
from .._mechanisms.audience import Audience
from .._mechanisms.connection import Connection
from .._mechanisms.run import Run
from .._mechanisms.supervisor import Handler, Supervisor, open_supervisor
from .._words.closing import CloseReason
from .._words.errors import ConnectionClosed, Refused, RunLimitReached
from .._words.events import RunEnded, RunStarted, RunStuck
from .._words.identity import Identity
from .._words.limits import Limits, Overflow, Policies, Timeouts
from . import schedule
from .model import HAIR, Guest, Model, left_behind
from .wire import Fault, FaultWire, Peer

T = TypeVar("T")
NAMES = "abc"
#: Times that meet: sums of these fall into one batch with the supervisor's own bounds.
PAUSES = (0, 0, 0, 0.05, 0.1, 0.4, 0.5, 1, 7)
PEERS = (Peer.HEALTHY,) * 4 + tuple(Peer)
#: Whether a peer answers pings: as its kind does, or not.
ANSWERS = (None, None, True, False)
FAULTS: tuple[tuple[Fault, ...], ...] = (
    *[()] * 12,
    (Fault("send", "hang", 50, every=True),),
    (Fault("send", "raise", 2),),
    (Fault("receive", "raise", 2),),
    (Fault("close", "raise"),),
    (Fault("close", "hang"),),
    (Fault("close", "shield"),),
    (Fault("open", "raise"),),
    (Fault("open", "hang"),),
    (Fault("ping", "raise"), Fault("cut", "raise")),
)


def stray_cancelled() -> BaseException:
    """A `Cancelled` that belongs to no scope around whoever raises it."""

    async def main() -> BaseException:
        with trio.CancelScope() as scope:
            scope.cancel()
            try:
                await trio.lowlevel.checkpoint()
            except trio.Cancelled as cancelled:  # noqa: ASYNC103 - it is what this function is for
                return cancelled.with_traceback(None)  # noqa: ASYNC104 - the same
        raise AssertionError

    return trio.run(main)


STRAY = stray_cancelled()


@attrs.define(eq=False)
class World(trio.abc.Instrument):
    """One run: what it was dealt, what it saw, and what was wrong."""

    rng: random.Random
    #: Somebody's own handler; None: one of every kind of ours.
    handler: Handler | None = None
    limits: Limits = attrs.field(init=False)
    policies: Policies = attrs.field(init=False)
    timeouts: Timeouts = attrs.field(init=False)
    model: Model = attrs.field(init=False)
    supervisor: Supervisor | None = None
    problems: list[str] = attrs.field(factory=list)
    steps: int = 0
    running: Counter[str] = attrs.field(factory=Counter)
    stuck_runs: int = 0
    #: Members of rooms, as those who watch are told.
    seen: dict[Any, set[Connection]] = attrs.field(factory=dict)

    def __attrs_post_init__(self) -> None:
        self.limits = Limits(
            per_user=self.deal(1, 2, 3),
            total=self.deal(1, 2, 4, 6),
            stuck=self.deal(0, 1, 2, 99),
            idle_ttl=self.deal(1, 5, 300),
            lifetime=self.deal(math.inf, math.inf, 3),
            closing=self.deal(0, 1, 100),
            enforce=self.rng.random() < 0.9,
            runs=self.deal(0, 1, 3),
        )
        self.timeouts = Timeouts(
            linger=self.deal(0, 0, 1), wait=self.deal(0, 0.1, 1), ping_interval=self.deal(2, 20), pong=1
        )
        self.policies = Policies(
            overflow_user=self.deal(Overflow.EVICT_OLDEST, Overflow.EVICT_IDLEST, Overflow.REJECT, Overflow.WAIT),
            overflow_total=self.deal(*Overflow),
        )
        self.model = Model(self.limits, self.timeouts, self.policies, hears_everything=self.handler is None)

    def deal(self, *cards: T) -> T:
        """One of these, by the seed."""
        return self.rng.choice(cards)

    # -- oracles -----------------------------------------------------------------------------------------------

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        """Called by Trio between any two steps of any two tasks."""
        if self.supervisor is None:
            return
        self.steps += 1
        self.problems += self.supervisor.audit()
        self.model.compare(self.supervisor)
        ledger, now = self.supervisor._ledger, trio.current_time()
        if self.seen != {room: set(self.supervisor.room(room).members) for room in self.supervisor.rooms()}:
            self.problems.append(f"who watches rooms believes {self.seen}")
        for stay in (*ledger.total.files[Stage.CLAIM], *ledger.total.files[Stage.LEAVING]):
            due, what = next_due(stay, ledger.limits, ledger.timeouts)
            if due < now - HAIR:
                self.problems.append(f"{stay.id}: {what} is overdue by {now - due:g} s")
        for name, handlers in self.model.inside.items():
            user = ledger.users.get(name)
            bound = self.limits.per_user
            if user is not None:
                bound = int(user.roster.seats.limiter.total_tokens)  # which the audit has judged
                bound += len(user.roster.files[Stage.STUCK]) + sum(s.robbed for s in user.roster.files[Stage.LEAVING])
            if handlers > bound:
                self.problems.append(f"user {name!r}: {handlers} handlers, {bound} allowed")

    # -- actors ------------------------------------------------------------------------------------------------

    def handler_on(self, wire: FaultWire, name: str) -> Handler:
        """One of ours; or somebody's own, and a peer who talks to it."""
        if self.handler is not None:
            return partial(self.own, self.handler, wire)
        return partial(getattr(Handlers(self), name), wire=wire)

    async def own(self, handler: Handler, wire: FaultWire, conn: Connection) -> None:
        """A handler, and beside it a peer who talks to it."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.peer_talks, wire)
            await handler(conn)
            nursery.cancel_scope.cancel()

    def spoke(self, conn: Connection) -> None:
        """A handler has sent or received something, which is activity."""
        self.model.active(conn.id)

    async def peer_talks(self, wire: FaultWire) -> None:
        """A few messages, then gone, or not."""
        for message in ("a", b"b", '{"op":"join","room":"r"}', '{"op":"publish","room":"r","data":1}'):
            await trio.sleep(self.deal(0, 0.1, 1))
            wire.deliver(message)
        if self.rng.random() < 0.7:
            wire.hang_up(self.deal(CloseReason.PEER_CLOSED, CloseReason.PEER_LOST))

    # -- the play ----------------------------------------------------------------------------------------------

    async def connect(self, supervisor: Supervisor) -> None:
        """One connection; its caller may lose patience."""
        wire = FaultWire(self.deal(*PEERS), self.deal(*FAULTS), self.deal(*ANSWERS))
        name = self.deal(*HANDLERS)
        handler = self.model.watch(self.handler_on(wire, name))
        user, started = self.deal(*NAMES), trio.current_time()
        with trio.move_on_after(self.deal(math.inf, math.inf, 0, 0.05, 0.1, 1)) as patience:
            session, takes_over = self.deal(None, None, "s1", "s2"), self.rng.random() < 0.3
            guest = self.model.arriving(user, wire, patience.deadline, session, takes_over=takes_over)
            guest.obedient = self.handler is None and name not in STUBBORN
            try:
                identity = Identity(user=user, session=session, takes_over=takes_over)
                await supervisor.supervise(wire, identity, handler)
            except Refused:
                waited = trio.current_time() - started
                if waited > self.timeouts.evict + self.timeouts.wait + HAIR:
                    self.problems.append(f"refused after {waited:g} s")

    async def meddle(self, supervisor: Supervisor) -> None:
        """Somebody cleans up by hand, now and then."""
        what = self.rng.random()
        live = supervisor.connections()
        if what < 0.1 and live:
            chosen = self.deal(*live).id
            self.model.told(CloseReason.KICKED, partial(_is, chosen))
            await supervisor.disconnect(chosen)
        elif what < 0.13 and live:
            user = self.deal(*live).user
            self.model.told(CloseReason.KICKED, lambda guest: guest.user == user)
            await supervisor.disconnect_user(user)
        elif what < 0.15:
            self.model.told(CloseReason.SHED, lambda guest: False)  # only for the reasons it always has
            await supervisor.shed()
        elif what < 0.2:
            age = self.deal(1, 2)
            self.model.told(CloseReason.IDLE, lambda guest: guest.idle(trio.current_time()) >= age - HAIR)
            await supervisor.expire_idle(age)
        elif what < 0.22:
            self.model.told(CloseReason.RESTART, lambda guest: True, for_good=True)
            await supervisor.drain(rate=self.deal(2, math.inf), deadline=1)
        elif what < 0.27:
            changes: dict[str, Any] = {"per_user": self.deal(1, 2, 3), "total": self.deal(1, 2, 4, 6)}
            changes |= {"idle_ttl": self.deal(1, 5, 300), "lifetime": self.deal(math.inf, 3)}
            changes["enforce"] = self.rng.random() < 0.7
            self.model.limiting(attrs.evolve(supervisor.limits, **changes))
            await supervisor.set_limits(**changes)

    def _see(self, room: Audience, joined: dict[Any, Any], left: dict[Any, Any]) -> None:
        members = self.seen.pop(room.group.name, set()) - left.keys() | joined.keys()
        if members:
            self.seen[room.group.name] = members

    def _count_runs(self, event: object) -> None:
        match event:
            case RunStarted(user=user):
                self.running[user] += 1
                if self.running[user] > self.limits.runs:
                    self.problems.append(f"{user!r} has {self.running[user]} runs, limit {self.limits.runs}")
            case RunEnded(user=user):
                self.running[user] -= 1
            case RunStuck():
                self.stuck_runs += 1

    async def play(self) -> None:
        """Let them all come, and see that nothing is left when the house has closed."""
        with trio.CancelScope() as outer:
            async with trio.open_nursery() as callers:
                async with open_supervisor(
                    limits=self.limits, timeouts=self.timeouts, policies=self.policies
                ) as supervisor:
                    self.supervisor = supervisor
                    supervisor.subscribe(self.model)
                    supervisor.subscribe(self._count_runs)
                    supervisor.watch_rooms(self._see)
                    if self.rng.random() < 0.3:
                        supervisor.subscribe(_fails)
                    for _ in range(self.rng.randint(3, 20)):
                        for _ in range(self.deal(1, 1, 2, 8)):
                            callers.start_soon(self.connect, supervisor)  # noqa: ASYNC111 - its end is their end
                        callers.start_soon(self.meddle, supervisor)  # noqa: ASYNC111 - its end is their end
                        await trio.sleep(self.deal(*PAUSES))
                    self.model.closing()
                    if self.rng.random() < 0.3:
                        outer.cancel()
                    closing_at = trio.current_time()
                took = trio.current_time() - closing_at
                if not (supervisor.statistics().set_aside or self.stuck_runs) and took > self.timeouts.close + HAIR:
                    self.problems.append(f"closed late, after {took:g} s")
        self.model.compare_at_the_end(supervisor)
        self.problems += [*self.model.problems, *left_behind(supervisor)]


def _is(connection: str, guest: Guest) -> bool:
    return guest.id == connection


def _fails(event: object) -> None:
    raise RuntimeError("a subscriber that fails")


@attrs.frozen
class Handlers:
    """What handlers do, good and bad; all of them know the world they are in."""

    world: World

    async def sleeps(self, conn: Connection, wire: FaultWire) -> None:
        await trio.sleep_forever()

    async def returns(self, conn: Connection, wire: FaultWire) -> None:
        await trio.sleep(self.world.deal(0, 0.01, 0.3, 2))

    async def raises(self, conn: Connection, wire: FaultWire) -> None:
        await trio.sleep(self.world.deal(0, 0.05))
        raise ValueError("handler raises")

    async def raises_a_stray_cancelled(self, conn: Connection, wire: FaultWire) -> None:
        raise self.world.deal(STRAY, BaseExceptionGroup("stray", [STRAY, KeyError(1)])).with_traceback(None)

    async def sends(self, conn: Connection, wire: FaultWire) -> None:
        for number in range(30):
            await trio.sleep(0.5)
            await conn.send(str(number))
            self.world.spoke(conn)

    async def sends_impatiently(self, conn: Connection, wire: FaultWire) -> None:
        while True:
            with trio.move_on_after(self.world.deal(0, 0.05, 0.3)) as scope:
                await conn.send("x")
                self.world.spoke(conn)
            if scope.cancelled_caught:
                await trio.sleep(0.1)

    async def takes_its_time(self, conn: Connection, wire: FaultWire) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(self.world.deal(0, 0.05, 0.1, 0.2, 0.5))

    async def shields_itself(self, conn: Connection, wire: FaultWire) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(self.world.deal(1, 3, 30))

    async def swallows(self, conn: Connection, wire: FaultWire) -> None:
        for _ in range(5):
            try:
                await trio.sleep(1)
            except trio.Cancelled:  # noqa: ASYNC103 - a handler that nobody should write
                pass

    async def fails_in_a_nursery(self, conn: Connection, wire: FaultWire) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.sleep_forever)
            await trio.sleep(0.1)
            raise RuntimeError("handler raises in a nursery")

    async def closes_others(self, conn: Connection, wire: FaultWire) -> None:
        await trio.sleep(0.01)
        for other in conn.supervisor.connections():
            if self.world.rng.random() < 0.5:
                self.world.model.told(CloseReason.CLOSED, partial(_is, other.id))
                other.close()
        await trio.sleep(1)

    async def joins(self, conn: Connection, wire: FaultWire) -> None:
        conn.follow("run")
        with conn.join("corridor"):
            await trio.sleep(self.world.deal(0, 0.1))
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
                self.world.problems.append(f"{conn.id}: joined while leaving")

    async def starts_runs(self, conn: Connection, wire: FaultWire) -> None:
        for _ in range(self.world.deal(1, 2, 3)):
            try:
                run = conn.supervisor.start_run(conn.user, self.world.deal(*ERRANDS), self.world)
            except RunLimitReached:
                if self.world.running[conn.user] < self.world.limits.runs:
                    self.world.problems.append(
                        f"{conn.user!r} has {self.world.running[conn.user]} runs, and may not have one more"
                    )
                break
            run.follow(conn, 0)
            if self.world.rng.random() < 0.2:
                run.cancel()
        await trio.sleep(self.world.deal(0, 0.5, 2))

    async def has_hooks(self, conn: Connection, wire: FaultWire) -> None:
        async def fails() -> None:
            await trio.lowlevel.checkpoint()
            raise KeyError("hook raises")

        conn.on_close(trio.sleep, self.world.deal(0, 0.1, 30))
        conn.on_close(fails)
        await trio.sleep(self.world.deal(0, 0.5))

    async def reads(self, conn: Connection, wire: FaultWire) -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.world.peer_talks, wire)
            async for _ in conn:
                self.world.spoke(conn)
            await trio.sleep(self.world.deal(0, 0.1, 1))


async def _works(run: Run, world: World) -> None:
    for number in range(5):
        run.emit("step", number)
        await trio.sleep(world.deal(0, 0.1, 0.5))


async def _fails_to_work(run: Run, world: World) -> None:
    await trio.sleep(world.deal(0, 0.1))
    raise LookupError("a run that fails")


async def _fails_to_clean_up(run: Run, world: World) -> None:
    try:
        await trio.sleep(world.deal(0.1, 1, 30))
    finally:
        raise OSError("a run whose cleanup fails")


async def _works_for_ever(run: Run, world: World) -> None:
    await trio.sleep_forever()


async def _works_stubbornly(run: Run, world: World) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(world.deal(0.1, 3))


ERRANDS = (_works, _works, _fails_to_work, _fails_to_clean_up, _works_for_ever, _works_stubbornly)
STUBBORN = ("takes_its_time", "shields_itself", "swallows")
HANDLERS = tuple(name for name in vars(Handlers) if not name.startswith("_") and name != "world")


def play(seed: int, *instruments: trio.abc.Instrument, handler: Any = None) -> World:
    """Play the world of `seed`; the same seed is the same run."""
    world = World(random.Random(seed), handler)  # noqa: S311 - not for secrets
    schedule.run(seed, world.play, instruments=[world, *instruments])
    return world
