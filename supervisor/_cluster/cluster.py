"""The cluster: all nodes that share one engine, as one of them sees it."""

from __future__ import annotations

import base64
import contextlib
import json
import random
from collections.abc import AsyncGenerator
from functools import partial
from typing import Any, cast

import attrs
import trio

from .._decisions.ledger import Ledger
from .._decisions.memberships import Group
from .._mechanisms.audience import Audience
from .._mechanisms.connection import Connection
from .._mechanisms.run import Run
from .._mechanisms.supervisor import RoomShare, Supervisor
from .._words import events
from .._words.cluster import ClusterOptions
from .._words.errors import OutcomeUnknown, Unavailable
from .._words.frames import Frame
from .attendance import TOGETHER, UNATTENDED, Attendance, errand, milliseconds, parse, shared, spell
from .engine import Engine, OpenEngine, Push, open_redis, parse_url
from .leases import Leases
from .line import Line, in_batches
from .orders import Orders

#: Seconds for which a user's runs go on here once they follow one from another node, who says so every ten.
HELD = 30.0
#: What is told of who is here; a node that begins anew tells all of it again.
_STATED = frozenset({"claim", "leave", "give_back", "rob", "come", "go"})


@attrs.define(eq=False)
class Cluster:
    """See `open_cluster`. It is the supervisor's `Nodes`."""

    supervisor: Supervisor
    options: ClusterOptions
    #: How this node is called.
    node: str
    ledger: Ledger
    line: Line = attrs.field(init=False)
    leases: Leases = attrs.field(init=False)
    attendance: Attendance = attrs.field(init=False)
    orders: Orders = attrs.field(init=False)
    _entered: trio.Event = attrs.field(factory=trio.Event)
    #: What was heard and could not be understood.
    garbled: int = 0
    #: What the engine has said last of all nodes together.
    _standing: dict[str, int] = attrs.field(factory=dict)

    @classmethod
    def of(
        cls, supervisor: Supervisor, options: ClusterOptions, open_engine: OpenEngine, rng: random.Random
    ) -> Cluster:
        """A node that has not been heard of yet."""
        cluster = cls(supervisor, options, f"{rng.getrandbits(40):010x}", supervisor._ledger)
        cluster.line = Line(
            cluster.node,
            options.prefix,
            options.lease,
            open_engine,
            cluster._hear,
            cluster._connected,
            cluster._lost,
            cluster._failed,
            rng,
        )
        cluster.leases = Leases(cluster.ledger, cluster.line, options.without == "local", options.patience)
        cluster.attendance = Attendance(supervisor, cluster.ledger, cluster.line, cluster.node, options.prefix)
        cluster.orders = Orders(cluster.line, cluster.node, cluster.look, supervisor.report)
        return cluster

    # -- what the supervisor asks --------------------------------------------------------------------------------

    async def claim(self, conn: Connection) -> None:
        """See `Nodes.claim`. Then this node hears what is told to the user, too."""
        await self.leases.claim(conn)
        if conn.end is None:
            await self.attend(Group("user", conn.user))

    async def tell(self, group: Group, text: str, exclude: str | None, by: Connection | None) -> int:
        """See `Nodes.tell`."""
        limits = self.ledger.limits
        bounds = limits.history_messages, limits.history_bytes, milliseconds(limits.history_age)
        claim = "" if by is None else f"{by.id} {by.user}"
        arguments = spell(group), exclude or "", claim, *bounds, text
        answer = await self.line.do("tell", *arguments, patience=self.options.patience)
        if answer == b"gone":
            raise Unavailable("the connection that says it has left, or was taken over")
        return int(answer)

    def publish(self, group: Group, frame: Frame) -> None:
        """See `Nodes.publish`."""
        if shared(group) and self.line.alive and not self.line.full:
            kind, text = ("text", frame.message) if isinstance(frame.message, str) else ("data", frame.message)
            content = text if isinstance(text, str) else base64.b64encode(text)
            self.line.ask("publish", spell(group), kind, content)

    # -- runs ----------------------------------------------------------------------------------------------------

    def emit(self, run: Run, number: int, text: str) -> None:
        """See `Nodes.emit`."""
        if self.line.alive and not self.line.full:
            limits = self.ledger.limits
            bounds = limits.run_messages, limits.run_bytes, milliseconds(limits.history_age)
            self.line.ask("emit", spell(errand(run.id)), number, *bounds, text)

    def know(self, run: Run) -> None:
        """See `Nodes.know`."""
        if self.line.alive:
            outcome = None if run.outcome is None else run.outcome.value
            card = json.dumps({"run": run.id, "known_by": run.known_by, "outcome": outcome})
            self.line.ask("run", run.user, run.id, card, milliseconds(self.ledger.limits.history_age))

    async def register(self, run: Run) -> None:
        """See `Nodes.register`."""
        self.know(run)
        with contextlib.suppress(Unavailable, OutcomeUnknown):  # it begins all the same
            await self.runs(run.user)

    async def runs(self, user: str) -> list[dict[str, Any]]:
        """See `Nodes.runs`; none, if the engine has been away for longer than the lease."""
        if not self.line.alive:
            return []
        answer = await self.line.do("runs", user, patience=self.options.patience)
        return [json.loads(card) for card in answer]

    async def follow(self, conn: Connection, run: str, after: int | None) -> tuple[bool, int]:
        """See `Nodes.follow`. The user of the run goes on at its node as long as somebody follows it here."""
        group = errand(run)
        await self.attend(group)
        audience = Audience(self.ledger, group)
        if group in conn.groups:
            return after in (None, audience.last), audience.last
        complete = True if after is None else audience.recover(conn, after)
        self.ledger.join(conn, group, None)
        self.line.ask("follow", run, conn.user)
        return complete, audience.last

    def cancel(self, run: str) -> None:
        """See `Nodes.cancel`."""
        self.line.ask("cancel", run)

    def others(self, group: Group) -> RoomShare:
        """See `Nodes.others`."""
        return self.attendance.others(group)

    async def attend(self, group: Group) -> None:
        """See `Nodes.attend`. Without the engine it returns all the same, and what others say is not heard."""
        if shared(group):
            replica = self.attendance.attend(group)
            with trio.move_on_after(self.options.patience if self.line.alive else 0.0):
                await replica.ready.wait()

    @property
    def standing(self) -> dict[str, int]:
        """See `Nodes.standing`."""
        return {"lease_held": int(self.line.alive), **self._standing}

    async def look(self, patience: float) -> frozenset[str]:
        """Which nodes there are, and how many connections and users they have together. As `Line.do` raises."""
        answer = await self.line.do("look", patience=patience)
        return self._looked(answer)

    def _looked(self, answer: list[Any]) -> frozenset[str]:
        connections, users, leaving, *names = answer
        self._standing = {
            "nodes": len(names), "connections": int(connections), "users": int(users), "leaving": int(leaving),
        }  # fmt: skip
        return frozenset(bytes(name).decode() for name in names)

    # -- the line ----------------------------------------------------------------------------------------------

    def _connected(self, engine: Engine, epoch: str | None) -> None:
        prefix = self.options.prefix
        audiences = map(self.attendance.channel, self.attendance.replicas)
        channels = [f"{prefix}node:{self.node}", f"{prefix}everybody", *audiences]
        for some in in_batches(channels, TOGETHER):
            engine.subscribe(some)
        if epoch is not None:
            self._begin_anew(epoch)
        self.leases.check()
        self.attendance.ask_for_all()
        self.supervisor.post(events.NodeConnected(at=trio.current_time(), node=self.node, anew=epoch is not None))
        self._entered.set()

    def _begin_anew(self, epoch: str) -> None:
        """The engine knows nothing of this node: tell it who is here. Another epoch has other numbers."""
        another, self.supervisor.epoch = self.supervisor.epoch != epoch, epoch
        if another:
            self.attendance.begin_anew()
        self.line.drop(lambda it: it.name in _STATED and it.over is None)
        self.line.restate([*self.leases.restate(), *self.attendance.state()])
        if another:
            self.line.ask("look", then=lambda _: self.supervisor.change_epoch())  # when all is known again

    def _lost(self, why: str) -> None:
        self.supervisor.post(events.NodeDisconnected(at=trio.current_time(), node=self.node, text=why))

    def _hear(self, push: Push) -> None:
        """Whatever others say. What cannot be understood is counted, and hurts nobody."""
        channel, payload = push
        try:
            name = channel.decode("utf-8", "surrogatepass").removeprefix(self.options.prefix)
            text = payload.decode("utf-8", "surrogatepass")
            if name.startswith("c:"):
                self.attendance.hear(parse(name[2:]), *text.split(" ", 2))
            else:
                self._hear_node(*text.split(" ", 2))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            self._failed(error)

    def _failed(self, exception: Exception) -> None:
        """Somebody has said, or written, what no node would."""
        self.garbled += 1
        self.supervisor.report("node", exception)

    def _hear_node(self, kind: str, first: str, rest: str = "") -> None:
        match kind:
            case "evict":
                self.leases.evicted(first, rest)
            case "free":
                self.leases.freed(f"{first} {rest}")
            case "hold":
                self.ledger.hold(rest, HELD)
            case "cancel" if first in self.ledger.runs.active:
                self.ledger.runs.active[first].scope.cancel()
            case "cancel":
                pass
            case "order":
                self.orders.hear(first, rest)
            case "lost" | "left" if first != self.node:
                self.supervisor.post(events.NodeLost(at=trio.current_time(), node=first, left=kind == "left"))
            case "lost" | "left":
                pass
            case _:
                raise ValueError(f"an order of an unknown kind: {kind[:20]!r}")

    async def tidy(self) -> None:
        """Keep alive what is needed, and stop hearing what is not: for ever."""
        while True:
            await trio.sleep(min(UNATTENDED, self.ledger.limits.history_age) / 3)
            self.attendance.drop_unattended()
            if self.line.alive:
                running = cast("tuple[Run, ...]", tuple(self.ledger.runs.active.values()))
                self.attendance.touch(run.id for run in running)
                for run in running:
                    self.know(run)
                self.line.ask("look", then=self._looked)

    async def leave(self) -> None:
        """Say goodbye: whatever this node held is free at once."""
        if self.line.engine is not None:
            with contextlib.suppress(Exception), trio.move_on_after(self.options.patience, shield=True):
                await self.line.do("exit", patience=self.options.patience)


@contextlib.asynccontextmanager
async def open_cluster(
    supervisor: Supervisor,
    options: ClusterOptions,
    open_engine: OpenEngine | None = None,
    rng: random.Random = random.SystemRandom(),
) -> AsyncGenerator[Cluster, None]:
    """Make `supervisor` one node of a cluster, for the length of a block within its own.

    Limits are then of all nodes together, and what is told to a room or to a user is told at all of them. Returns once
    the engine was reached, or after ``options.patience``: see ``options.without``. Nobody may be connected yet.
    """
    if supervisor.connections():
        raise RuntimeError("a supervisor joins a cluster before anybody connects")
    if open_engine is None:
        patience = min(options.patience, options.lease / 2)
        open_engine = partial(open_redis, parse_url(options.url, patience), patience)
    cluster = Cluster.of(supervisor, options, open_engine, rng)
    ledger = supervisor._ledger
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.line.hold, name="line")
        nursery.start_soon(cluster.tidy, name="attendance")
        nursery.start_soon(cluster.orders.obey, name="orders")
        with trio.move_on_after(options.patience):
            await cluster._entered.wait()
        ledger.prefix, supervisor.nodes = f"{cluster.node}-", cluster
        ledger.bulletin.watchers[cluster] = cluster.attendance.see
        try:
            yield cluster
        finally:
            with trio.CancelScope(shield=True):
                await supervisor.empty()
                await cluster.leave()
            supervisor.nodes = None
            del ledger.bulletin.watchers[cluster]
            nursery.cancel_scope.cancel()
