"""The hub: rooms, users and presence in JSON text frames, subprotocol ``supervisor.v1.json``."""

from __future__ import annotations

import inspect
import json
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NoReturn

import attrs

from .._mechanisms.audience import Audience, Told
from .._mechanisms.connection import Connection, Message
from .._mechanisms.nodes import Remote
from .._mechanisms.run import Run
from .._mechanisms.supervisor import Supervisor
from .._words.errors import NotFound, OutcomeUnknown, Refused, RoomLimitReached, RunLimitReached, Unavailable
from .._words.frames import Frame as Notice
from .._words.identity import MAX_NAME
from .cards import spelled
from .demo import demo

#: Bytes of the metadata that a member of a room may have, as JSON.
MAX_METADATA = 1024
#: Malformed frames of one connection, after which it is not worth answering any more.
MAX_MISTAKES = 100

Frame = dict[str, Any]
#: Of a room: a connection of this node, or of another.
Member = Connection | Remote
#: What works: ``async def agent(run, data)``; see `Supervisor.start_run`.
Agent = Callable[[Run, Any], Awaitable[Any]]


class Mistake(Exception):
    """The frame cannot be understood; what to tell its sender."""

    error = "bad_request"


@attrs.frozen
class Hub:
    """A handler that speaks the native protocol.

    `agents`, by their names, are what ``run`` can start. ``may(conn, op, name)`` is asked before each ``join``,
    ``publish`` and ``presence`` (of a room), ``send`` (to a user) and ``run`` (of an agent); without it, everybody may.
    """

    agents: Mapping[str, Agent] = attrs.field(factory=dict)
    may: Callable[[Connection, str, str], bool] | None = None
    _guests: dict[Connection, Guest] = attrs.field(factory=dict, init=False, repr=False, eq=False)

    async def __call__(self, conn: Connection) -> None:
        """Serve one connection until it leaves."""
        guest = self._guests[conn] = Guest(conn, self)
        conn.supervisor.watch_rooms(announce)
        conn.supervisor.watch_epoch(self.welcome_again)
        try:
            guest.leave_forbidden()
            await conn.send(encode(guest.welcome()))
            async for message in conn:
                answer = await guest.answer(message)
                await conn.send(encode(answer))
                if guest.mistakes >= MAX_MISTAKES:
                    conn.close(4501, "too many malformed frames")
        finally:
            del self._guests[conn]

    def welcome_again(self, supervisor: Supervisor) -> None:
        """Numbers have begun anew: to those who know some, it is as if they had come to another server."""
        for guest in list(self._guests.values()):
            if guest.conn.supervisor is supervisor:
                guest.recovered.clear()
                guest.conn.send_nowait(encode(guest.welcome()))


hub = Hub({"demo": demo})


def announce(room: Audience, joined: Mapping[Member, Any], left: Mapping[Member, Any]) -> None:
    """Tell a room's members who has come and who has gone; those who have come know."""
    if isinstance(room.group.name, str):  # another name is the application's own, and no client's
        cards = {name: [_card(*one) for one in those.items()] for name, those in (("joined", joined), ("left", left))}
        notice = Notice(encode({"type": "presence", "room": room.group.name, **cards}))
        for member in room.members:
            if member not in joined:
                member.send_nowait(notice)


def encode(frame: Frame) -> str:
    """A frame as text; a `Mistake` if it cannot be one (1e400, or nested too deeply to write what could be read)."""
    try:
        return json.dumps(frame, separators=(",", ":"), allow_nan=False)
    except (ValueError, RecursionError):
        raise Mistake("data cannot be represented in JSON") from None


def decode(message: Message) -> Frame:
    """A frame from text, or a `Mistake`: hostile JSON included."""
    if isinstance(message, bytes):
        raise Mistake("frames are JSON text, not binary")
    try:
        frame = json.loads(message, parse_constant=_reject_constant)
    except (ValueError, RecursionError):
        raise Mistake("frames are JSON") from None
    if not isinstance(frame, dict):
        raise Mistake("a frame is a JSON object")
    return frame


def _reject_constant(name: str) -> NoReturn:
    raise ValueError(name)


@attrs.define(eq=False)
class Guest:
    """What the hub keeps of one connection. All that changes something is synchronous."""

    conn: Connection
    hub: Hub
    mistakes: int = 0
    #: Whose messages it has been told that it had missed: once for each coming.
    recovered: set[Audience] = attrs.field(factory=set)

    def welcome(self) -> Frame:
        """The first frame that a client gets."""
        limits = spelled(self.conn.supervisor.limits)
        return {
            "type": "welcome",
            "connection": self.conn.id,
            "user": self.conn.user,
            "session": self.conn.identity.session,
            "epoch": self.conn.supervisor.epoch,
            "seq": self.conn.supervisor.user(self.conn.user).last,
            "limits": {name: limits[name] for name in ("per_user", "idle_ttl", "max_message_size", "rooms", "runs")},
        }

    async def answer(self, message: Message) -> Frame:
        """Do what a frame asks; the answer carries its ``ref``."""
        ref = None
        try:
            frame = decode(message)
            ref = _identifier(frame, "ref")
            operation = frame.get("op")
            if not isinstance(operation, str) or operation not in OPERATIONS:
                raise Mistake(f"op must be one of {', '.join(OPERATIONS)}")
            reply = OPERATIONS[operation](self, frame)
            return {"type": "reply", "ref": ref, **(await reply if inspect.isawaitable(reply) else reply)}
        except Mistake as mistake:
            self.mistakes += mistake.error == Mistake.error
            return {"type": "error", "ref": ref, "code": mistake.error, "detail": str(mistake)}

    async def join(self, frame: Frame) -> Frame:
        """Become a member, and tell the members; joining again changes the metadata, or nothing."""
        room, metadata = _name(frame, "room"), frame.get("metadata")
        self._ask("join", room)
        if len(encode({"": metadata})) > MAX_METADATA:
            raise Mistake(f"metadata has at most {MAX_METADATA} bytes")
        audience = self.conn.supervisor.room(room)
        await self._attend(audience)
        try:
            self.conn.join(room, metadata)
        except RoomLimitReached as limit:
            raise _mistake("limit_reached", str(limit)) from None
        return {"room": room, "members": len(audience.presence), **self._recover(audience, frame)}

    async def _attend(self, audience: Audience) -> None:
        try:
            await audience.attend()
        except Unavailable as unavailable:
            raise _mistake(unavailable.error, str(unavailable)) from None

    def leave_forbidden(self) -> None:
        """Rooms that it was in before a take-over, and may not be in any more."""
        for room in self.conn.rooms:
            if self.hub.may is not None and not self.hub.may(self.conn, "join", room):
                self.conn.leave(room)

    def leave(self, frame: Frame) -> Frame:
        """Stop being a member, and tell those who stay."""
        room = _name(frame, "room")
        if not self.conn.leave(room):
            raise Mistake("not a member of this room")
        self.recovered.discard(self.conn.supervisor.room(room))
        return {"room": room}

    async def publish(self, frame: Frame) -> Frame:
        """A message to every other member of a room one is in."""
        room = _name(frame, "room")
        audience = self.conn.supervisor.room(room)
        if self.conn not in audience:
            raise Mistake("join a room to publish in it")
        self._ask("publish", room)
        message = {"type": "message", "room": room, "from": self.conn.user, "data": _data(frame)}
        told = await self._tell(audience, message, frame)
        return {"room": room, "delivered": told.delivered, "seq": told.seq}

    async def send(self, frame: Frame) -> Frame:
        """A message to all connections of one user."""
        user = _name(frame, "user")
        self._ask("send", user)
        message = {"type": "message", "user": user, "from": self.conn.user, "data": _data(frame)}
        return {
            "user": user,
            "delivered": (await self._tell(self.conn.supervisor.user(user), message, frame)).delivered,
        }

    async def _tell(self, audience: Audience, message: Frame, frame: Frame) -> Told:
        """Tell all others; oneself, too, if the message has an ``id`` to be known by when its reply is lost."""
        known_by = _identifier(frame, "id")
        try:
            if known_by is None:
                return await audience.tell(message, exclude=self.conn, by=self.conn)
            return await audience.tell({**message, "id": known_by}, by=self.conn)
        except (ValueError, RecursionError):
            raise Mistake("data cannot be represented in JSON") from None
        except Unavailable as unavailable:
            raise _mistake(unavailable.error, str(unavailable)) from None
        except OutcomeUnknown as unknown:
            raise _mistake("outcome_unknown", str(unknown)) from None

    def recover(self, frame: Frame) -> Frame:
        """What was told to one's user after ``seq``."""
        return self._recover(self.conn.supervisor.user(self.conn.user), {"seq": 0, **frame})

    def _recover(self, audience: Audience, frame: Frame) -> Frame:
        """Send what was missed, if that is asked for, but once; the number and the epoch to come back with."""
        epoch = self.conn.supervisor.epoch
        told = {"seq": audience.last, "epoch": epoch}
        number = frame.get("seq", 0)
        if isinstance(number, bool) or not isinstance(number, int) or number < 0:
            raise Mistake("seq must be a whole number, the last that is known")
        again = audience in self.recovered
        self.recovered.add(audience)
        if "seq" not in frame:
            return told
        if frame.get("epoch") != epoch:
            return {**told, "complete": False}
        return {**told, "complete": number == audience.last if again else audience.recover(self.conn, number)}

    def presence(self, frame: Frame) -> Frame:
        """Who is in a room now."""
        room = _name(frame, "room")
        self._ask("presence", room)
        presence = self.conn.supervisor.room(room).presence
        return {"room": room, "members": [_card(member, metadata) for member, metadata in presence.items()]}

    async def run(self, frame: Frame) -> Frame:
        """Have an agent work for one's user, and follow it."""
        name = _name(frame, "agent")
        if name not in self.hub.agents:
            raise Mistake(f"agent must be one of {', '.join(self.hub.agents)}")
        self._ask("run", name)
        data = frame.get("data")
        encode({"": data})  # which it may not be
        known_by, supervisor = _identifier(frame, "id"), self.conn.supervisor
        if known_by is not None:  # begun by the same request, whose reply was lost, it is that one
            for run in supervisor.runs(self.conn.user):
                if run.known_by == known_by:
                    return _told_of(run, complete=run.follow(self.conn, 0))
            elsewhere = await self._begun_elsewhere(known_by)
            if elsewhere is not None:
                return await self._follow_elsewhere(elsewhere, 0)
        try:
            run = supervisor.start_run(self.conn.user, self.hub.agents[name], data)
        except RunLimitReached as limit:
            raise _mistake("limit_reached", str(limit)) from None
        run.known_by = known_by
        if supervisor.nodes is not None:
            await supervisor.nodes.register(run)  # before anybody hears of it, who may then ask another node
        return _told_of(run, complete=run.follow(self.conn, 0))

    async def _begun_elsewhere(self, known_by: str | int) -> str | None:
        """The run that another node has begun for the same request; where that cannot be said, none: work goes on."""
        try:
            return next((card["run"] for card in await self._runs_elsewhere() if card["known_by"] == known_by), None)
        except Mistake:
            return None

    async def _runs_elsewhere(self) -> list[Frame]:
        nodes = self.conn.supervisor.nodes
        try:
            return [] if nodes is None else await nodes.runs(self.conn.user)
        except (Unavailable, OutcomeUnknown):
            raise _mistake("unavailable", "it is not known now what is done at the other nodes") from None

    async def _follow_elsewhere(self, run: str, after: int | None) -> Frame:
        nodes = self.conn.supervisor.nodes
        assert nodes is not None
        complete, last = await nodes.follow(self.conn, run, after)
        [outcome] = [card["outcome"] for card in await self._runs_elsewhere() if card["run"] == run] or [None]
        return {"run": run, "seq": last, "complete": complete, "outcome": outcome}

    async def follow(self, frame: Frame) -> Frame:
        """Be told what a run of one's own says; and what it has said after ``seq``, if that is still known."""
        name, after = _name(frame, "run"), frame.get("seq")
        if after is not None and not (isinstance(after, int) and not isinstance(after, bool) and after >= 0):
            raise Mistake("seq must be a whole number, the last that is known; 0 for none")
        run = await self._find_run(name)
        if run is None:
            return await self._follow_elsewhere(name, after)
        return _told_of(run, complete=run.follow(self.conn, after))

    async def cancel(self, frame: Frame) -> Frame:
        """End a run of one's own."""
        name = _name(frame, "run")
        run, nodes = await self._find_run(name), self.conn.supervisor.nodes
        if run is not None:
            return {"run": run.id, "cancelled": run.cancel()}
        assert nodes is not None
        nodes.cancel(name)
        return {"run": name, "cancelled": True}

    async def _find_run(self, name: str) -> Run | None:
        """The run of this name; None if another node has it."""
        for run in self.conn.supervisor.runs(self.conn.user):
            if run.id == name:
                return run
        if any(card["run"] == name for card in await self._runs_elsewhere()):
            return None
        raise _mistake("not_found", "there is no such run of yours, or it has been over for long")

    def ping(self, frame: Frame) -> Frame:
        """Nothing, answered; counts as activity."""
        return {"pong": True}

    async def refresh(self, frame: Frame) -> Frame:
        """Renew the credential; the old one stays in force if the new one is not good."""
        token = frame.get("token")
        if not isinstance(token, str):
            raise Mistake("token must be a string")
        try:
            return {"expires_at": await self.conn.refresh(token)}
        except (Refused, NotFound) as refusal:
            error = refusal.error if isinstance(refusal, Refused) else "not_found"
            raise _mistake(error, str(refusal)) from None

    def _ask(self, op: str, name: str) -> None:
        if self.hub.may is not None and not self.hub.may(self.conn, op, name):
            raise _mistake("forbidden", f"you may not {op} {name!r}")


OPERATIONS: dict[str, Callable[[Guest, Frame], Frame | Awaitable[Frame]]] = {
    "join": Guest.join,
    "leave": Guest.leave,
    "publish": Guest.publish,
    "send": Guest.send,
    "presence": Guest.presence,
    "run": Guest.run,
    "follow": Guest.follow,
    "cancel": Guest.cancel,
    "recover": Guest.recover,
    "ping": Guest.ping,
    "refresh": Guest.refresh,
}


def _card(conn: Member, metadata: Any) -> Frame:
    card = {"connection": conn.id, "user": conn.user}
    return card if metadata is None else {**card, "metadata": metadata}


def _told_of(run: Run, *, complete: bool) -> Frame:
    outcome = None if run.outcome is None else run.outcome.value
    return {"run": run.id, "seq": run.backlog.last, "complete": complete, "outcome": outcome}


def _mistake(error: str, text: str) -> Mistake:
    mistake = Mistake(text)
    mistake.error = error
    return mistake


def _name(frame: Frame, field: str) -> str:
    name = frame.get(field)
    if not isinstance(name, str) or not 1 <= len(name) <= MAX_NAME:
        raise Mistake(f"{field} must be a string of 1 to {MAX_NAME} characters")
    return name


def _identifier(frame: Frame, field: str) -> str | int | None:
    chosen = frame.get(field)
    if chosen is not None and not (isinstance(chosen, str | int) and len(str(chosen)) <= MAX_NAME):
        raise Mistake(f"{field} must be a string of at most {MAX_NAME} characters, or a whole number")
    return chosen


def _data(frame: Frame) -> Any:
    if "data" not in frame:
        raise Mistake("data is missing")
    return frame["data"]


async def echo(conn: Connection) -> None:
    """Return every message unchanged, text or binary."""
    async for message in conn:
        await conn.send(message)
