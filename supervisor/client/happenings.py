"""What a client tells its application."""

from __future__ import annotations

from typing import Any

import attrs

Card = dict[str, Any]


@attrs.frozen
class Connected:
    """A connection is open; the server calls it `connection`. Rooms and runs are restored by themselves."""

    connection: str
    #: Whether this is not the first.
    again: bool


@attrs.frozen
class Disconnected:
    """The connection has ended; the next attempt is made in `retry_in` seconds."""

    code: int
    text: str
    retry_in: float


@attrs.frozen
class Message:
    """A message in `room`; to one's own user if that is None."""

    room: str | None
    #: The user who has sent it; None for the server.
    sender: str | None
    data: Any
    seq: int


@attrs.frozen
class RunEvent:
    """What a run of one's own says. The last event is ``run_ended``."""

    run: str
    event: str
    data: Any
    seq: int


@attrs.frozen
class Gap:
    """Messages that are lost to this client: after number `after`, up to `until`; None: nobody knows how many.

    Of a `room`, of a `run`, or of those to one's own user, if both are None. Whoever shows a state must fetch it anew.
    """

    after: int
    until: int | None
    room: str | None = None
    run: str | None = None


@attrs.frozen
class Presence:
    """Who has come to a room that was joined with ``presence=True``, and who has left it."""

    room: str
    joined: tuple[Card, ...]
    left: tuple[Card, ...]


@attrs.frozen
class RoomLost:
    """After a reconnect, the server does not let us into this room again."""

    room: str
    code: str
    detail: str


Happening = Connected | Disconnected | Message | RunEvent | Gap | Presence | RoomLost
