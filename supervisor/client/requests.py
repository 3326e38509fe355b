"""Requests: what a client has asked for, and what becomes of it when the connection is lost before the answer."""

from __future__ import annotations

import enum
from collections import OrderedDict, deque
from collections.abc import Callable, Container, Iterator
from itertools import count
from typing import Any

import attrs
import trio

from .._words.errors import OutcomeUnknown, SupervisorError

Frame = dict[str, Any]


class RequestFailed(SupervisorError):
    """The server has declined; `code` says why in a word: ``bad_request``, ``forbidden``, ``limit_reached``, ..."""

    def __init__(self, code: str, detail: str) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.detail = detail


class Again(enum.Enum):
    """What may be done with a request that was sent, when its answer was lost with the connection."""

    #: Send it again: doing it twice is doing it once.
    SAFE = enum.auto()
    #: Send it again to the same server, which knows it by its id.
    KNOWN = enum.auto()
    #: Look for it among the messages of its room: there it is, or it was never done.
    SEEN = enum.auto()
    #: Nobody can know.
    NEVER = enum.auto()


@attrs.define(eq=False)
class Request:
    """One of them, until it is answered."""

    frame: Frame
    again: Again
    #: What is done with the answer before anything else is heard.
    then: Callable[[Frame], None] | None = None
    sent: bool = False
    #: Sent on an earlier connection, and to be looked for among the messages of its room.
    doubtful: bool = False
    answer: Frame | None = None
    error: SupervisorError | None = None
    over: trio.Event = attrs.field(factory=trio.Event)

    def succeed(self, answer: Frame) -> None:
        """It was done."""
        if self.then is not None:
            self.then(answer)
        self.answer = answer
        self.over.set()

    def fail(self, error: SupervisorError) -> None:
        """It was not, or nobody knows."""
        self.error = error
        self.over.set()


@attrs.define(eq=False)
class Requests:
    """All that have not been answered, in the order in which they were made. Written here only."""

    waiting: OrderedDict[int, Request] = attrs.field(factory=OrderedDict)
    #: Those that are to be sent, in that order; some may have been given up.
    _next: deque[int] = attrs.field(factory=deque)
    _numbers: Iterator[int] = attrs.field(factory=lambda: count(1))

    def make(self, frame: Frame, again: Again, then: Callable[[Frame], None] | None = None) -> int:
        """One more; its ``ref``."""
        ref = next(self._numbers)
        self.waiting[ref] = Request({**frame, "ref": ref}, again, then)
        self._next.append(ref)
        return ref

    def unsent(self) -> Frame | None:
        """The next that is to be sent; marks it as sent."""
        while self._next:
            request = self.waiting.get(self._next.popleft())
            if request is not None and not request.sent:
                request.sent = True
                return request.frame
        return None

    def answered(self, frame: Frame) -> Request | None:
        """The request that this is the answer to."""
        request = self.waiting.pop(frame.get("ref", 0), None)
        if request is None:
            return None
        if frame.get("type") == "error":
            request.fail(RequestFailed(str(frame.get("code")), str(frame.get("detail"))))
        else:
            request.succeed(frame)
        return request

    def reconnected(self, *, same_server: bool, rooms: Container[str]) -> None:
        """Another connection: what may be sent again will be; of what nobody can know, say so.

        What is to be seen in one of `rooms` waits for `recovered`.
        """
        repeatable = {Again.SAFE, Again.KNOWN} if same_server else {Again.SAFE}
        for ref, request in list(self.waiting.items()):
            if not request.sent:
                continue
            if request.again in repeatable:
                request.sent = False
            elif same_server and request.again is Again.SEEN and request.frame["room"] in rooms:
                request.doubtful = True
            else:
                self._give_up(ref)
        self._line_up()

    def seen(self, known_by: str, seq: int) -> None:
        """The message with this id has come to us, under this number: it is done, whatever becomes of the answer."""
        for ref, request in self.waiting.items():
            if request.frame.get("id") == known_by and request.again is Again.SEEN:
                self.waiting.pop(ref).succeed({"seq": seq})
                return

    def recovered(self, room: str, *, complete: bool) -> None:
        """All that was missed in `room` has been heard, or not: what was to be seen there was, or was not done."""
        for ref, request in list(self.waiting.items()):
            if request.doubtful and request.frame["room"] == room:
                if complete:
                    request.sent = request.doubtful = False
                else:
                    self._give_up(ref)
        self._line_up()

    def _line_up(self) -> None:
        """In the order in which they were made, also those that are to be sent again."""
        self._next = deque(ref for ref, request in self.waiting.items() if not request.sent)

    def _give_up(self, ref: int) -> None:
        request = self.waiting.pop(ref)
        request.fail(OutcomeUnknown(f"{request.frame['op']}: the connection was lost before the answer came"))

    def give_up_all(self, error: SupervisorError) -> None:
        """There will be no connection any more."""
        while self.waiting:
            self.waiting.popitem(last=False)[1].fail(error)
