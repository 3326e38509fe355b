"""A connection that somebody else's `trio_websocket.serve_websocket` has accepted, behind our seam.

It protects what can be protected from here: seats, time limits, a bounded close. What happens before the request
reaches us, and what trio-websocket's own reader raises, is out of reach; ``docs/serve-websocket.md`` says what that is.
"""

from __future__ import annotations

import json
from typing import cast

import attrs
import trio
import trio_websocket

from .._words.closing import CloseReason
from .._words.frames import Frame
from .._words.wire import Ended, WireClosed
from .link import Stream, close_now

_QUEUED_MESSAGES = 4
#: Seconds that writing a refusal may take.
_REFUSAL = 0.5
_ENDS = {
    1002: CloseReason.PROTOCOL_ERROR,
    1006: CloseReason.PEER_LOST,
    1007: CloseReason.INVALID_TEXT,
    1009: CloseReason.TOO_BIG,
}


@attrs.define(eq=False)
class Borrowed:
    """A `Wire` over a `trio_websocket.WebSocketRequest`. One reader task per connection."""

    request: trio_websocket.WebSocketRequest
    peer: str = "?"
    silent_since: float | None = None
    stalled_since: float | None = None
    traffic: tuple[int, int] | None = None
    _stream: Stream = attrs.field(init=False)
    _nursery: trio.Nursery | None = None
    _ended: Ended | None = None
    _ws: trio_websocket.WebSocketConnection | None = None
    _inbox: tuple[trio.MemorySendChannel[str | bytes], trio.MemoryReceiveChannel[str | bytes]] = attrs.field(
        factory=lambda: trio.open_memory_channel[str | bytes](_QUEUED_MESSAGES)
    )

    def __attrs_post_init__(self) -> None:
        # The two private names below are why the dependency is pinned to <0.13: its public aclose() returns without
        # closing the socket once a close has begun, and queues behind a stuck send before.
        self._stream = cast("Stream", self.request._connection._stream)
        try:
            self.peer = str(self.request.remote)
        except OSError:
            pass  # reset meanwhile; accepting it will say so

    async def open(self, nursery: trio.Nursery, ended: Ended) -> None:
        """See `Wire.open`."""
        self._nursery, self._ended = nursery, ended
        try:
            self._ws = await self.request.accept()
        except trio_websocket.ConnectionClosed:
            raise WireClosed from None
        nursery.start_soon(self._read, self._ws, name="reader")

    async def _read(self, ws: trio_websocket.WebSocketConnection) -> None:
        """Notice the end also while the handler is not receiving; stops reading while it does not keep up."""
        send_channel = self._inbox[0]
        with send_channel:
            while True:
                self.silent_since = trio.current_time()
                try:
                    message = await ws.get_message()
                except trio_websocket.ConnectionClosed as closed:
                    self._end(_ENDS.get(closed.reason.code if closed.reason else 1006, CloseReason.PEER_CLOSED))
                    return
                finally:
                    self.silent_since = None
                await send_channel.send(message)

    def _end(self, reason: CloseReason) -> None:
        if self._ended is not None:
            self._ended(reason)

    async def receive(self) -> str | bytes:
        """See `Wire.receive`."""
        try:
            return await self._inbox[1].receive()
        except trio.EndOfChannel:
            raise WireClosed from None

    async def write(self, frame: Frame) -> None:
        """See `Wire.write`. Cancelled here, nobody can know how much was written: the connection ends."""
        if self._ws is None:
            raise WireClosed
        self.stalled_since = trio.current_time()
        try:
            await self._ws.send_message(frame.message)
        except trio_websocket.ConnectionClosed:
            raise WireClosed from None
        except trio.Cancelled:
            self.cut(1006, "")
            self._end(CloseReason.SEND_CANCELLED)
            raise
        finally:
            self.stalled_since = None

    def offer(self, frame: Frame) -> bool:
        """See `Wire.offer`: trio-websocket can only send and wait."""
        return False

    def ping(self) -> None:
        """See `Wire.ping`."""
        if self._nursery is not None and self._ws is not None and self.stalled_since is None:
            self._nursery.start_soon(self._ping, self._ws, name="ping")

    async def _ping(self, ws: trio_websocket.WebSocketConnection) -> None:
        try:
            await ws.ping()
        except trio_websocket.ConnectionClosed:
            return
        if self.silent_since is not None:
            self.silent_since = trio.current_time()

    async def close(self, code: int, text: str) -> None:
        """See `Wire.close`."""
        if self._ws is not None:
            await self._ws.aclose(code, text)

    def cut(self, code: int, text: str) -> None:
        """See `Wire.cut`."""
        close_now(self._stream)


async def refuse(request: trio_websocket.WebSocketRequest, status: int, why: str) -> None:
    """Answer instead of upgrading, and close the socket, which trio-websocket would leave to the peer."""
    stream = cast("Stream", request._connection._stream)
    try:
        with trio.move_on_after(_REFUSAL):
            body = json.dumps({"error": "refused", "detail": why}).encode()
            await request.reject(status, extra_headers=[(b"Content-Type", b"application/json")], body=body)
    except trio_websocket.ConnectionClosed:
        pass
    finally:
        await trio.aclose_forcefully(stream)
