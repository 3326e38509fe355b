"""An event that costs nothing until somebody waits for it."""

from __future__ import annotations

import attrs
import trio


@attrs.define(eq=False)
class Latch:
    """Like `trio.Event`. For what nearly always has happened already: nobody waits then, and there is no event."""

    is_set: bool = False
    _event: trio.Event | None = None

    def set(self) -> None:
        """It has happened; wakes whoever waits."""
        self.is_set = True
        if self._event is not None:
            self._event.set()
            self._event = None

    async def wait(self) -> None:
        """Wait until it has happened. No checkpoint if it has."""
        if not self.is_set:
            if self._event is None:
                self._event = trio.Event()
            await self._event.wait()
