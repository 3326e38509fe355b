"""The client: what an application asks of the hub, and what it hears."""

from __future__ import annotations

import contextlib
import json
import secrets
import ssl
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import Any

import attrs
import trio

from . import returning
from .conversation import Conversation, Room
from .happenings import Card, Happening
from .inbox import Inbox
from .line import Dismissed, Line, Token
from .requests import Again, Frame, RequestFailed
from .sequence import Sequence


@attrs.define(eq=False)
class Client:
    """See `open_client`. ``async for happening in client`` gives what the server tells, in order and without loss.

    A request waits for its answer, however many connections that takes; whoever does not want to wait uses a cancel
    scope. Any number of tasks may ask, and one may listen. `RequestFailed` if the server declines, `Dismissed` if there
    will be no connection any more.
    """

    _talk: Conversation
    _inbox: Inbox
    _line: Line

    @property
    def user(self) -> str:
        """Who the server says we are; empty before the first connection."""
        return self._talk.user

    def __aiter__(self) -> Client:
        return self

    async def __anext__(self) -> Happening:
        """The next happening. `Dismissed` when there will be none."""
        return await self._inbox.get()

    async def join(self, room: str, metadata: Any = None, *, presence: bool = False) -> int:
        """Be a member of `room`, now and after each reconnect; returns how many members there are.

        With `presence`, `Presence` tells who comes and goes, also what has changed while there was no connection.
        """
        place = self._talk.rooms.setdefault(room, Room())
        place.metadata = metadata
        place.present = (place.present or {}) if presence else None
        try:
            frame = {"op": "join", "room": room, "metadata": metadata}
            answer = await self._ask(frame, Again.SAFE, partial(self._talk.settle_room, room))
        except RequestFailed:
            if not place.joined:
                self._talk.rooms.pop(room, None)
            raise
        return int(answer["members"])

    async def leave(self, room: str) -> None:
        """Be no member of `room` any more."""
        self._talk.rooms.pop(room, None)
        await self._ask({"op": "leave", "room": room}, Again.SAFE)

    async def publish(self, room: str, data: Any) -> int:
        """Say `data` to all members of `room`, ourselves included; returns its number there.

        Exactly once: if the answer is lost, it is looked for among the messages of the room. `OutcomeUnknown` if what
        was said meanwhile is not known any more.
        """
        frame = {"op": "publish", "room": room, "data": data, "id": self._talk.name()}
        return int((await self._ask(frame, Again.SEEN))["seq"])

    async def send(self, user: str, data: Any) -> int:
        """Say `data` to all connections of `user`; returns how many have taken it.

        At most once: `OutcomeUnknown` if the answer is lost.
        """
        frame = {"op": "send", "user": user, "data": data, "id": self._talk.name()}
        return int((await self._ask(frame, Again.NEVER))["delivered"])

    async def presence(self, room: str) -> list[Card]:
        """Who is in `room` now."""
        members: list[Card] = (await self._ask({"op": "presence", "room": room}, Again.SAFE))["members"]
        return members

    async def run(self, agent: str, data: Any = None) -> str:
        """Have `agent` work, and follow it: `RunEvent` tells what it says. Returns the run's id.

        Once for each server: `OutcomeUnknown` if the answer is lost, and another server is there after that. If nobody
        of this user was there for longer than the server lingers, the work has been cancelled, and is begun anew.
        """
        frame = {"op": "run", "agent": agent, "data": data, "id": self._talk.name()}
        return str((await self._ask(frame, Again.KNOWN, self._talk.begin_run))["run"])

    async def follow(self, run: str, after: int = 0) -> str | None:
        """Hear what `run` has said after number `after`, and says; returns how it has ended, None if it has not."""
        self._talk.runs.setdefault(run, Sequence(after))
        try:
            frame = {"op": "follow", "run": run, "seq": after}
            outcome: str | None = (await self._ask(frame, Again.SAFE, self._talk.settle_run))["outcome"]
        except RequestFailed:
            self._talk.runs.pop(run, None)
            raise
        return outcome

    async def cancel(self, run: str) -> bool:
        """End a run; False if it was over."""
        return bool((await self._ask({"op": "cancel", "run": run}, Again.SAFE))["cancelled"])

    async def _ask(self, frame: Frame, again: Again, then: Callable[[Frame], None] | None = None) -> Frame:
        if self._inbox.closed is not None:
            raise self._inbox.closed
        json.dumps(frame, allow_nan=False)  # what is not for JSON fails here, in the hands of who has said it
        requests = self._talk.requests
        ref = requests.make(frame, again, then)
        request = requests.waiting[ref]
        self._line.wake()
        try:
            await request.over.wait()
        finally:
            requests.waiting.pop(ref, None)
        if request.error is not None:
            raise request.error
        assert request.answer is not None
        return request.answer


@contextlib.asynccontextmanager
async def open_client(
    url: str,
    *,
    token: Token | None = None,
    session: str | None = "",
    ssl_context: ssl.SSLContext | None = None,
    heartbeat: float = 20.0,
    patience: float = 10.0,
    longest_pause: float = returning.LONGEST,
) -> AsyncGenerator[Client, None]:
    """A client of the hub at `url`, ``ws://host:port/ws?user=ann``, for the length of an ``async with`` block.

    It connects by itself, and comes back whenever the close code says that it may (see `returning.pause`), after at
    most `longest_pause` seconds (30) unless the server asks for more. `token` is sent as a bearer token: a string, or
    an async function that is asked anew for every connection. `session` names what survives a reconnect, by default
    something that nobody can guess; None for nothing, and then its own dead connections count against its user until
    the server has noticed them. A server that is silent for `heartbeat` seconds (20) is asked for a sign of life, and
    left if there is none within `patience` seconds (10), which is also how long connecting may take.
    """
    inbox = Inbox()
    talk = Conversation(inbox.put)
    chosen = secrets.token_urlsafe(16) if session == "" else session
    line = Line(talk, inbox, url, token, chosen, ssl_context, heartbeat, patience, longest_pause)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(line.hold)
        try:
            yield Client(talk, inbox, line)
        finally:
            line.close(Dismissed(1000, "closed"))
            nursery.cancel_scope.cancel()
