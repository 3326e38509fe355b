"""Asking and telling a running server, as over HTTP: one command for each question and each order."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import Any

from cyclopts import Group

from .app import app
from .remote import Answer, OnTarget, Target

_WIDEST = 120
_SAID_BEFORE = ("at", "event", "connection", "user", "run")
GROUP = Group("On a running server")


def tell(answer: Answer, target: Target, lines: Iterable[str]) -> None:
    """Print the answer as it came, if that is wanted; else for people."""
    print(json.dumps(answer, indent=1) if target.json else "\n".join(lines))


def columns(rows: list[list[Any]]) -> Iterator[str]:
    """Rows with their columns one below another; the first row is their heads."""
    cells = [["—" if cell is None else safe(str(cell)) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()


def safe(text: str) -> str:
    """What others have chosen, without anything that a terminal would obey, and not longer than a line."""
    told = "".join(letter if letter.isprintable() else "·" for letter in text)
    return told if len(told) <= _WIDEST else f"{told[:_WIDEST]}…"


def _closed(answer: Answer) -> Iterator[str]:
    yield f"{answer['closed']} closed"
    if answer["connections"]:
        rows = [[one[name] for name in ("connection", "user", "reason", "code")] for one in answer["connections"]]
        yield from columns([["connection", "user", "reason", "code"], *rows])


@app.command(group=GROUP)
def statistics(target: OnTarget = Target()) -> None:
    """How things stand."""
    answer = target.ask("/api/statistics")
    tell(answer, target, columns([["figure", ""], *([name, _figure(value)] for name, value in answer.items())]))


def _figure(value: Any) -> Any:
    return ", ".join(f"{name} {count}" for name, count in value.items()) or "—" if isinstance(value, dict) else value


@app.command(group=GROUP)
def connections(
    *,
    user: str | None = None,
    session: str | None = None,
    room: str | None = None,
    limit: int = 100,
    target: OnTarget = Target(),
) -> None:
    """List connections, oldest first.

    Parameters
    ----------
    user
        Only this user's.
    session
        Only of this session.
    room
        Only members of this room.
    limit
        How many, at most.
    """
    answer = target.ask("/api/connections", user=user, session=session, room=room, limit=limit)
    names = ["connection", "user", "session", "peer", "age", "idle", "expires_in", "bytes_queued"]
    rows = [[one[name] for name in names] for one in answer["connections"]]
    tell(answer, target, [*columns([names, *rows]), f"{len(rows)} of {answer['total']}"])


@app.command(group=GROUP)
def why(*, connection: str | None = None, user: str | None = None, target: OnTarget = Target()) -> None:
    """What has happened lately to a connection, or to those of a user: why was it disconnected?

    Parameters
    ----------
    connection
        Whose story, by its id.
    user
        Or by its user.
    """
    answer = target.ask("/api/why", connection=connection, user=user)
    tell(answer, target, _story(answer))


def _story(answer: Answer) -> Iterator[str]:
    for event in answer["story"]:
        rest = {name: value for name, value in event.items() if name not in _SAID_BEFORE}
        said = " ".join(f"{name}={safe(str(value))}" for name, value in rest.items() if value not in (None, False, ""))
        whom = event.get("connection") or event.get("run") or "—"
        yield f"{event['at'][:23].replace('T', ' ')}Z  {whom}  {event['event']:<16} {said}"
    for one in answer["here"]:
        left = one["expires_in"]
        until = "for ever" if left is None else f"for {left:.0f} s more ({one['expires_for']})"
        yield f"{'now':<24}  {one['connection']}  here, idle for {one['idle']:.0f} s, {until}"


@app.command(group=GROUP)
def audit(target: OnTarget = Target()) -> int:
    """Recompute every index there; 0 if there is no inconsistency, 1 if there is one."""
    answer = target.ask("/api/audit")
    tell(answer, target, [*answer["orphans"], f"{len(answer['orphans'])} inconsistencies, {answer['runs']} audits"])
    return 1 if answer["orphans"] else 0


@app.command(group=GROUP)
def limits(*changes: str, target: OnTarget = Target()) -> None:
    """Print the limits in force, or change some: limits per-user=3 enforce=false lifetime=none.

    Parameters
    ----------
    changes
        Each as name=value; none switches a time or a rate off.
    """
    if not changes:
        answer = target.ask("/api/limits")
        tell(answer, target, columns([["limit", ""], *([name, value] for name, value in answer["limits"].items())]))
        return
    answer = target.tell("/api/limits", dict(map(_change, changes)))
    tell(answer, target, _closed(answer))


def _change(text: str) -> tuple[str, Any]:
    name, equals, value = text.partition("=")
    if not equals:
        raise ValueError(f"a change is name=value, not {text!r}")
    try:
        parsed = None if value.lower() == "none" else json.loads(value.lower())
    except ValueError:
        parsed = value  # a rate
    return name.replace("-", "_"), parsed


@app.command(group=GROUP)
def disconnect(
    *,
    connection: str | None = None,
    user: str | None = None,
    session: str | None = None,
    everybody: bool = False,
    target: OnTarget = Target(),
) -> None:
    """End one connection, one user's, one session's of a user, or all.

    Parameters
    ----------
    connection
        One, by its id.
    user
        All of one user.
    session
        Of these, only those of one session.
    everybody
        Everything.
    """
    given = {"connection": connection, "user": user, "session": session, "all": everybody or None}
    answer = target.tell("/api/disconnect", {name: value for name, value in given.items() if value is not None})
    tell(answer, target, _closed(answer))


@app.command(group=GROUP)
def revoke(user: str, *, target: OnTarget = Target()) -> None:
    """End a user's connections, and believe no token any more that they have had until now.

    Parameters
    ----------
    user
        Whose.
    """
    answer = target.tell("/api/revoke", {"user": user})
    tell(answer, target, _closed(answer))


@app.command(group=GROUP)
def expire(older_than: float, *, target: OnTarget = Target()) -> None:
    """End everything that has been idle for so long.

    Parameters
    ----------
    older_than
        Seconds without activity.
    """
    answer = target.tell("/api/expire", {"older_than": older_than})
    tell(answer, target, _closed(answer))


@app.command(group=GROUP)
def shed(target: OnTarget = Target()) -> None:
    """Emergency cleanup: end all that are unresponsive or long idle."""
    answer = target.tell("/api/shed", {})
    tell(answer, target, _closed(answer))


@app.command(group=GROUP)
def drain(*, rate: float | None = None, deadline: float | None = None, target: OnTarget = Target()) -> None:
    """Admit nobody any more, and send everybody elsewhere. The server itself goes on; SIGTERM ends it.

    Parameters
    ----------
    rate
        Connections per second; all at once by default.
    deadline
        Seconds after which whoever is left is told at once; --drain of the server by default.
    """
    given = {"rate": rate, "deadline": deadline}
    body = {name: value for name, value in given.items() if value is not None}
    answer = target.tell("/api/drain", body, patience=None)
    tell(answer, target, _closed(answer))


@app.command(group=GROUP)
def publish(text: str, *, room: str | None = None, user: str | None = None, target: OnTarget = Target()) -> None:
    """Send a message to the members of a room, or to a user.

    Parameters
    ----------
    text
        The message: JSON, or plain text.
    room
        To whom.
    user
        Or to whom.
    """
    try:
        data = json.loads(text)
    except ValueError:
        data = text
    given = {"room": room, "user": user}
    body = {name: value for name, value in given.items() if value is not None}
    answer = target.tell("/api/publish", {**body, "data": data})
    tell(answer, target, [f"{answer['delivered']} delivered"])
