"""The inbox: happenings that wait for the application."""

from __future__ import annotations

from collections import deque

import attrs
import trio

from .happenings import Happening

#: So many wait; then the server has to.
MOST = 1000


@attrs.define(eq=False)
class Inbox:
    """Filled by the line, emptied by whoever iterates over the client."""

    waiting: deque[Happening] = attrs.field(factory=deque)
    #: Why nothing will come any more.
    closed: Exception | None = None
    _filled: trio.Event = attrs.field(factory=trio.Event)
    _emptied: trio.Event = attrs.field(factory=trio.Event)

    @property
    def full(self) -> bool:
        """Whether it has as many as it should."""
        return len(self.waiting) >= MOST

    def put(self, happening: Happening) -> None:
        """One more; never waits."""
        self.waiting.append(happening)
        self._filled.set()

    def close(self, why: Exception) -> None:
        """Nothing will come after what is there."""
        self.closed = why
        self._filled.set()

    async def get(self) -> Happening:
        """The next; what it was closed with if there will be none."""
        while not self.waiting:
            if self.closed is not None:
                raise self.closed
            self._filled = trio.Event()
            await self._filled.wait()
        self.wake()
        return self.waiting.popleft()

    def wake(self) -> None:
        """Have those look again who wait for room."""
        self._emptied.set()

    async def wait_for_room(self) -> None:
        """Wait until somebody takes something, or says `wake`."""
        self._emptied = trio.Event()
        await self._emptied.wait()
