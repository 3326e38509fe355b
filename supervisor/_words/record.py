"""An event as plain data: the same words in the log, over HTTP, on the page and in the recorder."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable
from typing import Any

import attrs

from .closing import CloseReason, End
from .events import Closed, Event, LimitsChanged
from .identity import Identity
from .limits import Limits, Overflow

#: What others have chosen is cut to so many characters, and so many of a list are told.
_LONGEST = 300
_MOST = 50

Record = dict[str, Any]


def name_of(event: Event) -> str:
    """Its fixed name: ``turned_away`` for `TurnedAway`; a stuck handler's `Closed` is ``handler_stuck``."""
    if isinstance(event, Closed) and event.stuck_at is not None:
        return "handler_stuck"
    return _snake(type(event).__name__)


@functools.cache
def _snake(name: str) -> str:
    return re.sub(r"(?<!^)(?=[A-Z])", "_", name).lower()


def record(event: Event) -> Record:
    """What JSON can hold of it, bounded: ``event``, ``at`` as `trio.current_time` has it, and its fields.

    An identity becomes ``user``, ``session``, ``run`` and ``request``; an end ``reason``, ``code`` and ``text``; an
    exception its type and what it says.
    """
    fields: Record = {"event": name_of(event)}
    for field in attrs.fields(type(event)):
        spelled = _spell(field.name, getattr(event, field.name))
        fields |= {name: value for name, value in spelled.items() if value is not None or fields.get(name) is None}
    if isinstance(event, LimitsChanged):
        fields |= {"changes": _changes(event)}
    return fields


def _spell(name: str, value: Any) -> Record:
    match value:
        case Identity():
            return {
                "user": value.user,
                "session": value.session,
                "run": value.run,
                "request": value.request,
            }
        case End():
            return {"reason": value.reason.word, "code": value.code, "text": cut(value.text)}
        case BaseException():
            return {"error": describe(value)}
        case None if name == "identity":
            return {"user": None, "session": None, "run": None, "request": None}
        case Limits():
            return {}
    return {name: _plain(value)}


def _plain(value: Any) -> Any:
    match value:
        case CloseReason():
            return value.word
        case Overflow():
            return value.value
        case str():
            return cut(value)
        case float():
            return round(value, 6)
        case tuple():
            return [_plain(one) for one in value[:_MOST]]
        case None | int():
            return value
    return cut(_spoken(repr, value))


def _changes(event: LimitsChanged) -> Record:
    before, after = (attrs.asdict(limits, recurse=False) for limits in (event.before, event.after))
    return {name: str(after[name]) for name in after if before[name] != after[name]}


def describe(exception: BaseException) -> str:
    """Its type, and what it says; whatever that is, this does not raise."""
    return cut(f"{type(exception).__name__}: {_spoken(str, exception)}")


def _spoken(spell: Callable[[Any], str], value: Any) -> str:
    try:
        return spell(value)
    except Exception:  # noqa: BLE001 - somebody else's code, of which only the words were wanted
        return "(it cannot be spelled)"


def cut(text: str) -> str:
    """`text`, or as much of it as anybody needs."""
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
