"""Elsewhere: the houses of the other nodes, for those who look at this one's."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import attrs
import trio

from .._mechanisms.supervisor import Supervisor
from .._words.errors import OutcomeUnknown, Unavailable
from .._words.events import Event
from .._words.record import Record, record
from .cards import figures, line, story

if TYPE_CHECKING:
    from .._cluster.cluster import Cluster

#: Seconds between two looks at the other nodes, and for which they keep what happens for whoever has looked.
EVERY = 1.0
KEPT = 5.0
#: Connections of one node that are shown one by one; of more, only the numbers are told.
MAX_SHOWN = 2000
#: Events of a node that are kept for another; after more, its house is shown anew.
_MOST = 500
#: Of the figures, what is the same at all nodes; and what is true, or greatest, of any.
_SAME = frozenset({"per_user_limit", "total_limit", "enforce"})
_GREATEST = frozenset({"longest_cleanup", "draining"})


def add(answers: dict[str, Record], standing: Mapping[str, int]) -> Record:
    """The figures of all nodes together; of each, how many are there. A user may be at several, and is counted once."""
    merged: Record = {}
    for statistics in answers.values():
        for name, value in statistics.items():
            merged[name] = _add(name, merged.get(name), value)
    told = ("connections", "users", "draining")
    merged["users"] = standing.get("users", merged["users"])
    return {**merged, "by_node": {node: {name: it[name] for name in told} for node, it in answers.items()}}


def _add(name: str, before: Any, value: Any) -> Any:
    if before is None or name in _SAME:
        return value
    if isinstance(value, dict):
        return {key: before.get(key, 0) + value.get(key, 0) for key in before.keys() | value.keys()}
    return max(before, value) if name in _GREATEST else before + value


@attrs.define(eq=False)
class Asker:
    """A node that looks at ours: until when, and what has happened since it looked last."""

    until: float
    events: deque[Event] = attrs.field(factory=deque)
    too_much: bool = False


@attrs.define(eq=False)
class Elsewhere:
    """A subscriber; and what is known of the other nodes while somebody looks here."""

    supervisor: Supervisor
    cluster: Cluster
    statistics: dict[str, Record] = attrs.field(factory=dict)
    lines: dict[str, dict[str, Record]] = attrs.field(factory=dict)
    stuck: dict[str, list[Record]] = attrs.field(factory=dict)
    #: What has happened there, and was not told here yet.
    events: list[Record] = attrs.field(factory=list)
    #: There is too much, or another node: all of it must be shown.
    anew: bool = False
    _askers: dict[str, Asker] = attrs.field(factory=dict)

    def __call__(self, event: Event) -> None:
        """Keep one event for those who look from elsewhere."""
        for node, asker in list(self._askers.items()):
            if asker.until < event.at:
                del self._askers[node]
            elif len(asker.events) >= _MOST:
                asker.too_much = True
            else:
                asker.events.append(event)

    # -- asked by others ---------------------------------------------------------------------------------------

    def tell(self, node: str, *, whole: bool) -> Record:
        """What another node is to show of this one: its figures, and what has happened, or the whole house."""
        supervisor = self.supervisor
        asker = self._askers.pop(node, None)
        self._askers[node] = Asker(trio.current_time() + KEPT)
        told: Record = {"statistics": figures(supervisor.statistics())}
        if whole or asker is None or asker.too_much:
            conns, stuck = supervisor.connections()[:MAX_SHOWN], supervisor.stuck()[:MAX_SHOWN]
            told["connections"] = [line(conn) for conn in conns]
            told["stuck"] = [record(conn.closed) for conn in stuck if conn.closed is not None]
        else:
            told["events"] = story(asker.events)
        return told

    # -- asking ------------------------------------------------------------------------------------------------

    async def look(self) -> None:
        """Ask all nodes once. One that does not answer is not shown until it does."""
        try:
            order = {"feed": self.cluster.node, "whole": not self.statistics}
            answers, _ = await self.cluster.orders.ask(order, EVERY)
        except (Unavailable, OutcomeUnknown):
            answers = {}
        for node in self.statistics.keys() - answers.keys():
            del self.statistics[node]
            self.lines.pop(node, None)
            self.stuck.pop(node, None)
            self.anew = True
        for node, told in answers.items():
            self._take_in(node, told)

    def _take_in(self, node: str, told: Record) -> None:
        self.statistics[node] = told["statistics"]
        if "connections" in told:
            self.lines[node] = {one["connection"]: one for one in told["connections"]}
            self.stuck[node], self.anew = told["stuck"], True
            return
        here = self.lines.setdefault(node, {})
        for event in told["events"]:
            match event["event"]:
                case "admitted":
                    here[event["connection"]] = {name: event[name] for name in ("connection", "user")}
                case "leaving" | "closed" | "handler_stuck":
                    here.pop(event["connection"], None)
        self.events += told["events"]

    def take_events(self) -> list[Record]:
        """What has happened there since this was asked last."""
        taken, self.events = self.events, []
        return taken

    def forget(self) -> None:
        """Nobody looks any more."""
        self.statistics.clear()
        self.lines.clear()
        self.stuck.clear()
        self.events.clear()
