"""Connections and their ends as plain data, for those who ask over HTTP."""

from __future__ import annotations

import math
import time
from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

import attrs
import trio

from .._mechanisms.connection import Connection
from .._mechanisms.tally import Statistics
from .._words.events import Closed, Event
from .._words.limits import Limits
from .._words.record import Record, record


def card(conn: Connection) -> Record:
    """One connection, as it is now. Times are in seconds."""
    now, (ends_at, ends_for), traffic = trio.current_time(), conn.expires, conn.wire.traffic
    received, sent = traffic or (None, None)
    return {
        "connection": conn.id,
        "user": conn.user,
        "session": conn.identity.session,
        "run": conn.identity.run,
        "request": conn.identity.request,
        "peer": conn.peer,
        "rooms": [str(room) for room in conn.rooms],
        "age": round(now - conn.opened_at, 3),
        "idle": round(now - conn.last_active, 3),
        "expires_in": None if math.isinf(ends_at) else round(ends_at - now, 3),
        "expires_for": ends_for.word,
        "bytes_received": received,
        "bytes_sent": sent,
        "bytes_queued": 0 if conn.outbox is None else conn.outbox.bytes,
    }


def line(conn: Connection) -> Record:
    """The least that tells one connection from another."""
    now = trio.current_time()
    return {
        "connection": conn.id,
        "user": conn.user,
        "age": round(now - conn.opened_at, 3),
        "idle": round(now - conn.last_active, 3),
    }


def ended(closed: Closed) -> Record:
    """How one connection closed."""
    return {
        "connection": closed.connection,
        "user": closed.identity.user,
        "session": closed.identity.session,
        "reason": closed.reason.word,
        "code": closed.end.code,
        "cleanup": round(closed.cleanup, 4),
        "stuck_at": closed.stuck_at,
    }


def story(events: Iterable[Event]) -> list[Record]:
    """What has happened, each with its time on the calendar."""
    return [{**record(event), "at": calendar(event.at)} for event in events]


def calendar(at: float) -> str:
    """A moment of Trio's clock, as ISO 8601 in UTC has it."""
    moment = time.time() - (trio.current_time() - at)
    return datetime.fromtimestamp(moment, UTC).isoformat(timespec="milliseconds")


def figures(statistics: Statistics) -> Record:
    """The statistics, with their counts as plain dictionaries."""
    plain = attrs.asdict(statistics, recurse=False)
    return {name: value if isinstance(value, int | float) else dict(value) for name, value in plain.items()}


def spelled(limits: Limits) -> dict[str, Any]:
    """Limits as JSON can hold them: a time that is switched off is None, a rate is its text."""
    return {name: _number(value) for name, value in attrs.asdict(limits, recurse=False).items()}


def _number(value: Any) -> Any:
    if isinstance(value, float) and math.isinf(value):
        return None
    return value if value is None or isinstance(value, bool | int | float) else str(value)
