"""The flight recorder: what has happened to whom lately, for those who ask why they were disconnected."""

from __future__ import annotations

from collections import OrderedDict, deque
from collections.abc import Iterator

import attrs

from .._words.events import Event, Failed
from .._words.record import describe

#: Users of whom something is kept, the last ones, and events of each.
USERS = 1000
EACH = 32


class Retold(Exception):
    """What an exception said. The exception itself holds the frames that it went through."""


@attrs.define(eq=False)
class Recorder:
    """A subscriber that keeps the last 32 events of each user's connections and runs, of the 1,000 users heard of last.

    Who is noisy pushes out what is known of themselves, and of nobody else; but whoever may come under any number of
    names can push out everybody. It takes at most some 10 MB.
    """

    _users: OrderedDict[str, deque[Event]] = attrs.field(factory=OrderedDict)

    def __call__(self, event: Event) -> None:
        """Keep one event, if it is a user's."""
        user = _user_of(event)
        if user is None:
            return
        if isinstance(event, Failed):
            event = attrs.evolve(event, exception=Retold(describe(event.exception)))
        kept = self._users.get(user)
        if kept is None:
            kept = self._users[user] = deque(maxlen=EACH)
        kept.append(event)
        self._users.move_to_end(user)
        if len(self._users) > USERS:
            self._users.popitem(last=False)

    def of_user(self, user: str) -> tuple[Event, ...]:
        """What has happened to one user's connections, oldest first; nothing, if nothing is known."""
        return tuple(self._users.get(user, ()))

    def of_connection(self, connection: str) -> tuple[Event, ...]:
        """What has happened to one connection, oldest first."""
        return tuple(event for event in self._all() if getattr(event, "connection", None) == connection)

    def _all(self) -> Iterator[Event]:
        for kept in self._users.values():
            yield from kept


def _user_of(event: Event) -> str | None:
    identity = getattr(event, "identity", None)
    return getattr(event, "user", None) if identity is None else identity.user
