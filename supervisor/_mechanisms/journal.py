"""The log: a subscriber that writes one line of standard logging for every event."""

from __future__ import annotations

import logging
from typing import Any

from .._words import events
from .._words.events import Event

logger = logging.getLogger("supervisor")


def write(event: Event) -> None:
    """Log one event, under the logger ``supervisor``, its fields as ``extra`` too.

    What a peer may have chosen is written as a Python literal, so that it cannot forge a line.
    """
    level, message, fields = _line(event)
    exception = event.exception if isinstance(event, events.Failed) else None
    if logger.isEnabledFor(level):
        logger.log(level, message, *fields.values(), extra={"event": fields}, exc_info=exception)


def _line(event: Event) -> tuple[int, str, dict[str, Any]]:
    match event:
        case events.Admitted():
            return logging.INFO, "admitted connection=%s user=%r session=%r", _who(event)
        case events.Refused():
            level = logging.ERROR if event.hard else logging.WARNING
            line = "refused connection=%s user=%r session=%r reason=%s text=%r"
            return level, line, {**_who(event), **_why(event)}
        case events.TurnedAway():
            fields = {"peer": event.peer, "status": event.status, "error": event.error, "text": event.text}
            return logging.DEBUG, "turned away peer=%s status=%d error=%s text=%r", fields
        case events.Leaving():
            line = "leaving connection=%s user=%r session=%r reason=%s text=%r"
            return logging.DEBUG, line, {**_who(event), **_why(event)}
        case events.Closed(stuck_at=None):
            fields = {**_who(event), **_why(event), "duration": event.duration, "cleanup": event.cleanup}
            line = "closed connection=%s user=%r session=%r reason=%s text=%r duration=%.3f cleanup=%.3f"
            return logging.INFO, line, fields
        case events.Closed():
            fields = {**_who(event), "reason": event.reason.name.lower(), "stuck_at": event.stuck_at}
            line = "stuck handler set aside connection=%s user=%r session=%r reason=%s blocked_at=%s"
            return logging.ERROR, line, fields
        case events.HandlerReturned():
            return logging.WARNING, "stuck handler returned connection=%s user=%r session=%r", _who(event)
        case events.EmergencyCleanup():
            fields = {"limit": event.limit, "before": event.before, "shed": len(event.shed)}
            return logging.WARNING, "emergency cleanup limit=%r before=%d shed=%d", fields
        case events.Failed():
            user = None if event.identity is None else event.identity.user
            fields = {"what": event.what, "connection": event.connection, "user": user}
            return logging.ERROR, "%s failed connection=%s user=%r", fields
        case events.Audited(orphans=()):
            return logging.DEBUG, "audit found nothing", {}
        case events.Audited():
            return logging.CRITICAL, "audit found inconsistencies %r", {"orphans": event.orphans}
        case events.DrainStarted():
            return logging.INFO, "drain started connections=%d", {"connections": event.connections}
        case events.DrainFinished():
            fields = {"closed": event.closed, "stuck": event.stuck}
            return logging.INFO, "drain finished closed=%d stuck=%d", fields
    return logging.INFO, "%r", {"event": event}


def _who(
    event: events.Admitted | events.Refused | events.Leaving | events.Closed | events.HandlerReturned,
) -> dict[str, Any]:
    identity = event.identity
    return {"connection": event.connection, "user": identity.user, "session": identity.session}


def _why(event: events.Refused | events.Leaving | events.Closed) -> dict[str, Any]:
    text = event.text if isinstance(event, events.Refused) else event.end.text
    return {"reason": event.reason.name.lower(), "text": text}
