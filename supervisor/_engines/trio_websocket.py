"""The default engine: trio-websocket, over a stream of ours that it cannot harm and that cannot harm it."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Coroutine
from functools import partial
from typing import Any, cast

import attrs
import trio
import trio_websocket
from wsproto.utilities import LocalProtocolError

from .._words.closing import CloseReason
from .._words.frames import CLOSE, Frame
from .._words.limits import Limits
from .._words.upgrade import Upgrade
from .._words.wire import Ended, WireClosed
from .latch import Latch
from .link import NO_CODE, Link, Stream, goodbye
from .meters import Meters
from .scanner import Scanner

#: Messages that were received and that the handler has not asked for yet.
_QUEUED_MESSAGES = 4
_ENGINE_CLOSES = {1002: CloseReason.PROTOCOL_ERROR, 1007: CloseReason.INVALID_TEXT, 1009: CloseReason.TOO_BIG}


@attrs.define(eq=False)
class TrioWebSocket:
    """A `Wire` over one accepted socket whose request head has been read, judged and found good."""

    stream: Stream
    peer: str
    upgrade: Upgrade
    limits: Limits
    write_progress: float
    _link: Link = attrs.field(init=False)
    _inlet: Inlet = attrs.field(init=False)
    _ended: Ended | None = None
    _nursery: trio.Nursery | None = None
    _ws: trio_websocket.WebSocketConnection | None = None
    _reader_over: Latch = attrs.field(factory=Latch)
    _goodbye_said: bool = False

    def __attrs_post_init__(self) -> None:
        self._link = Link(self.stream, self.write_progress)
        self._inlet = Inlet(self._link, Scanner(Meters(self.limits)), self._head(), self._end)

    @property
    def silent_since(self) -> float | None:
        """See `Wire.silent_since`: None while the engine's queue is full and it does not read."""
        return self._inlet.silent_since

    @property
    def stalled_since(self) -> float | None:
        """See `Wire.stalled_since`."""
        return self._link.stalled_since

    @property
    def traffic(self) -> tuple[int, int] | None:
        """See `Wire.traffic`."""
        return self._link.traffic()

    def _head(self) -> bytes:
        """The request that the engine sees: ours, so nothing that a peer wrote ever reaches its parser."""
        protocol = f"Sec-WebSocket-Protocol: {self.upgrade.subprotocol}\r\n" if self.upgrade.subprotocol else ""
        return (
            "GET / HTTP/1.1\r\nHost: supervisor\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Key: {self.upgrade.key}\r\nSec-WebSocket-Version: 13\r\n{protocol}\r\n"
        ).encode("ascii")

    async def open(self, nursery: trio.Nursery, ended: Ended) -> None:
        """See `Wire.open`: the 101 is written here, and nothing is read before it."""
        self._nursery, self._ended = nursery, ended
        self._link.nursery, self._link.broken = nursery, self._broken
        request = await trio_websocket.wrap_server_stream(
            cast("trio.Nursery", _ReaderNursery(nursery, self._read)),
            self._inlet,
            message_queue_size=_QUEUED_MESSAGES,
            max_message_size=self.limits.max_message_size,
        )
        try:
            self._ws = await request.accept(subprotocol=self.upgrade.subprotocol)
        except trio_websocket.ConnectionClosed:
            raise WireClosed from None
        self._inlet.opened.set()

    async def _read(self, reader: Callable[[], Awaitable[None]]) -> None:
        """Run the engine's reader; whatever comes out of it is the end of this connection only."""
        try:
            await reader()
            closed = None if self._ws is None else self._ws.closed  # what it found to be wrong, and did not say
            self._end(_ENGINE_CLOSES.get(closed.code if closed else 1006, CloseReason.PEER_LOST))
        except (trio_websocket.ConnectionClosed, LocalProtocolError):
            self._end(CloseReason.PROTOCOL_ERROR)
        except Exception as exception:  # noqa: BLE001 - reported as a Failed event, and it ends this connection
            self._end(CloseReason.PROTOCOL_ERROR, cause=exception)
        finally:
            self._reader_over.set()
            self._inlet.silent_since = None

    def _broken(self, reason: CloseReason) -> None:
        if self._inlet.opened.is_set:
            self._end(reason)
        else:  # a peer that does not take the 101 is not there
            self._end(CloseReason.PEER_LOST, "connection lost during the upgrade")

    def _end(self, reason: CloseReason, text: str = "", cause: BaseException | None = None) -> None:
        if self._ended is not None:
            self._ended(reason, text, cause)

    async def receive(self) -> str | bytes:
        """See `Wire.receive`."""
        if self._ws is None:
            raise WireClosed
        try:
            message = await self._ws.get_message()
            self._inlet.read()
            return message
        except trio_websocket.ConnectionClosed:
            pass
        await self._reader_over.wait()  # by then it is known why
        raise WireClosed

    def write(self, frame: Frame) -> Coroutine[Any, Any, None] | None:
        """See `Wire.write`; before the 101 is written, it waits."""
        return self._link.write(frame.octets) if self._inlet.opened.is_set else self._write_when_open(frame)

    async def _write_when_open(self, frame: Frame) -> None:
        await self._inlet.opened.wait()
        await self._link.send(frame.octets)

    def offer(self, frame: Frame) -> bool:
        """See `Wire.offer`."""
        return self._inlet.opened.is_set and self._link.offer(frame.octets)

    def ping(self) -> None:
        """See `Wire.ping`. A peer that the kernel knows to be gone is found here, even if nobody reads."""
        if not self._inlet.opened.is_set:
            return
        if self._inlet.silent_since is None and self._link.peer_is_gone():
            self._end(CloseReason.PEER_LOST)
        else:
            self._link.ping()

    async def close(self, code: int, text: str) -> None:
        """See `Wire.close`: our close frame, never the engine's, and then the peer's answer, whatever precedes it."""
        if self._ws is None:
            return
        self._inlet.stop()
        self._goodbye_said = True
        try:
            await self._link.say(goodbye(code, text, self._inlet.scanner.close_payload))
            while not self._reader_over.is_set:  # what the engine still delivers is not wanted by anybody
                await self._discard_messages()
            await self._inlet.wait_for_peer()
        except WireClosed:
            pass

    async def _discard_messages(self) -> None:
        assert self._ws is not None
        try:
            while True:
                await self._ws.get_message()
        except trio_websocket.ConnectionClosed:
            await self._reader_over.wait()

    def cut(self, code: int, text: str) -> None:
        """See `Wire.cut`."""
        try:
            if not self._goodbye_said and self._ws is not None and code != NO_CODE:
                self._goodbye_said = True
                self._link.offer(goodbye(code, text, self._inlet.scanner.close_payload))
        finally:
            self._inlet.stop()
            self._link.cut()
            self._inlet.opened.set()  # whoever waits to send finds the link closed
            # Nobody is told anything any more; and nothing of this refers to itself, so it goes without the collector.
            self._ended = self._nursery = self._link.nursery = self._link.broken = None
            self._inlet.ended = _nobody


def _nobody(reason: CloseReason, text: str) -> None:
    """Listens to an inlet whose wire is cut."""


@attrs.define(eq=False)
class Inlet(trio.abc.HalfCloseableStream):
    """The stream that trio-websocket believes to be its own."""

    link: Link
    scanner: Scanner
    head: bytes
    #: Told why, when the engine or the peer ends the conversation.
    ended: Callable[[CloseReason, str], object]
    #: Since when nothing has been heard; None while the engine does not listen.
    silent_since: float | None = None
    #: We have begun to close: nothing goes to the engine any more, and nothing comes from it.
    closing: bool = False
    #: The 101 is written: what goes either way from now on are frames. Or there will never be any.
    opened: Latch = attrs.field(factory=Latch)
    #: What the engine waits for while more is unread than one message may hold.
    _room: trio.Event | None = None
    _peer_is_done: bool = False
    _hung_up: bool = False

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        """First our head; then, after the 101, what the peer sends, as long as it keeps to the bounds."""
        if self.head:
            await trio.lowlevel.checkpoint()
            head, self.head = self.head, b""
            return head
        await self.opened.wait()
        if self._hung_up:
            await trio.lowlevel.checkpoint()
            return b""
        while self.scanner.unread_bytes >= self.scanner.meters.limits.max_message_size and not self.closing:
            self._room = trio.Event()
            await self._room.wait()
        data = await self._hear()
        if self.closing:
            return b""
        if self.scanner.meters.violation is not None:
            self.ended(*self.scanner.meters.violation)
            return b""
        if not data:
            self.ended(CloseReason.PEER_LOST, "connection lost without a close frame")
        return data

    def read(self) -> None:
        """The handler has taken a message, so there is room for more."""
        self.scanner.read()
        self._make_room()

    def stop(self) -> None:
        """We begin to close."""
        self.closing = True
        self._make_room()

    def _make_room(self) -> None:
        if self._room is not None:
            self._room.set()
            self._room = None

    async def wait_for_peer(self) -> None:
        """Swallow whatever comes, until the peer has closed too."""
        while not self._peer_is_done:
            await self._hear()

    async def _hear(self) -> bytes | bytearray:
        if self._peer_is_done:
            await trio.lowlevel.checkpoint()
            return b""
        self.silent_since = trio.current_time()
        try:
            data = await self.link.receive()
        finally:
            self.silent_since = None
        self.scanner.feed(data, trio.current_time())
        self._peer_is_done = not data or self.scanner.close_payload is not None
        return data

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        """What the engine writes by itself: the 101, pongs, and close frames, which tell us what it found.

        Its close frames are not written: the goodbye is ours, with our reason.
        """
        octets = bytes(data)
        if octets[:1] == _CLOSE_FRAME:
            self._engine_closes(int.from_bytes(octets[2:4], "big"))
        elif not self.closing:
            try:
                await self.link.send(octets)
                return
            except WireClosed:
                raise trio.BrokenResourceError("the link is closed") from None
        await trio.lowlevel.checkpoint()

    def _engine_closes(self, code: int) -> None:
        peers = self.scanner.close_payload
        if peers is not None and (not peers or code == int.from_bytes(peers[:2], "big")):
            said = peers[2:].decode("utf-8", "replace")
            self.ended(CloseReason.PEER_CLOSED, f"closed by the peer{f': {said}' if said else ''}")
        else:
            self.ended(_ENGINE_CLOSES.get(code, CloseReason.PROTOCOL_ERROR), "")

    async def wait_send_all_might_not_block(self) -> None:
        """Never called by the engine; required of a stream."""
        await trio.lowlevel.checkpoint()

    async def send_eof(self) -> None:
        """Never called by the engine; required of a stream."""
        await trio.lowlevel.checkpoint()

    async def aclose(self) -> None:
        """The engine hangs up, and hears nothing more; the socket is ours, and is closed by `TrioWebSocket.cut`."""
        self._hung_up = True
        await trio.lowlevel.checkpoint()


_CLOSE_FRAME = bytes((0x80 | CLOSE,))


@attrs.frozen
class _ReaderNursery:
    """What trio-websocket takes for a nursery: starts its one task under our guard."""

    nursery: trio.Nursery
    guard: Callable[[Callable[[], Awaitable[None]]], Awaitable[None]]

    def start_soon(self, reader: Callable[..., Awaitable[None]], *args: Any) -> None:
        self.nursery.start_soon(self.guard, partial(reader, *args), name="reader")
