"""Steps, and the events that they post: delivered after the outermost, so that subscribers see finished states only."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import attrs
from trio.lowlevel import enable_ki_protection

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
                self._tell_all(self.pending.popleft())
        finally:
            self.depth -= 1

    def _tell_all(self, event: Event) -> None:
        # In a frame of its own: a failure's traceback leads back to its callers, and one of them holding the event of
        # that failure would be a cycle.
        for subscriber in tuple(self.subscribers):
            self._tell(subscriber, event)

    def _tell(self, subscriber: Subscriber, event: Event) -> None:
        try:
            subscriber(event)
        except Exception as exception:
            if isinstance(event, Failed) and event.what == "subscriber":
                _logger.exception("a subscriber failed while it was told of a subscriber's failure")
            else:
                self.post(Failed(at=event.at, what="subscriber", exception=exception))


class HasBulletin(Protocol):
    """Whatever takes steps."""

    bulletin: Bulletin


S = TypeVar("S", bound=HasBulletin)
P = ParamSpec("P")
T = TypeVar("T")


def step(method: Callable[Concatenate[S, P], T]) -> Callable[Concatenate[S, P], T]:
    """Make a method one step: safe from Ctrl-C, its events delivered after the outermost."""

    @functools.wraps(method)
    @enable_ki_protection
    def stepping(self: S, *args: P.args, **kwargs: P.kwargs) -> T:
        bulletin = self.bulletin
        bulletin.depth += 1
        try:
            return method(self, *args, **kwargs)
        finally:
            bulletin.depth -= 1
            if bulletin.pending and not bulletin.depth:
                bulletin.deliver()

    return cast("Callable[Concatenate[S, P], T]", stepping)
