"""A conversation: what the server's frames mean to a client, and what must be said to restore it. It moves no bytes."""

from __future__ import annotations

import secrets
from collections import deque
from collections.abc import Callable, Iterator
from itertools import count
from typing import Any

import attrs

from .happenings import Card, Connected, Gap, Happening, Message, Presence, RoomLost, RunEvent
from .requests import Frame, Requests
from .sequence import Missing, Sequence


@attrs.define(eq=False)
class Room:
    """What is restored of a room."""

    metadata: Any = None
    #: The server has let us in.
    joined: bool = False
    #: Connections there, by their ids; None if nobody asked.
    present: dict[str, Card] | None = None
    sequence: Sequence[Message] = attrs.field(factory=Sequence)


@attrs.define(eq=False)
class Conversation:
    """With one hub, across as many connections, and servers, as it takes."""

    #: What is to be told to the application.
    tell: Callable[[Happening], None]
    #: Who the server says we are; empty before the first connection.
    user: str = ""
    #: Whether the server has welcomed us on this connection.
    welcomed: bool = False
    rooms: dict[str, Room] = attrs.field(factory=dict)
    runs: dict[str, Sequence[RunEvent]] = attrs.field(factory=dict)
    requests: Requests = attrs.field(factory=Requests)
    _to_me: Sequence[Message] = attrs.field(factory=Sequence)
    #: Tells a restarted server from the one before.
    _epoch: str | None = None
    #: What restores rooms and runs on this connection, and what is done with the answers.
    _restoring: deque[Frame] = attrs.field(factory=deque)
    _on_answer: dict[str, Callable[[Frame], None]] = attrs.field(factory=dict)
    #: What was heard before the welcome.
    _early: list[Frame] = attrs.field(factory=list)
    #: Runs that have ended before we were told that they have begun.
    _ended_early: set[str] = attrs.field(factory=set)
    _prefix: str = attrs.field(factory=lambda: secrets.token_hex(6))
    _numbers: Iterator[int] = attrs.field(factory=lambda: count(1))

    def name(self) -> str:
        """What something may be known by that nobody else has named so."""
        return f"{self._prefix}-{next(self._numbers)}"

    def next_frame(self) -> Frame | None:
        """What is to be said next; None for now."""
        if not self.welcomed:
            return None
        return self._restoring.popleft() if self._restoring else self.requests.unsent()

    def ping(self) -> None:
        """Ask for a sign of life."""
        self._restore({"op": "ping"}, lambda answer: None)

    # -- what the server says ----------------------------------------------------------------------------------

    def hear(self, frame: Frame) -> None:
        """Take in what the server says."""
        kind = frame.get("type")
        if kind == "welcome":
            self._welcome(frame)
        elif not self.welcomed:  # it may be overtaken by what is said to its user
            self._early.append(frame)
        elif kind == "message":
            self._hear_message(frame)
        elif kind == "run":
            self._hear_run(frame)
        elif kind == "presence":
            self._hear_presence(frame)
        elif kind in ("reply", "error"):
            self._hear_answer(frame)

    def _welcome(self, frame: Frame) -> None:
        again, same = self._epoch is not None, self._epoch == frame["epoch"]
        self.user, self._epoch, self.welcomed = frame["user"], frame["epoch"], True
        self.tell(Connected(frame["connection"], again))
        self._restoring.clear()
        self._on_answer.clear()
        joined = {name: room for name, room in self.rooms.items() if room.joined}
        self.requests.reconnected(same_server=same, rooms=joined)
        if not same:
            self._hand_on(self._to_me.restart(frame["seq"]))
        elif self._to_me.last != frame["seq"]:
            self._to_me.recover()
            recover = {"op": "recover", "seq": self._to_me.last, "epoch": self._epoch}
            self._restore(recover, lambda answer: self._hand_on(self._to_me.settle(answer["seq"])))
        for name, room in joined.items():
            self._restore_room(name, room, same=same)
        for run in list(self.runs) if again else ():
            self._restore_run(run, same=same)
        early, self._early = self._early, []
        for one in early:
            self.hear(one)

    def _restore(self, frame: Frame, then: Callable[[Frame], None]) -> None:
        ref = self.name()
        self._on_answer[ref] = then
        self._restoring.append({**frame, "ref": ref})

    def _restore_room(self, name: str, room: Room, *, same: bool) -> None:
        after = room.sequence.last
        if same:
            room.sequence.recover()
        else:
            self._hand_on(room.sequence.restart(), room=name)
        frame = {"op": "join", "room": name, "metadata": room.metadata}
        since = {} if after is None else {"seq": after, "epoch": self._epoch}

        def restored(answer: Frame) -> None:
            if answer["type"] == "reply":
                self.settle_room(name, answer)
            elif self.rooms.pop(name, None) is not None:
                self.tell(RoomLost(name, answer["code"], answer["detail"]))
            self.requests.recovered(name, complete=same and answer.get("complete", False))

        self._restore({**frame, **since}, restored)

    def settle_room(self, name: str, answer: Frame) -> None:
        """All that was still known of what we have missed in a room has been heard; who is there is yet to be asked."""
        room = self.rooms.get(name)
        if room is not None:
            room.joined = True
            self._hand_on(room.sequence.settle(answer["seq"]), room=name)
            if room.present is not None:
                self._look_around(name)

    def _look_around(self, name: str) -> None:
        def seen(answer: Frame) -> None:
            room = self.rooms.get(name)
            if room is not None and room.present is not None and answer["type"] == "reply":
                now = {card["connection"]: card for card in answer["members"]}
                joined = [card for key, card in now.items() if room.present.get(key) != card]
                left = [card for key, card in room.present.items() if now.get(key) != card]
                self._tell_presence(name, room, joined, left)

        self._restore({"op": "presence", "room": name}, seen)

    def _restore_run(self, run: str, *, same: bool) -> None:
        sequence = self.runs[run]
        if not same:  # it was the other server's, and has ended with it
            del self.runs[run]
            self._hand_on(sequence.restart(), run=run)
            self.tell(RunEvent(run, "run_ended", {"outcome": None}, 0))
            return
        sequence.recover()

        def restored(answer: Frame) -> None:
            if answer["type"] == "reply":
                self.settle_run(answer)
            elif answer["code"] == "unavailable" and run in self.runs:
                self._restore_run(run, same=True)
            elif self.runs.pop(run, None) is not None:
                self._hand_on(sequence.restart(), run=run)
                self.tell(RunEvent(run, "run_ended", {"outcome": None}, 0))

        self._restore({"op": "follow", "run": run, "seq": sequence.last}, restored)

    def settle_run(self, answer: Frame) -> None:
        """All that was still known of a run has been heard; if it is over, that is to be told in any case."""
        run = answer["run"]
        sequence = self.runs.get(run)
        if sequence is not None:
            self._hand_on(sequence.settle(answer["seq"]), run=run)
            if answer["outcome"] is not None and self.runs.pop(run, None) is not None:
                self.tell(RunEvent(run, "run_ended", {"outcome": answer["outcome"]}, answer["seq"]))

    def _hear_message(self, frame: Frame) -> None:
        name = frame.get("room")
        room = None if name is None else self.rooms.get(name)
        if name is not None and room is None:  # left, and told before the server knew
            return
        message = Message(name, frame.get("from"), frame["data"], frame["seq"])
        if "id" in frame and frame.get("from") == self.user:
            self.requests.seen(frame["id"], frame["seq"])
        sequence = self._to_me if room is None else room.sequence
        self._hand_on(sequence.hear(message.seq, message), room=name)

    def _hear_run(self, frame: Frame) -> None:
        event = RunEvent(frame["run"], frame["event"], frame["data"], frame["seq"])
        if event.run in self._ended_early:  # all of it was told; this answers a request that was sent again
            return
        sequence = self.runs.setdefault(event.run, Sequence(0))
        self._hand_on(sequence.hear(event.seq, event), run=event.run)
        if event.event == "run_ended":
            del self.runs[event.run]
            if any(request.frame["op"] == "run" for request in self.requests.waiting.values()):
                self._ended_early.add(event.run)

    def begin_run(self, answer: Frame) -> None:
        """A run of ours has begun, now or by an earlier request; we may have heard all of it already."""
        run = answer["run"]
        if run in self._ended_early:
            self._ended_early.remove(run)
        else:
            self.runs.setdefault(run, Sequence(0))
            self.settle_run(answer)

    def _hear_presence(self, frame: Frame) -> None:
        room = self.rooms.get(frame["room"])
        if room is not None and room.present is not None:
            self._tell_presence(frame["room"], room, frame["joined"], frame["left"])

    def _tell_presence(self, name: str, room: Room, joined: list[Card], left: list[Card]) -> None:
        assert room.present is not None
        for card in left:
            room.present.pop(card["connection"], None)
        room.present |= {card["connection"]: card for card in joined}
        if joined or left:
            self.tell(Presence(name, tuple(joined), tuple(left)))

    def _hear_answer(self, frame: Frame) -> None:
        then = self._on_answer.pop(frame["ref"], None) if isinstance(frame.get("ref"), str) else None
        if then is not None:
            then(frame)
        else:
            self.requests.answered(frame)

    # -- telling the application -------------------------------------------------------------------------------

    def _hand_on(self, things: list[Any], *, room: str | None = None, run: str | None = None) -> None:
        for thing in things:
            gap = isinstance(thing, Missing)
            self.tell(Gap(thing.after, thing.until, room, run) if gap else thing)
