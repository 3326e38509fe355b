"""Attendance: the audiences that this node hears, and what it knows of each; what is told of those who are here."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterable
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
from .._mechanisms.supervisor import RoomShare, Supervisor
from .._words import events
from .._words.frames import Frame
from .line import Line, Operation, in_batches
from .replica import Card, Replica, Said

#: Seconds after which nothing is heard any more of an audience that nobody here belongs to.
UNATTENDED = 30.0
#: Members of a room, or channels, that are told of in one operation.
TOGETHER = 200
#: The kinds of audiences that nodes share; of rooms, those whose names are texts.
_KINDS = ("user", "room", "errand")
_ENDED = '"event":"run_ended"'
_FOREVER_MS = 10**11


def shared(group: Group) -> bool:
    """Whether other nodes can know it."""
    return group.kind in _KINDS and isinstance(group.name, str)


def spell(group: Group) -> str:
    """How nodes call it."""
    return f"{group.kind}:{group.name}"


def errand(run: str) -> Group:
    """The followers of a run."""
    return Group("errand", run)


def parse(spelled: str) -> Group:
    """What `spell` has spelled; ValueError if it has not."""
    kind, colon, name = spelled.partition(":")
    if kind not in _KINDS or not colon:
        raise ValueError("an audience of an unknown kind")
    return Group(kind, name)


def milliseconds(seconds: float) -> int:
    """As the engine counts; endless times are some years."""
    return int(min(seconds * 1000, _FOREVER_MS))


@attrs.define(eq=False)
class Attendance:
    """All of this node's replicas, by their audiences."""

    supervisor: Supervisor
    ledger: Ledger
    line: Line
    node: str
    prefix: str
    replicas: dict[Group, Replica] = attrs.field(factory=dict)

    # -- those who are here ------------------------------------------------------------------------------------

    def see(self, diff: Diff) -> None:
        """A watcher of rooms: the other nodes are told who has come here, and who has gone."""
        if not isinstance(diff.room, str):
            return
        self.attend(Group("room", diff.room))
        if self.line.alive:
            for ids in in_batches((stay.id for stay in diff.left), TOGETHER):
                self.line.ask("go", diff.room, *ids)
            self._come(diff.room, diff.joined, self.line.ask)

    def _come(self, room: str, members: dict[Any, Any], ask: Callable[..., Any]) -> None:
        for some in in_batches(members.items(), TOGETHER):
            ask("come", room, *(part for conn, metadata in some for part in (conn.id, _card(conn, metadata))))

    def state(self) -> list[Operation]:
        """Who is in which room, for a node that begins anew."""
        stated: list[Operation] = []
        for room, members in list(self.ledger.memberships.of_kind("room")):
            if isinstance(room.name, str):
                shares = {stay: stay.groups[room] for stay in members}
                self._come(room.name, shares, lambda name, *args: stated.append(Operation(name, args)))
        return stated

    def ask_for_all(self) -> None:
        """Something may have been missed, of everything."""
        for replica in self.replicas.values():
            self._ask_for(replica)

    def begin_anew(self) -> None:
        """Another epoch has other numbers: nothing is known any more."""
        for replica in self.replicas.values():
            self.ledger.histories.forget(replica.group)
            replica.last = None

    # -- what is heard -----------------------------------------------------------------------------------------

    def attend(self, group: Group) -> Replica:
        """Hear what is told to `group` from now on."""
        replica = self.replicas.get(group)
        if replica is None:
            replica = self.replicas[group] = Replica(group)
            if self.line.engine is not None:
                self.line.engine.subscribe([self.channel(group)])
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
        age = milliseconds(self.ledger.limits.history_age)
        self.line.ask("attend", spell(replica.group), replica.last or 0, age, then=partial(self._settle, replica))

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
                            at=trio.current_time(), audience=spell(replica.group), after=missing[0], before=missing[1]
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

    def channel(self, group: Group) -> str:
        """Where it is heard."""
        return f"{self.prefix}c:{spell(group)}"

    def others(self, group: Group) -> RoomShare:
        """See `Nodes.others`."""
        replica = self.replicas.get(group)
        nodes = {} if replica is None else replica.others
        return _share(card for cards in nodes.values() for card in cards.values())

    def hear(self, group: Group, kind: str, by: str, rest: str) -> None:
        """What was told to an audience, or of it. ValueError, or the like, if it cannot be understood."""
        replica = self.replicas.get(group)
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

    # -- what is needed ----------------------------------------------------------------------------------------

    def drop_unattended(self) -> None:
        """Stop hearing what nobody here has belonged to for a while."""
        now = trio.current_time()
        for replica in list(self.replicas.values()):
            if Audience(self.ledger, replica.group).members:
                replica.wanted_at = now
            elif now - replica.wanted_at > UNATTENDED:
                self._drop(replica)

    def touch(self, runs: Iterable[str]) -> None:
        """Nothing is forgotten by the engine that somebody here needs, or one of these runs."""
        groups, age = [*self.replicas, *map(errand, runs)], milliseconds(self.ledger.limits.history_age)
        for some in in_batches(map(spell, groups), TOGETHER):
            self.line.ask("touch", age, *some)
        for group in self.replicas:
            if group.kind == "errand":
                for user in {member.user for member in Audience(self.ledger, group).members}:
                    self.line.ask("follow", cast("str", group.name), user)

    def _drop(self, replica: Replica) -> None:
        del self.replicas[replica.group]
        self.ledger.histories.forget(replica.group)
        if self.line.engine is not None:
            self.line.engine.unsubscribe([self.channel(replica.group)])


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
