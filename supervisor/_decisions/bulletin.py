"""Steps, and what they have to tell: delivered after the outermost, so that everybody sees finished states only."""

from __future__ import annotations

import functools
import logging
from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, cast

import attrs
import trio
from trio.lowlevel import enable_ki_protection

from .._words.events import Event, Failed
from .presence import Diff, Watcher

Subscriber = Callable[[Any], None]
_logger = logging.getLogger("supervisor")


@attrs.define(eq=False)
class Bulletin:
    """Subscribers, and what they have not been told yet."""

    subscribers: list[Subscriber] = attrs.field(factory=list)
    pending: deque[Event] = attrs.field(factory=deque)
    #: Those who are told of comings and goings in rooms, by what they registered; and what they have not been told yet,
    #: of each room at once.
    watchers: dict[Hashable, Watcher] = attrs.field(factory=dict)
    diffs: dict[Hashable, Diff] = attrs.field(factory=dict)
    #: Steps that are under way, one inside another. Delivering counts as one: what it causes is delivered in turn.
    depth: int = 0

    def post(self, event: Event) -> None:
        """Deliver `event` when the outermost step has ended."""
        self.pending.append(event)

    def diff(self, room: Hashable) -> Diff:
        """What is to be told of this room when the outermost step has ended."""
        if not self.watchers:
            return Diff(room)
        return self.diffs.setdefault(room, Diff(room))

    @property
    def due(self) -> bool:
        """Whether there is something to deliver, and no step under way."""
        return bool(self.pending or self.diffs) and not self.depth

    def deliver(self) -> None:
        """Tell everybody everything that is pending."""
        self.depth += 1
        try:
            while self.pending or self.diffs:
                while self.pending:
                    self._tell_all(self.pending.popleft())
                if self.diffs:
                    self._tell_watchers(self.diffs.pop(next(iter(self.diffs))))
        finally:
            self.depth -= 1

    def _tell_watchers(self, diff: Diff) -> None:
        for watcher in tuple(self.watchers.values()):
            try:
                watcher(diff)
            except Exception as exception:  # noqa: BLE001 - reported as a Failed event; it is the watcher's own
                self.post(Failed(at=trio.current_time(), what="watcher", exception=exception))

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
            if bulletin.due:
                bulletin.deliver()

    return cast("Callable[Concatenate[S, P], T]", stepping)
