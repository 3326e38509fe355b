"""A soak: the same cycle over and over against a server somewhere, and whether anything there grows."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import attrs
import trio

from .client import WebSocketClient
from .load import PATIENCE, Answering, Load, Outcome
from .memory import Growth, judge_growth

#: Seconds in which everything of a cycle must be gone.
_SETTLING = 10.0
#: And in which the tasks of those who are gone must have ended.
_ENDING = 1.0
#: Between two looks.
_GLANCE = 0.05


@attrs.frozen(kw_only=True)
class Reading:
    """A server at rest, after one cycle."""

    at: float
    rss: float
    tasks: float
    fds: float
    connections: float
    orphans: float


@attrs.define
class Soak:
    """A series of readings, and the verdict on it."""

    readings: list[Reading] = attrs.field(factory=list)
    outcome: Outcome = attrs.field(factory=lambda: Outcome("soak"))

    def growth(self, growth_mb: float) -> Growth:
        """Whether the memory grows; ValueError with too few readings."""
        return judge_growth([reading.rss for reading in self.readings], growth_mb)

    def findings(self, growth_mb: float) -> Iterator[str]:
        """One sentence for each thing that is wrong."""
        yield from self.growth(growth_mb).because
        first, last = self.readings[0], self.readings[-1]
        for name in ("tasks", "fds", "connections"):
            before, after = getattr(first, name), getattr(last, name)
            if after > before:
                yield f"{after:g} {name} at the end, {before:g} at the beginning"
        if any(reading.orphans for reading in self.readings):
            yield "the audit has found orphans"
        for what, count in self.outcome.failures.items():
            yield f"{count} × {what}"
        for status, count in self.outcome.refused.items():
            yield f"{count} were not let in ({status})"
        if not self.outcome.waits:
            yield "nobody was answered"


async def cycle(load: Load, soak: Soak) -> None:
    """Some connect at once, say something, and leave: one half politely, the other with a reset."""
    async with load.crowd(soak.outcome, load.connections) as clients, trio.open_nursery() as nursery:
        for number, client in enumerate(clients):
            nursery.start_soon(_live, client, soak.outcome, number % 2 == 0)


async def _live(client: WebSocketClient, outcome: Outcome, polite: bool) -> None:  # noqa: FBT001 - start_soon passes by position
    talker = Answering(client, outcome)
    if await talker.greet() and await talker.ask('{"op":"ping"}') and polite:
        with trio.move_on_after(PATIENCE):
            await client.leave()


async def rest(look: Callable[[], str], began: float, first: Reading | None = None) -> Reading:
    """Read what ``/metrics`` says when nobody is there any more, and no more tasks than at the `first` reading; or what
    it says when that has not happened for too long.
    """
    tasks = math.inf if first is None else first.tasks
    until = trio.current_time() + _SETTLING
    while True:
        figures = parse(await trio.to_thread.run_sync(look))
        here, more = _busy(figures), figures.get("ws_supervisor_tasks", 0.0) > tasks
        if not (here or more) or trio.current_time() > until - (0 if here else _SETTLING - _ENDING):
            break
        await trio.sleep(_GLANCE)
    return Reading(
        at=trio.current_time() - began,
        rss=_needed(figures, "process_resident_memory_bytes"),
        tasks=_needed(figures, "ws_supervisor_tasks"),
        fds=_needed(figures, "process_open_fds"),
        connections=figures.get("ws_supervisor_connections", 0.0),
        orphans=figures.get("ws_supervisor_orphans", 0.0),
    )


def _needed(figures: dict[str, float], name: str) -> float:
    if name not in figures:
        raise ValueError(f"/metrics does not say {name}: is this a supervisor, on Linux, with the extra metrics?")
    return figures[name]


def _busy(figures: dict[str, float]) -> bool:
    names = ("connections", "connections_leaving", "connections_closing", "users")
    return any(figures.get(f"ws_supervisor_{name}", 0.0) for name in names)


def parse(text: str) -> dict[str, float]:
    """The samples without labels of an exposition."""
    found = re.findall(r"^([a-z_:][a-z0-9_:]*) (\S+)$", text, re.MULTILINE)
    return {name: float(value) for name, value in found}
