"""The log: a subscriber that writes one line of standard logging for every event."""

from __future__ import annotations

import logging
import re
from typing import Any

import attrs

from .._decisions.floods import Floods
from .._words import events
from .._words.events import Event
from .._words.record import Record, name_of, record

logger = logging.getLogger("supervisor")

#: What anybody may cause as often as they like, without holding anything.
_CHEAP = (
    events.Refused,
    events.TurnedAway,
    events.Spared,
    events.Failed,
    events.RunStarted,
    events.RunEnded,
    events.NodeDisconnected,
)
_LEVELS: dict[type[Event], int] = {
    events.Refused: logging.WARNING,
    events.Leaving: logging.DEBUG,
    events.HandlerReturned: logging.WARNING,
    events.EmergencyCleanup: logging.WARNING,
    events.LimitsChanged: logging.WARNING,
    events.Failed: logging.ERROR,
    events.RunStuck: logging.ERROR,
    events.Audited: logging.DEBUG,
    events.Ordered: logging.WARNING,
    events.NodeDisconnected: logging.WARNING,
    events.NodeLost: logging.WARNING,
    events.MessagesLost: logging.ERROR,
}
_NOTHING = ("=None", "=False")
_PLAIN = re.compile(r"[A-Za-z0-9_.:@/+-]+", re.ASCII)


@attrs.define(eq=False)
class Journal:
    """Writes under the logger ``supervisor``, with the event's `record` as ``extra``, and a failure's traceback.

    Of what anybody may cause, a hundred lines of a kind are written in ten seconds; how many more there were is a line
    of its own, at the next event after that. (The audit is one.)
    """

    floods: Floods = attrs.field(factory=Floods)

    def __call__(self, event: Event) -> None:
        """Write one event."""
        for kind, count in self.floods.ebb(event.at).items():
            fields: Record = {"event": "suppressed", "kind": kind, "lines": count, "seconds": self.floods.window}
            logger.warning(spell(fields), extra={"event": fields})
        level = _level(event)
        if logger.isEnabledFor(level) and (not isinstance(event, _CHEAP) or self.floods.passes(_kind(event))):
            fields = record(event)
            exception = event.exception if isinstance(event, events.Failed) else None
            logger.log(level, "%s", spell(fields), extra={"event": fields}, exc_info=exception)


def _level(event: Event) -> int:
    match event:
        case events.Refused(hard=True):
            return logging.ERROR
        case events.NodeLost(left=True):
            return logging.INFO
        case events.Closed(stuck_at=str()):
            return logging.ERROR
        case events.Audited() if event.orphans:
            return logging.CRITICAL
    return _LEVELS.get(type(event), logging.INFO)


def _kind(event: Event) -> str:
    """In words of ours only, so that there are few kinds."""
    match event:
        case events.Refused() | events.Spared():
            return f"{name_of(event)} {event.reason.word}"
        case events.TurnedAway():
            return f"{name_of(event)} {event.error}"
        case events.Failed():
            return f"{name_of(event)} {event.what} {type(event.exception).__name__}"
    return name_of(event)


def spell(fields: Record) -> str:
    """A record as one line: its name, and what there is to say as ``name=value``; not what is None, or not so.

    What is not a plain word is written as a Python literal, so that nobody can forge a line, or a field.
    """
    told = (f"{name}={_value(value)}" for name, value in fields.items() if name not in ("event", "at"))
    return " ".join([fields["event"], *(told for told in told if not told.endswith(_NOTHING))])


def _value(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.3f}"
    if isinstance(value, str) and (value in ("None", "False") or not _PLAIN.fullmatch(value)):
        return repr(value)
    return str(value)
