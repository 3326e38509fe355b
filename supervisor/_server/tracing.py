"""OpenTelemetry: a span for each connection, from its arrival to the moment when everything of it is given back."""

from __future__ import annotations

import time

import attrs
import trio
from opentelemetry import trace
from opentelemetry.trace import Span, SpanKind, Status, StatusCode, TracerProvider

from .._words import events
from .._words.closing import CloseReason
from .._words.events import Event
from .._words.identity import Identity
from .._words.record import cut

_NAME = "websocket connection"
_BAD = (CloseReason.FAILED, CloseReason.PROTOCOL_ERROR, CloseReason.OVERLOAD)
#: Of connections that were here before we were.
_NOBODYS: tuple[Span, int] = (trace.INVALID_SPAN, 0)


@attrs.define(eq=False)
class Tracing:
    """A subscriber that opens a span when a connection is admitted, and ends it when the connection is gone.

    Spans go to the global provider, unless another is given. A handler's own spans are its own: start them under
    ``tracing.span_of(conn.id)`` to have them as children. A refusal is a span of its own, as long as nothing.
    """

    provider: TracerProvider | None = None
    #: Each with what the calendar is ahead of Trio's clock, as it was when the connection came: inside a span, the
    #: calendar does not jump.
    _spans: dict[str, tuple[Span, int]] = attrs.field(factory=dict)
    _tracer: trace.Tracer = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._tracer = trace.get_tracer("supervisor", tracer_provider=self.provider)

    def span_of(self, connection: str) -> Span:
        """The span of a connection that is here; one that records nothing for any other."""
        return self._spans.get(connection, _NOBODYS)[0]

    def __call__(self, event: Event) -> None:
        """Begin, go on, or end."""
        match event:
            case events.Admitted():
                span, ahead = self._begin(event.connection, event.identity, event.at - event.waited)
                self._spans[event.connection] = span, ahead
                span.add_event("admitted", timestamp=_ns(event.at) + ahead)
            case events.Leaving():
                span, ahead = self._spans.get(event.connection, _NOBODYS)
                told = {"reason": event.reason.word, "text": cut(event.end.text)}
                span.add_event("leaving", told, _ns(event.at) + ahead)
            case events.Failed(connection=str() as connection):
                span, ahead = self._spans.get(connection, _NOBODYS)
                span.record_exception(event.exception, timestamp=_ns(event.at) + ahead)
            case events.Closed():
                self._end(event)
            case events.Refused():
                span, ahead = self._begin(event.connection, event.identity, event.at)
                span.set_status(Status(StatusCode.ERROR, cut(event.text)))
                span.set_attribute("supervisor.reason", event.reason.word)
                span.end(_ns(event.at) + ahead)

    def _begin(self, connection: str, identity: Identity, at: float) -> tuple[Span, int]:
        ahead = time.time_ns() - _ns(trio.current_time())
        attributes = {
            "supervisor.connection": connection,
            "supervisor.request": identity.request,
            "supervisor.run": identity.run,
            "enduser.id": identity.user,
            "session.id": identity.session,
        }
        told = {name: value for name, value in attributes.items() if value is not None}
        span = self._tracer.start_span(_NAME, kind=SpanKind.SERVER, attributes=told, start_time=_ns(at) + ahead)
        return span, ahead

    def _end(self, event: events.Closed) -> None:
        span, ahead = self._spans.pop(event.connection, _NOBODYS)
        span.set_attributes(
            {
                "supervisor.reason": event.reason.word,
                "supervisor.close_code": event.end.code,
                "supervisor.cleanup_seconds": event.cleanup,
                "supervisor.forced": event.forced,
            }
        )
        if event.stuck_at is not None:
            span.set_status(Status(StatusCode.ERROR, f"its handler is stuck at {event.stuck_at}"))
        elif event.reason in _BAD:
            span.set_status(Status(StatusCode.ERROR, cut(event.end.text)))
        span.end(_ns(event.at) + ahead)


def _ns(seconds: float) -> int:
    return int(seconds * 1e9)
