"""``/api/events``: what happens, as server-sent events. The page sees with it, and so does ``ws-supervisor top``."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import attrs
import trio

from .._mechanisms.supervisor import Supervisor
from .._words import events
from .._words.errors import Unavailable
from .._words.events import Event
from .._words.record import Record, record
from .cards import figures, line, spelled, story
from .elsewhere import EVERY, MAX_SHOWN, Elsewhere, add
from .exchange import Exchange, Hangup

#: Seconds between two tellings.
TICK = 0.25
#: How many may look at once.
MAX_VIEWERS = 32
#: Changes of the house in one tick that are told one by one; after more, it is shown anew.
_MOST_CHANGES = 500
#: Whatever else happens, in one tick; the statistics count it in any case.
_MOST_REMARKS = 50
#: Seconds of silence after which a viewer is told that we are still here.
_QUIET = 15.0
_CHANGES = (
    events.Admitted,
    events.Leaving,
    events.Closed,
    events.HandlerReturned,
    events.EmergencyCleanup,
    events.LimitsChanged,
    events.Ordered,
    events.DrainStarted,
    events.DrainFinished,
)


@attrs.define(eq=False)
class Feed:
    """A subscriber that tells all viewers the same, four times a second at most.

    First the whole house; then what has changed in it. A viewer that was busy for longer than a tick, and everybody
    after a tick with too much in it, is shown the house again. Nothing is kept while nobody looks.
    """

    supervisor: Supervisor
    #: The other nodes, if there are any.
    elsewhere: Elsewhere | None = None
    viewers: int = 0
    _changes: list[Event] = attrs.field(factory=list)
    _remarks: list[Event] = attrs.field(factory=list)
    #: What the last tick said, and which it was.
    _said: bytes = b""
    _number: int = 0
    _statistics: Record = attrs.field(factory=dict)
    #: The house as it was last shown, and after which tick.
    _shown: tuple[int, bytes] | None = None
    _spoke: trio.Event = attrs.field(factory=trio.Event)
    _watched: trio.Event = attrs.field(factory=trio.Event)

    def __call__(self, event: Event) -> None:
        """Keep one event until the next tick."""
        if not self.viewers:
            return
        kept, most = (self._changes, _MOST_CHANGES) if isinstance(event, _CHANGES) else (self._remarks, _MOST_REMARKS)
        if len(kept) <= most:
            kept.append(event)

    async def run(self) -> None:
        """Tick, for ever, while anybody looks."""
        while True:
            await self._watched.wait()
            await trio.sleep(TICK)
            try:
                self._tick()
            except Exception as exception:  # noqa: BLE001 - reported as a Failed event; the next tick is another
                self.supervisor.report("feed", exception)

    async def watch_others(self, elsewhere: Elsewhere) -> None:
        """Look at the other nodes, for ever, while anybody looks here."""
        while True:
            await self._watched.wait()
            await elsewhere.look()
            await trio.sleep(EVERY)

    def _figures(self) -> Record:
        own = figures(self.supervisor.statistics())
        if self.elsewhere is None:
            return own
        cluster = self.elsewhere.cluster
        return add({cluster.node: own, **self.elsewhere.statistics}, cluster.standing)

    def _tick(self) -> None:
        before, self._statistics = self._statistics, self._figures()
        changes, remarks, others = self._changes, self._remarks[:_MOST_REMARKS], self.elsewhere
        self._changes, self._remarks = [], []
        theirs = [] if others is None else others.take_events()
        if len(changes) > _MOST_CHANGES or (others is not None and others.anew):
            if others is not None:
                others.anew = False
            self._say(self._show_house())
        elif changes or remarks or theirs or before != self._statistics:
            told = [*story(sorted([*changes, *remarks], key=lambda event: event.at)), *theirs]
            self._say(_spell("changes", {"statistics": self._statistics, "events": told}))

    def _say(self, said: bytes) -> None:
        self._said = said
        self._number += 1
        self._spoke.set()
        self._spoke = trio.Event()

    def _house(self) -> bytes:
        """Made once for all who come, or are late, in one tick: what happens meanwhile is told in the next."""
        if self._shown is None or self._shown[0] != self._number:
            self._shown = self._number, self._show_house()
        return self._shown[1]

    def _show_house(self) -> bytes:
        supervisor, others = self.supervisor, self.elsewhere
        conns = supervisor.connections()
        lines = [line(conn) for conn in conns[:MAX_SHOWN]]
        stuck = [record(conn.closed) for conn in supervisor.stuck()[:MAX_SHOWN] if conn.closed is not None]
        if others is not None:
            lines += [one for here in others.lines.values() for one in here.values()]
            stuck += [one for here in others.stuck.values() for one in here]
        house = {
            "epoch": supervisor.epoch,
            "statistics": self._figures(),
            "limits": spelled(supervisor.limits),
            "shed_at": supervisor.policies.shed_at,
            "connections": lines,
            "unshown": max(0, len(conns) - MAX_SHOWN),
            "stuck": stuck,
        }
        return _spell("house", house)

    async def show(self, exchange: Exchange) -> None:
        """Tell one viewer, until they have gone. `Unavailable` if too many are looking."""
        if self.viewers >= MAX_VIEWERS:
            raise Unavailable(f"{MAX_VIEWERS} are looking already")
        self.viewers += 1
        self._watched.set()
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(exchange.wait_hangup, nursery.cancel_scope)
                with contextlib.suppress(Hangup):
                    await exchange.begin_stream("text/event-stream")
                    await self._tell(exchange)
                nursery.cancel_scope.cancel()
        finally:
            self.viewers -= 1
            if not self.viewers:
                self._watched = trio.Event()
                self._changes.clear()
                self._remarks.clear()
                if self.elsewhere is not None:
                    self.elsewhere.forget()
                self._shown = None

    async def _tell(self, exchange: Exchange) -> None:
        seen, said = self._number, self._house()
        while True:
            await exchange.send_part(said)
            said = b":\n\n"
            with trio.move_on_after(_QUIET):
                if seen == self._number:
                    await self._spoke.wait()
            if seen != self._number:
                said = self._said if seen + 1 == self._number else self._house()
                seen = self._number


def _spell(kind: str, data: dict[str, Any]) -> bytes:
    return f"event: {kind}\ndata: {json.dumps(data, separators=(',', ':'))}\n\n".encode()
