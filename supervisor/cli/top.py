"""``top``: the house, live, in a terminal."""

from __future__ import annotations

import sys
import time
from collections import Counter, deque
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import attrs

from .app import app
from .operations import GROUP
from .remote import Answer, OnTarget, Target

if TYPE_CHECKING:
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

_RECENT = 12
_RATES = 60
#: Events that are news to whoever watches; the rest is in the figures.
_NEWS = (
    "refused",
    "leaving",
    "handler_stuck",
    "handler_returned",
    "emergency_cleanup",
    "spared",
    "limits_changed",
    "run_ended",
    "run_stuck",
    "failed",
    "drain_started",
    "drain_finished",
    "ordered",
)
_TOLD = ("connection", "run", "user", "reason", "text", "error", "order", "changes", "outcome", "limit")
_ALARMING = ("handler_stuck", "run_stuck", "failed", "emergency_cleanup")


@attrs.define
class House:
    """What is known of a server, from what it tells."""

    statistics: Answer = attrs.field(factory=dict)
    limits: Answer = attrs.field(factory=dict)
    shed_at: float = 0.8
    #: Whose each connection is; those that leave are in `leaving`.
    users: dict[str, str] = attrs.field(factory=dict)
    leaving: dict[str, str] = attrs.field(factory=dict)
    stuck: dict[str, str] = attrs.field(factory=dict)
    recent: deque[Answer] = attrs.field(factory=lambda: deque(maxlen=_RECENT))
    #: Admitted, in all, at each telling.
    admitted: deque[tuple[float, int]] = attrs.field(factory=lambda: deque(maxlen=_RATES))

    def hear(self, kind: str, told: Answer, now: float) -> None:
        """Take in what is told: the whole house, or its changes."""
        self.statistics = told["statistics"]
        self.admitted.append((now, self.statistics["admitted"]))
        if kind == "house":
            self.limits, self.shed_at = told["limits"], told["shed_at"]
            self.users = {one["connection"]: one["user"] for one in told["connections"]}
            self.stuck = {one["connection"]: one["user"] for one in told["stuck"]}
            self.leaving.clear()
        for event in told.get("events", ()):
            self._note(event)

    def _note(self, event: Answer) -> None:
        connection, user = event.get("connection"), event.get("user")
        match event["event"]:
            case "admitted":
                self.users[str(connection)] = str(user)
            case "leaving" if self.users.pop(str(connection), None) is not None:
                self.leaving[str(connection)] = str(user)
            case "closed":
                self.leaving.pop(str(connection), None)
                self.users.pop(str(connection), None)
            case "handler_stuck":
                self.leaving.pop(str(connection), None)
                self.stuck[str(connection)] = str(user)
            case "handler_returned":
                self.stuck.pop(str(connection), None)
        if event["event"] in _NEWS:
            self.recent.append(event)

    def state(self) -> str:
        """One word for all of it."""
        now = self.statistics
        if now["draining"]:
            return "draining"
        if not now["enforce"]:
            return "watching only"
        return "emergency" if now["connections"] >= now["total_limit"] * self.shed_at else "well"

    def arrivals(self) -> float:
        """Admissions per second, lately."""
        (first_at, first), (last_at, last) = self.admitted[0], self.admitted[-1]
        return (last - first) / (last_at - first_at) if last_at > first_at else 0.0

    def ranking(self) -> list[tuple[str, int, int, int]]:
        """Users with what they have here, leaving, and stuck; most first."""
        here, leaving, stuck = (Counter(them.values()) for them in (self.users, self.leaving, self.stuck))
        rows = [(name, here[name], leaving[name], stuck[name]) for name in here | leaving | stuck]
        return sorted(rows, key=lambda row: (-row[1] - row[3], row[0]))


def bar(filled: int, whole: int, width: int) -> str:
    """``filled`` of ``whole``, as blocks."""
    blocks = min(width, round(filled / whole * width)) if whole else 0
    return "█" * blocks + "░" * (width - blocks)


def render(house: House, rows: int) -> Group:
    """The house on a screen with so many rows."""
    from rich.console import Group

    return Group(*_head(house), _users(house, max(3, rows - _RECENT - 7)), _news(house))


def _head(house: House) -> Iterator[Text]:
    from rich.text import Text

    now = house.statistics
    here, most = now["connections"], now["total_limit"]
    state = house.state()
    yield Text(f" {bar(here, most, 40)} {here} of {most} connections", "bold red" if state == "emergency" else "bold")
    told = {name: now[name] for name in ("users", "rooms", "waiting", "leaving", "closing", "stuck", "shed")}
    figures = "  ".join(f"{name} {value}" for name, value in told.items())
    yield Text(f" {state}  {figures}  {house.arrivals():.1f} admissions/s", "red" if state != "well" else "green")


def _users(house: House, rows: int) -> Table:
    from rich.table import Table

    table = Table(box=None, expand=True, pad_edge=True)
    for heading in ("user", "connections", "leaving", "stuck"):
        table.add_column(heading, justify="left", no_wrap=True)
    limit, ranking = house.statistics["per_user_limit"], house.ranking()
    for name, here, leaving, stuck in ranking[:rows]:
        full = here >= limit * house.shed_at
        share, style = f"{bar(here, limit, 20)} {here}/{limit}", "yellow" if full else ""
        table.add_row(_safe(name), share, str(leaving), str(stuck), style=style)
    if len(ranking) > rows:
        table.add_row(f"… and {len(ranking) - rows} more", "", "", "")
    return table


def _news(house: House) -> Table:
    from rich.table import Table

    table = Table(box=None, expand=True, show_header=False)
    for event in house.recent:
        rest = [f"{name}={_safe(str(event[name]))}" for name in _TOLD if event.get(name)]
        style = "red" if event["event"] in _ALARMING else ""
        table.add_row(event["at"][11:19], event["event"], " ".join(rest), style=style)
    return table


def _safe(text: str) -> Any:
    """What others have chosen, without anything that a terminal would obey."""
    from rich.markup import escape

    return escape("".join(letter if letter.isprintable() else "·" for letter in text))


@app.command(group=GROUP)
def top(target: OnTarget = Target()) -> None:
    """Watch a running server in the terminal; Ctrl-C ends it."""
    from rich.console import Console
    from rich.live import Live

    house, console = House(), Console()
    try:
        with Live(console=console, screen=console.is_terminal, auto_refresh=False) as live:
            for kind, told in target.events():
                house.hear(kind, told, time.monotonic())
                live.update(render(house, console.height), refresh=True)
    except KeyboardInterrupt:
        return
    print("the server has ended", file=sys.stderr)
