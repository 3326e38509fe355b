"""A backlog: numbered messages, of which the last are kept, so that whoever comes later can have them. Pure."""

from __future__ import annotations

from collections import deque

import attrs

from .._words.frames import Frame


@attrs.define(eq=False)
class Backlog:
    """Numbers begin with 1 and have no gaps. What is kept is bounded in messages and in bytes; the oldest go first."""

    messages: int
    octets: int
    #: The number of the last message; 0 before the first.
    last: int = 0
    bytes: int = 0
    _kept: deque[Frame] = attrs.field(factory=deque)

    def add(self, frame: Frame) -> int:
        """Keep the next message; its number."""
        self.last += 1
        self._kept.append(frame)
        self.bytes += len(frame)
        while len(self._kept) > self.messages or (self.bytes > self.octets and self._kept):
            self.drop_oldest()
        return self.last

    def drop_oldest(self) -> None:
        """Keep one less."""
        self.bytes -= len(self._kept.popleft())

    def __len__(self) -> int:
        return len(self._kept)

    @property
    def first(self) -> int:
        """The number of the first that is kept; one more than `last` if none is."""
        return self.last - len(self._kept) + 1

    def after(self, number: int) -> tuple[Frame, ...] | None:
        """Every message after `number`, in order; None if that cannot be said: some are not kept, or never were."""
        if not self.first - 1 <= number <= self.last:
            return None
        return tuple(self._kept)[number - self.first + 1 :]
