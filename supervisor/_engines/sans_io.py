"""The second engine: the protocol of `websockets`, which does no input or output, fed by the one ear of all sockets.

What comes is parsed at once, whatever the handler is doing, and waits for it as messages. Only streams that are no
plain sockets, and systems without epoll, need a task that reads.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
from collections.abc import Coroutine
from typing import Any

import attrs
import trio

from .._words.closing import CloseReason
from .._words.frames import PONG, Frame, encode
from .._words.limits import Limits
from .._words.upgrade import Upgrade
from .._words.wire import Ended, WireClosed
from .ear import Ear
from .intake import Intake
from .latch import Latch
from .link import NO_CODE, RECEIVE_BYTES, Link, Stream, goodbye

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
#: For so many seconds, messages that came just before the end may still be asked for, and answered.
_SOON = 0.05
#: What is read at once where it may be compressed: it may become a thousand times as much.
_COMPRESSED_BYTES = 1024


@attrs.define(eq=False)
class SansIo:
    """A `Wire` over one accepted socket whose request head has been read, judged and found good."""

    stream: Stream
    peer: str
    upgrade: Upgrade
    limits: Limits
    write_progress: float
    #: Hears for us; None if there is none.
    ear: Ear | None
    #: Whether messages may be compressed, if the client offers it.
    compression: bool = False
    _link: Link = attrs.field(init=False)
    _intake: Intake = attrs.field(init=False)
    _ended: Ended | None = None
    _nursery: trio.Nursery | None = None
    #: What the last ping said that is still to be answered; and whether somebody is about to.
    _pong: bytes | None = None
    _answering: bool = False
    _heard_at: float = 0.0
    #: What the ear hears; None if a task reads.
    _fd: int | None = None
    #: What comes now is heard.
    _listening: bool = False
    _opened: Latch = attrs.field(factory=Latch)
    #: Whoever waits for messages, for room, or for the peer's end.
    _news: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    #: The end is known, and the handler may still come for what came before.
    _ending: bool = False
    #: No message comes any more.
    _over: bool = False
    _goodbye_said: bool = False

    def __attrs_post_init__(self) -> None:
        self._link, self._intake = Link(self.stream, self.write_progress), Intake(self.limits)

    @property
    def silent_since(self) -> float | None:
        """See `Wire.silent_since`: None while more is unread than one message may hold."""
        return self._heard_at if self._listening else None

    @property
    def stalled_since(self) -> float | None:
        """See `Wire.stalled_since`."""
        return self._link.stalled_since

    @property
    def traffic(self) -> tuple[int, int] | None:
        """See `Wire.traffic`."""
        return self._link.traffic()

    # -- opening -----------------------------------------------------------------------------------------------

    async def open(self, nursery: trio.Nursery, ended: Ended) -> None:
        """See `Wire.open`: the 101 is written here, and nothing is read before it."""
        self._nursery, self._ended = nursery, ended
        self._link.nursery, self._link.broken = nursery, self._broken
        await self._link.send(self._answer())
        self._opened.set()
        if self.ear is not None and isinstance(self.stream, trio.SocketStream):
            self._fd = self.stream.socket.fileno()
            self._start_listening()
        else:
            nursery.start_soon(self._read, name="reader")

    def _answer(self) -> bytes:
        upgrade, more = self.upgrade, ""
        digest = hashlib.sha1(upgrade.key.encode() + _GUID, usedforsecurity=False).digest()
        if upgrade.subprotocol is not None:
            more += f"Sec-WebSocket-Protocol: {upgrade.subprotocol}\r\n"
        if self.compression and (agreed := self._intake.agree(upgrade.extensions)) is not None:
            more += f"Sec-WebSocket-Extensions: {agreed}\r\n"
        return (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {base64.b64encode(digest).decode()}\r\n{more}\r\n"
        ).encode("ascii")

    # -- listening ---------------------------------------------------------------------------------------------

    def _start_listening(self) -> None:
        if self._fd is not None and not (self._listening or self._intake.done or self._link.closed):
            assert self.ear is not None
            self._listening, self._heard_at = True, trio.current_time()
            self.ear.hear(self._fd, self)

    def _stop_listening(self) -> None:
        if self._fd is not None and self._listening:
            assert self.ear is not None
            self._listening = False
            self.ear.ignore(self._fd)

    def listen(self) -> None:
        """See `Listener.listen`."""
        data = self._link.receive_now(self._at_most)
        if data is not None:
            self._take_in(data)
            if self._intake.done or self._intake.full:
                self._stop_listening()

    def fail(self, exception: Exception) -> None:
        """See `Listener.fail`."""
        self._listening = False
        self._end(CloseReason.FAILED, "", exception)

    @property
    def _at_most(self) -> int:
        return _COMPRESSED_BYTES if self._intake.compressed else RECEIVE_BYTES

    async def _read(self) -> None:
        """The reader, where there is no ear."""
        intake = self._intake
        while not intake.done:
            while intake.full:
                await self._news.park()
            self._listening, self._heard_at = True, trio.current_time()
            try:
                data = await self._link.receive(self._at_most)
            finally:
                self._listening = False
            self._take_in(data)

    def _take_in(self, data: bytes | bytearray) -> None:
        intake = self._intake
        if self._link.closed:  # cut, and nobody wants to hear any more
            intake.done = True
            return
        self._heard_at = trio.current_time()
        intake.take_in(data, self._heard_at)
        if intake.pings:
            self._answer_pings()
        if intake.verdict is not None and not self._ending:
            self._conclude()
        if self._news:
            self._news.unpark_all()

    async def receive(self) -> str | bytes:
        """See `Wire.receive`."""
        intake = self._intake
        if intake.messages:
            await trio.lowlevel.checkpoint()
        while not intake.messages:
            if intake.verdict is not None:
                self._end(*intake.verdict)
            if self._over:
                raise WireClosed
            await self._news.park()
        message = intake.next_message()
        if not self._listening and not intake.full:
            self._start_listening()
            self._news.unpark_all()
        return message

    def _answer_pings(self) -> None:
        """Now if the socket takes it, else when it does; of several that have to wait, the last one counts."""
        pings, self._intake.pings = self._intake.pings, []
        if self._nursery is None or self._intake.closing:
            return
        for payload in pings:
            if self._answering or not self._link.offer(encode(PONG, payload)):
                self._pong = payload
        if self._pong is not None and not self._answering:
            self._answering = True
            self._nursery.start_soon(self._answer_later, name="pong")

    async def _answer_later(self) -> None:
        try:
            while self._pong is not None and not self._intake.closing:
                payload, self._pong = self._pong, None
                await self._link.send(encode(PONG, payload))
        except WireClosed:
            pass
        finally:
            self._answering = False

    # -- sending -----------------------------------------------------------------------------------------------

    def write(self, frame: Frame) -> Coroutine[Any, Any, None] | None:
        """See `Wire.write`; before the 101 is written, it waits."""
        return self._link.write(self._octets(frame)) if self._opened.is_set else self._write_when_open(frame)

    async def _write_when_open(self, frame: Frame) -> None:
        await self._opened.wait()
        await self._link.send(self._octets(frame))

    def offer(self, frame: Frame) -> bool:
        """See `Wire.offer`."""
        return self._opened.is_set and self._link.offer(self._octets(frame))

    def _octets(self, frame: Frame) -> bytes:
        return frame.deflated if self._intake.compressed else frame.octets

    def ping(self) -> None:
        """See `Wire.ping`. A peer that the kernel knows to be gone is found here, even if nobody listens."""
        if not self._opened.is_set:
            return
        if self.silent_since is None and self._link.peer_is_gone():
            self._end(CloseReason.PEER_LOST)
        else:
            self._link.ping()

    # -- ending ------------------------------------------------------------------------------------------------

    def _conclude(self) -> None:
        """Nothing more comes. What has come before is the handler's, if it comes for it soon."""
        assert self._intake.verdict is not None
        self._ending = True
        if self._intake.messages and self._nursery is not None:
            self._nursery.start_soon(self._wait_for_handler, name="last messages")
        else:
            self._end(*self._intake.verdict)

    async def _wait_for_handler(self) -> None:
        with trio.move_on_after(_SOON):
            while not (self._over or self._intake.closing):
                await self._news.park()
        if self._intake.verdict is not None:
            self._end(*self._intake.verdict)

    def _broken(self, reason: CloseReason) -> None:
        """The link is cut already, and why."""
        self._stop_listening()
        self._intake.done = True
        self._news.unpark_all()
        if self._opened.is_set:
            self._end(reason)
        else:  # a peer that does not take the 101 is not there
            self._end(CloseReason.PEER_LOST, "connection lost during the upgrade")

    def _end(self, reason: CloseReason, text: str = "", cause: BaseException | None = None) -> None:
        if self._over or self._intake.closing:
            return
        self._over = True
        self._news.unpark_all()
        if self._ended is not None:
            self._ended(reason, text, cause)

    async def close(self, code: int, text: str) -> None:
        """See `Wire.close`: our close frame, and then the peer's answer, whatever precedes it."""
        if not self._opened.is_set:
            return
        self._goodbye_said = self._intake.closing = True
        self._news.unpark_all()
        self._start_listening()
        with contextlib.suppress(WireClosed):
            await self._link.say(goodbye(code, text, self._intake.close_payload))
            while not self._intake.done:
                await self._news.park()

    def cut(self, code: int, text: str) -> None:
        """See `Wire.cut`."""
        try:
            if not self._goodbye_said and self._opened.is_set and code != NO_CODE:
                self._goodbye_said = True
                self._link.offer(goodbye(code, text, self._intake.close_payload))
        finally:
            self._over = True
            self._stop_listening()
            self._link.cut()
            self._opened.set()  # whoever waits to send finds the link closed
            self._intake.let_go()
            self._news.unpark_all()
            # Nobody is told anything any more; and nothing of this refers to itself, so it goes without the collector.
            self._ended = self._nursery = self._link.nursery = self._link.broken = None
