"""What waits to be written to one connection: bounded in messages and in bytes, in order."""

from __future__ import annotations

import enum
from collections import deque

import attrs

from .._words.frames import Frame
from .._words.limits import Limits, SlowConsumer


class Put(enum.Enum):
    """What became of a frame that was to be queued."""

    QUEUED = enum.auto()
    DROPPED = enum.auto()
    #: Neither: the policy is to close the consumer.
    OVERFLOW = enum.auto()


@attrs.define(eq=False)
class Queued:
    """What is queued in all outboxes of one user together; and of everybody, in `whole`."""

    whole: Queued | None = None
    bytes: int = 0

    def count(self, octets: int) -> None:
        """So many more, or less."""
        self.bytes += octets
        if self.whole is not None:
            self.whole.count(octets)


@attrs.define(eq=False)
class Outbox:
    """A queue of frames. Nearly never there: a frame gets here only when the socket did not take it at once."""

    total: Queued = attrs.field(factory=Queued)
    frames: deque[Frame] = attrs.field(factory=deque)
    bytes: int = 0

    def put(self, frame: Frame, limits: Limits, policy: SlowConsumer) -> Put:
        """Queue `frame`, making room as `policy` says. An empty outbox takes any one frame, however large."""
        if policy is SlowConsumer.DROP_OLDEST:
            while self._over(frame, limits):
                self.get()
        if self._over(frame, limits):
            return Put.OVERFLOW if policy is SlowConsumer.CLOSE else Put.DROPPED
        self.frames.append(frame)
        self._count(len(frame))
        return Put.QUEUED

    def get(self) -> Frame:
        """Take the oldest frame out."""
        frame = self.frames.popleft()
        self._count(-len(frame))
        return frame

    def clear(self) -> None:
        """Forget everything."""
        self.frames.clear()
        self._count(-self.bytes)

    def _count(self, octets: int) -> None:
        self.bytes += octets
        self.total.count(octets)

    def _over(self, frame: Frame, limits: Limits) -> bool:
        return bool(self.frames) and (
            len(self.frames) >= limits.outbox_messages
            or self.bytes + len(frame) > limits.outbox_bytes
            or self.total.bytes + len(frame) > limits.outbox_bytes_user
        )
