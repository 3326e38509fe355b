"""Wires without sockets, for virtual time. Beside the real ones, never instead of them."""

from __future__ import annotations

from collections import deque

import attrs
import trio

from supervisor import CloseReason, Connection, Frame, WireClosed


@attrs.define(eq=False)
class FakeWire:
    """A peer that behaves as `kind` says: polite, mute, slow, raises, shields, never-reads."""

    kind: str = "polite"
    peer: str = "fake"
    silent_since: float | None = None
    stalled_since: float | None = None
    inbox: deque[str | bytes] = attrs.field(factory=deque)
    sent: list[str | bytes] = attrs.field(factory=list)
    pings: int = 0
    answers_pings: bool = True
    farewell: tuple[int, str] | None = None
    cut_at: float | None = None
    hung_up: bool = False
    _ended: object = None
    _changed: trio.Event = attrs.field(factory=trio.Event)

    async def open(self, nursery, ended):
        self._ended = ended
        await trio.lowlevel.checkpoint()
        if self.kind == "refuses":
            raise WireClosed
        self.silent_since = trio.current_time()

    async def receive(self):
        while not self.inbox:
            if self.hung_up or self.cut_at is not None:
                raise WireClosed
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        self.silent_since = trio.current_time()
        return self.inbox.popleft()

    async def send(self, frame: Frame):
        self.stalled_since = trio.current_time()
        try:
            while self.kind == "never-reads":
                if self.cut_at is not None:
                    raise WireClosed
                await self._changed.wait()
        finally:
            self.stalled_since = None
        await trio.lowlevel.checkpoint()
        self.sent.append(frame.message)

    def offer(self, frame: Frame):
        if self.kind == "never-reads" or self.cut_at is not None:
            return False
        self.sent.append(frame.message)
        return True

    def ping(self):
        self.pings += 1
        if self.answers_pings:
            self.silent_since = trio.current_time()

    async def close(self, code, text):
        self.farewell = code, text
        if self._ended is None:  # not opened, so there is nobody to say goodbye to
            return
        while self.kind in ("mute", "never-reads") and self.cut_at is None:
            await self._changed.wait()
        if self.kind == "raises":
            raise OSError("close raises")
        if self.kind == "shields":
            with trio.CancelScope(shield=True):
                await trio.sleep(3)
        if self.kind == "slow":
            await trio.sleep(0.2)
        await trio.lowlevel.checkpoint()

    def cut(self, code, text):
        if self.cut_at is None:
            self.cut_at = trio.current_time()
        self._wake()

    # -- the peer's side --

    def deliver(self, message):
        self.inbox.append(message)
        self._wake()

    def hang_up(self, reason=CloseReason.PEER_CLOSED):
        self.hung_up = True
        self._wake()
        self._ended(reason)

    def read_again(self):
        self.kind = "polite"
        self._wake()

    def _wake(self):
        self._changed.set()
        self._changed = trio.Event()


async def sleeper(conn: Connection) -> None:
    """A handler that does nothing until it is cancelled."""
    await trio.sleep_forever()


async def echo(conn: Connection) -> None:
    """A handler that reads."""
    async for message in conn:
        await conn.send(message)
