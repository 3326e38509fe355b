"""Where events are posted during a step and delivered after it, so that subscribers only ever see finished states."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Callable
from typing import Any

import attrs

from .._words.events import Event, Failed

Subscriber = Callable[[Any], None]
_logger = logging.getLogger("supervisor")


@attrs.define(eq=False)
class Bulletin:
    """Subscribers, and what they have not been told yet."""

    subscribers: list[Subscriber] = attrs.field(factory=list)
    pending: deque[Event] = attrs.field(factory=deque)
    #: Steps that are under way, one inside another. Delivering counts as one: what it causes is delivered in turn.
    depth: int = 0

    def post(self, event: Event) -> None:
        """Deliver `event` when the outermost step has ended."""
        self.pending.append(event)

    def deliver(self) -> None:
        """Tell everybody everything that is pending."""
        self.depth += 1
        try:
            while self.pending:
                event = self.pending.popleft()
                for subscriber in tuple(self.subscribers):
                    self._tell(subscriber, event)
        finally:
            self.depth -= 1

    def _tell(self, subscriber: Subscriber, event: Event) -> None:
        try:
            subscriber(event)
        except Exception as exception:
            if isinstance(event, Failed) and event.what == "subscriber":
                _logger.exception("a subscriber failed while it was told of a subscriber's failure")
            else:
                self.post(Failed(at=event.at, what="subscriber", exception=exception))
