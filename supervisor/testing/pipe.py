"""Octets in memory, with a peer that can be cut at any of them: for real engines on virtual time."""

from __future__ import annotations

import enum

import attrs
import trio

from .._engines import link


class Cut(enum.Enum):
    """What happens to one direction after its last octet."""

    END = "end"
    """It ends in good order, as by a FIN. Outgoing, the same as a reset."""
    RESET = "reset"
    """It ends at once, as by a RST."""
    SILENCE = "silence"
    """Nothing moves any more, and nobody says so."""


@attrs.define(eq=False)
class FaultPipe(link.Pipe):
    """The server's end of a connection whose other side has written `incoming`, and takes `room` octets."""

    incoming: bytes = b""
    #: What happens when all of `incoming` has been read.
    then: Cut = Cut.SILENCE
    #: How many octets the peer takes; None: all.
    room: int | None = None
    #: What happens when it has taken them.
    full: Cut = Cut.SILENCE
    #: At most so many octets are read at once.
    dribble: int = 65_536
    outgoing: bytearray = attrs.field(factory=bytearray)
    closed: bool = False
    _changed: trio.Event = attrs.field(factory=trio.Event)

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """What the peer has written, until that is cut."""
        await trio.lowlevel.checkpoint()
        self._check()
        if self.incoming:
            size = min(self.dribble, max_bytes or self.dribble)
            data, self.incoming = self.incoming[:size], self.incoming[size:]
            return data
        if self.then is Cut.RESET:
            raise trio.BrokenResourceError("reset")
        while self.then is Cut.SILENCE:
            await self._changed.wait()
            self._check()
        return b""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """Let the peer take what it takes."""
        await trio.lowlevel.checkpoint()
        self._check()
        room = len(data) if self.room is None else self.room - len(self.outgoing)
        self.outgoing += bytes(data[: max(0, room)])
        while room < len(data):
            if self.full is not Cut.SILENCE:
                raise trio.BrokenResourceError("reset")
            await self._changed.wait()
            self._check()

    async def wait_send_all_might_not_block(self) -> None:
        """Never used here; required of a stream."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Never used here; required of a stream."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """Close."""
        self.close()
        await trio.lowlevel.checkpoint()

    def close(self) -> None:
        """Close without waiting; whoever waits here finds that out."""
        self.closed = True
        self._changed.set()

    def _check(self) -> None:
        if self.closed:
            raise trio.ClosedResourceError
