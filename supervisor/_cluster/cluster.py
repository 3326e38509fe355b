"""The cluster: all nodes that share one engine, as one of them sees it."""

from __future__ import annotations

import base64
import contextlib
import json
import random
from collections.abc import AsyncGenerator, Callable, Iterable
from functools import partial
from typing import Any, cast

import attrs
import trio

from .._decisions.ledger import Ledger
from .._decisions.memberships import Group
from .._decisions.presence import Diff
from .._mechanisms.audience import Audience
from .._mechanisms.connection import Connection
from .._mechanisms.nodes import Remote
from .._mechanisms.run import Run
from .._mechanisms.supervisor import RoomShare, Supervisor
from .._words import events
from .._words.cluster import ClusterOptions
from .._words.errors import OutcomeUnknown, Unavailable
from .._words.frames import Frame
from .engine import Engine, OpenEngine, Push, open_redis, parse_url
from .leases import Leases
from .line import Line, Operation, in_batches
from .orders import Orders
from .replica import Card, Replica, Said

#: Seconds after which nothing is heard any more of an audience that nobody here belongs to.
UNATTENDED = 30.0
#: Members of a room that are told of in one operation.
_TOGETHER = 200
_FOREVER_MS = 10**11
_KINDS = ("user", "room", "errand")
#: Seconds for which a user's runs go on here once they follow one from another node, who says so every ten.
HELD = 30.0
#: What is told of who is here; a node that begins anew tells all of it again.
_STATED = frozenset({"claim", "leave", "give_back", "rob", "come", "go"})
_ENDED = '"event":"run_ended"'


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
    orders: Orders = attrs.field(init=False)
    _replicas: dict[Group, Replica] = attrs.field(factory=dict)
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
            rng,
        )
        cluster.leases = Leases(cluster.ledger, cluster.line, options.without == "local", options.patience)
        cluster.orders = Orders(cluster.line, cluster.node, cluster.look, supervisor.report)
        return cluster

    # -- what the supervisor asks --------------------------------------------------------------------------------

    async def claim(self, conn: Connection) -> None:
        """See `Nodes.claim`. Then this node hears what is told to the user, too."""
        replica = self._attend(Group("user", conn.user))
        await self.leases.claim(conn)
        if conn.end is None:
            await self._wait(replica)

    async def tell(self, group: Group, text: str, exclude: str | None) -> int:
        """See `Nodes.tell`."""
        limits = self.ledger.limits
        bounds = limits.history_messages, limits.history_bytes, _milliseconds(limits.history_age)
        answer = await self.line.do("tell", _spell(group), exclude or "", *bounds, text, patience=self.options.patience)
        return int(answer)

    def publish(self, group: Group, frame: Frame) -> None:
        """See `Nodes.publish`."""
        if group.kind in _KINDS and isinstance(group.name, str) and self.line.alive and not self.line.full:
            kind, text = ("text", frame.message) if isinstance(frame.message, str) else ("data", frame.message)
            content = text if isinstance(text, str) else base64.b64encode(text)
            self.line.ask("publish", _spell(group), kind, content)

    # -- runs ----------------------------------------------------------------------------------------------------

    def emit(self, run: Run, number: int, text: str) -> None:
        """See `Nodes.emit`."""
        if self.line.alive:
            limits = self.ledger.limits
            bounds = limits.run_messages, limits.run_bytes, _milliseconds(limits.history_age)
            self.line.ask("emit", _spell(_errand(run.id)), number, *bounds, text)

    def know(self, run: Run) -> None:
        """See `Nodes.know`."""
        if self.line.alive:
            outcome = None if run.outcome is None else run.outcome.value
            card = json.dumps({"run": run.id, "known_by": run.known_by, "outcome": outcome})
            self.line.ask("run", run.user, run.id, card, _milliseconds(self.ledger.limits.history_age))

    async def runs(self, user: str) -> list[dict[str, Any]]:
        """See `Nodes.runs`; none, if the engine does not say."""
        try:
            answer = await self.line.do("runs", user, patience=self.options.patience if self.line.alive else 0.0)
        except (Unavailable, OutcomeUnknown):
            return []
        return [json.loads(card) for card in answer]

    async def follow(self, conn: Connection, run: str, after: int | None) -> tuple[bool, int]:
        """See `Nodes.follow`. The user of the run goes on at its node as long as somebody follows it here."""
        group = _errand(run)
        await self._wait(self._attend(group))
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
        replica = self._replicas.get(group)
        nodes = {} if replica is None else replica.others
        return _share(card for cards in nodes.values() for card in cards.values())

    async def attend(self, group: Group) -> None:
        """See `Nodes.attend`. Without the engine it returns all the same, and what others say is not heard."""
        if group.kind in _KINDS and isinstance(group.name, str):
            await self._wait(self._attend(group))

    async def _wait(self, replica: Replica) -> None:
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

    # -- coming and going of connections -------------------------------------------------------------------------

    def see(self, diff: Diff) -> None:
        """A watcher of rooms: the other nodes are told who has come here, and who has gone."""
        if not isinstance(diff.room, str):
            return
        self._attend(Group("room", diff.room))
        if self.line.alive:
            for ids in in_batches((stay.id for stay in diff.left), _TOGETHER):
                self.line.ask("go", diff.room, *ids)
            self._come(diff.room, diff.joined, self.line.ask)

    def _come(self, room: str, members: dict[Any, Any], ask: Callable[..., Any]) -> None:
        for some in in_batches(members.items(), _TOGETHER):
            ask("come", room, *(part for conn, metadata in some for part in (conn.id, _card(conn, metadata))))

    # -- audiences ---------------------------------------------------------------------------------------------

    def _attend(self, group: Group) -> Replica:
        """Hear what is told to `group` from now on."""
        replica = self._replicas.get(group)
        if replica is None:
            replica = self._replicas[group] = Replica(group)
            if self.line.engine is not None:
                self.line.engine.subscribe([self._channel(group)])
                self._ask_for(replica)
        replica.wanted_at = trio.current_time()
        return replica

    def _ask_for(self, replica: Replica) -> None:
        """Learn what is missing, and who is there."""
        replica.miss()
        self._ask_for_messages(replica)
        if replica.group.kind == "room":
            self.line.ask("present", cast("str", replica.group.name), then=partial(self._meet, replica))

    def _ask_for_messages(self, replica: Replica) -> None:
        age = _milliseconds(self.ledger.limits.history_age)
        self.line.ask("attend", _spell(replica.group), replica.last or 0, age, then=partial(self._settle, replica))

    def _settle(self, replica: Replica, answer: list[Any]) -> None:
        last, *rest = answer
        kept = [
            Said(int(number), None, bytes(text).decode("utf-8", "surrogatepass"), int(age) / 1000)
            for number, age, text in in_batches(rest, 3)
        ]
        old, told = replica.settle(int(last), kept)
        if old:
            self.ledger.histories.resume(replica.group, old[0].number - 1, self.ledger.limits)
        for said in old:
            Audience(self.ledger, replica.group).keep(said.text, said.age)
        self._hand_on(replica, told)
        if self.ledger.histories.last(replica.group) != replica.last and replica.last is not None:
            self.ledger.histories.resume(replica.group, replica.last, self.ledger.limits)

    def _hand_on(self, replica: Replica, told: list[Said]) -> None:
        audience, histories = Audience(self.ledger, replica.group), self.ledger.histories
        for said in told:
            if histories.last(replica.group) != said.number - 1:
                missing = (histories.last(replica.group), said.number)
                histories.resume(replica.group, said.number - 1, self.ledger.limits)
                if missing[0]:
                    self.supervisor.post(
                        events.MessagesLost(
                            at=trio.current_time(), audience=_spell(replica.group), after=missing[0], before=missing[1]
                        )
                    )
            audience.hear(said.text, said.exclude, said.age)
            if replica.group.kind == "errand" and _ENDED in said.text:
                for member in audience.members:
                    self.ledger.part(member, replica.group)

    def _meet(self, replica: Replica, answer: list[Any]) -> None:
        """Who is in a room at other nodes; those who watch are told what is new in that."""
        before, replica.others = replica.others, {}
        for node, cards in in_batches(answer, 2):
            replica.others[bytes(node).decode()] = {card["connection"]: card for card in json.loads(cards)}
        moves, replica.moves = replica.moves or (), None
        for move in moves:
            _move(replica, *move)
        now = {card["connection"]: card for cards in replica.others.values() for card in cards.values()}
        then = {card["connection"]: card for cards in before.values() for card in cards.values()}
        self._announce(
            replica,
            [card for key, card in now.items() if then.get(key) != card],
            [card for key, card in then.items() if key not in now],
        )

    def _announce(self, replica: Replica, joined: list[Card], left: list[Card]) -> None:
        if not joined and not left:
            return
        room = self.supervisor.room(replica.group.name)
        self.supervisor.tell_watchers(room, _share(joined), _share(left))

    def _channel(self, group: Group) -> str:
        return f"{self.options.prefix}c:{_spell(group)}"

    # -- the line ----------------------------------------------------------------------------------------------

    def _connected(self, engine: Engine, epoch: str | None) -> None:
        prefix = self.options.prefix
        channels = [f"{prefix}node:{self.node}", f"{prefix}everybody", *map(self._channel, self._replicas)]
        for some in in_batches(channels, _TOGETHER):
            engine.subscribe(some)
        if epoch is not None:
            self._begin_anew(epoch)
        self.leases.check()
        for replica in self._replicas.values():
            self._ask_for(replica)
        self.supervisor.post(events.NodeConnected(at=trio.current_time(), node=self.node, anew=epoch is not None))
        self._entered.set()

    def _begin_anew(self, epoch: str) -> None:
        """The engine knows nothing of this node: tell it who is here. Another epoch has other numbers."""
        another, self.supervisor.epoch = self.supervisor.epoch != epoch, epoch
        if another:
            for replica in self._replicas.values():
                self.ledger.histories.forget(replica.group)
                replica.last = None
        self.line.drop(lambda it: it.name in _STATED and it.over is None)
        stated = self.leases.restate()
        for room, members in list(self.ledger.memberships.of_kind("room")):
            if isinstance(room.name, str):
                shares = {stay: stay.groups[room] for stay in members}
                self._come(room.name, shares, lambda name, *args: stated.append(Operation(name, args)))
        self.line.restate(stated)
        if another and self._entered.is_set():
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
                self._hear_audience(_parse(name[2:]), *text.split(" ", 2))
            else:
                self._hear_node(*text.split(" ", 2))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            self.garbled += 1
            self.supervisor.report("node", error)

    def _hear_audience(self, group: Group, kind: str, by: str, rest: str) -> None:
        replica = self._replicas.get(group)
        if replica is None:
            return
        match kind:
            case "said":
                exclude, _, text = rest.partition(" ")
                whole = replica.whole
                self._hand_on(replica, replica.hear(Said(int(by), exclude if exclude != "-" else None, _message(text))))
                if whole and not replica.whole:
                    self._ask_for_messages(replica)
            case "text" | "data" if by != self.node:
                frame = Frame(rest if kind == "text" else base64.b64decode(rest, validate=True))
                Audience(self.ledger, group).publish(frame)
            case "came" | "went" if by != self.node:
                cards = _cards(rest)
                if replica.moves is not None:
                    replica.moves.append((kind, by, cards))
                else:
                    _move(replica, kind, by, cards)
                    self._announce(replica, *((cards, []) if kind == "came" else ([], cards)))
            case "came" | "went" | "text" | "data":
                pass
            case _:
                raise ValueError(f"a message of an unknown kind: {kind[:20]!r}")

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
            case "lost":
                self.supervisor.post(events.NodeLost(at=trio.current_time(), node=first))
            case _:
                raise ValueError(f"an order of an unknown kind: {kind[:20]!r}")

    async def tidy(self) -> None:
        """Keep alive what is attended, and stop hearing what nobody belongs to: for ever."""
        while True:
            age = self.ledger.limits.history_age
            await trio.sleep(min(UNATTENDED / 3, age / 3))
            now = trio.current_time()
            for replica in list(self._replicas.values()):
                if Audience(self.ledger, replica.group).members:
                    replica.wanted_at = now
                elif now - replica.wanted_at > UNATTENDED:
                    self._drop(replica)
            if self.line.alive:
                self._touch(_milliseconds(age))
                self.line.ask("look", then=self._looked)

    def _touch(self, age: int) -> None:
        """Nothing is forgotten by the engine that somebody here needs."""
        running = cast("tuple[Run, ...]", tuple(self.ledger.runs.active.values()))
        groups = [*self._replicas, *(_errand(run.id) for run in running)]
        for some in in_batches(map(_spell, groups), _TOGETHER):
            self.line.ask("touch", age, *some)
        for run in running:
            self.know(run)
        for group in self._replicas:
            for user in {member.user for member in Audience(self.ledger, group).members if group.kind == "errand"}:
                self.line.ask("follow", cast("str", group.name), user)

    def _drop(self, replica: Replica) -> None:
        del self._replicas[replica.group]
        self.ledger.histories.forget(replica.group)
        if self.line.engine is not None:
            self.line.engine.unsubscribe([self._channel(replica.group)])

    async def leave(self) -> None:
        """Say goodbye: whatever this node held is free at once."""
        if self.line.engine is not None:
            with contextlib.suppress(Exception), trio.move_on_after(self.options.patience, shield=True):
                await self.line.do("exit", patience=self.options.patience)


def _spell(group: Group) -> str:
    return f"{group.kind}:{group.name}"


def _errand(run: str) -> Group:
    return Group("errand", run)


def _parse(spelled: str) -> Group:
    kind, colon, name = spelled.partition(":")
    if kind not in _KINDS or not colon:
        raise ValueError("an audience of an unknown kind")
    return Group(kind, name)


def _message(text: str) -> str:
    if not (text.startswith("{") and text.endswith("}") and len(text) > 2):
        raise ValueError("a message that is no JSON object")
    return text


def _card(conn: Connection, metadata: Any) -> str:
    card = {"connection": conn.id, "user": conn.user}
    try:
        return json.dumps(card if metadata is None else {**card, "metadata": metadata}, allow_nan=False)
    except (TypeError, ValueError, RecursionError):  # an application's own, that no other node could read
        return json.dumps(card)


def _cards(text: str) -> list[Card]:
    cards = json.loads(text)
    if not all(isinstance(card["connection"], str) and isinstance(card["user"], str) for card in cards):
        raise ValueError("no cards")
    return cast("list[Card]", cards)


def _share(cards: Iterable[Card]) -> RoomShare:
    return {Remote(card["connection"], card["user"]): card.get("metadata") for card in cards}


def _move(replica: Replica, kind: str, node: str, cards: list[Card]) -> None:
    here = replica.others.setdefault(node, {})
    for card in cards:
        if kind == "came":
            here[card["connection"]] = card
        else:
            here.pop(card["connection"], None)
    if not here:
        del replica.others[node]


def _milliseconds(seconds: float) -> int:
    return int(min(seconds * 1000, _FOREVER_MS))


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
        ledger.bulletin.watchers[cluster] = cluster.see
        try:
            yield cluster
        finally:
            with trio.CancelScope(shield=True):
                await supervisor.empty()
                await cluster.leave()
            supervisor.nodes = None
            del ledger.bulletin.watchers[cluster]
            nursery.cancel_scope.cancel()
