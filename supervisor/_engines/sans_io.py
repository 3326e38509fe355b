"""The second engine: the protocol of `websockets`, which does no input or output, fed by the one ear of all sockets.

What comes is parsed at once, whatever the handler is doing, and waits for it as messages. Only streams that are no
plain sockets, and systems without epoll, need a task that reads.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
from collections import deque
from collections.abc import Coroutine
from typing import Any

import attrs
import trio
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Frame as Parsed
from websockets.frames import Opcode
from websockets.protocol import SERVER, Protocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # no binary for this system
    from websockets.utils import apply_mask

from .._words.closing import CloseReason
from .._words.frames import PONG, Frame, encode
from .._words.limits import Limits
from .._words.upgrade import Upgrade
from .._words.wire import Ended, WireClosed
from .deflate import agree
from .ear import Ear
from .latch import Latch
from .link import NO_CODE, Link, Stream, goodbye
from .meters import Meters

_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
#: What a message counts for besides its bytes: empty ones fill the memory too.
_OVERHEAD = 100
#: What is said on a connection, a new token for instance, is not for the log, however much of it is wanted.
_SILENT = logging.getLogger("supervisor.websockets")
_SILENT.setLevel(logging.WARNING)
#: The first octets of text and binary messages in one frame, and the least that one has.
_PLAIN = (0x81, 0x82)
_SHORTEST = 6
#: What everybody has who has no messages; a queue of one's own is 0.8 kB.
_NONE: deque[tuple[str | bytes, int]] = deque(maxlen=0)
#: For so many seconds, messages that came just before the end may still be asked for, and answered.
_SOON = 0.05


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
    _meters: Meters = attrs.field(init=False)
    _protocol: Protocol = attrs.field(init=False)
    _ended: Ended | None = None
    _nursery: trio.Nursery | None = None
    #: Complete messages that nobody has asked for, with what each counts for; and the sum of that.
    _messages: deque[tuple[str | bytes, int]] = _NONE
    _unread: int = 0
    #: How many octets of an unfinished frame the protocol has been fed.
    _behind: int = 0
    #: The opcode and the pieces of the message that is arriving.
    _opcode: Opcode = Opcode.CONT
    _pieces: list[Any] = attrs.field(factory=list)
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
    #: What ends it, once the handler has taken the messages that came before.
    _verdict: tuple[CloseReason, str, BaseException | None] | None = None
    #: No message comes any more.
    _over: bool = False
    _closing: bool = False
    _goodbye_said: bool = False
    #: The payload of the peer's close frame.
    _peers_close: bytes | None = None
    _peer_is_done: bool = False

    def __attrs_post_init__(self) -> None:
        self._link = Link(self.stream, self.write_progress)
        self._meters = Meters(self.limits)
        self._protocol = Protocol(SERVER, max_size=self.limits.max_message_size, logger=_SILENT)

    @property
    def silent_since(self) -> float | None:
        """See `Wire.silent_since`: None while more is unread than one message may hold."""
        return self._heard_at if self._listening else None

    @property
    def stalled_since(self) -> float | None:
        """See `Wire.stalled_since`."""
        return self._link.stalled_since

    @property
    def _full(self) -> bool:
        return self._unread >= self.limits.max_message_size and not self._closing

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
        extensions = self._agree_on_extensions()
        accept = base64.b64encode(
            hashlib.sha1(self.upgrade.key.encode() + _GUID, usedforsecurity=False).digest()
        ).decode()
        protocol = f"Sec-WebSocket-Protocol: {self.upgrade.subprotocol}\r\n" if self.upgrade.subprotocol else ""
        return (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n{protocol}{extensions}\r\n"
        ).encode("ascii")

    def _agree_on_extensions(self) -> str:
        agreed = agree(self.upgrade.extensions) if self.compression else None
        if agreed is None:
            self.compression = False
            return ""
        answer, extension = agreed
        self._protocol.extensions = [extension]
        return f"Sec-WebSocket-Extensions: {answer}\r\n"

    def _broken(self, reason: CloseReason) -> None:
        self._stop_listening()
        self._peer_is_done = True
        self._news.unpark_all()
        if self._opened.is_set:
            self._end(reason)
        else:  # a peer that does not take the 101 is not there
            self._end(CloseReason.PEER_LOST, "connection lost during the upgrade")

    def _end(self, reason: CloseReason, text: str = "", cause: BaseException | None = None) -> None:
        if self._over or self._closing:
            return
        self._over = True
        self._news.unpark_all()
        if self._ended is not None:
            self._ended(reason, text, cause)

    # -- listening ---------------------------------------------------------------------------------------------

    def _start_listening(self) -> None:
        if self._fd is not None and not (self._listening or self._peer_is_done or self._link.closed):
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
        data = self._link.receive_now()
        if data is not None:
            self._take_in(data)
            if self._peer_is_done or self._full:
                self._stop_listening()

    async def _read(self) -> None:
        """The reader, where there is no ear."""
        while not self._peer_is_done:
            while self._full:
                await self._news.park()
            self._listening, self._heard_at = True, trio.current_time()
            try:
                data = await self._link.receive()
            finally:
                self._listening = False
            self._take_in(data)

    def _take_in(self, data: bytes | bytearray) -> None:
        """Parse what has come; whatever is wrong with it is the end of this connection only."""
        if self._link.closed:  # cut, and nobody wants to hear any more
            self._peer_is_done = True
            return
        self._heard_at = now = trio.current_time()
        self._meters.heard(len(data), now)
        try:
            plain = not (self._behind or self._pieces or self._closing or self.compression)
            rest = data[self._take_plain(data, now) :] if plain else data
            if rest or not data:
                self._parse(rest, now)
        except Exception as exception:  # noqa: BLE001 - reported as a Failed event, and it ends this connection
            self._peer_is_done = True
            self._conclude(CloseReason.PROTOCOL_ERROR, "", exception)
        if self._meters.violation is not None:
            self._conclude(*self._meters.violation)
        if self._news:
            self._news.unpark_all()

    def _take_plain(self, data: bytes | bytearray, now: float) -> int:
        """Take the messages that `data` begins with, if they are whole and in one frame each, as nearly all are.

        Returns where they end. What is not as plain is the protocol's business, which costs more.
        """
        position, end = 0, len(data)
        while end - position >= _SHORTEST and data[position] in _PLAIN and 0x80 <= data[position + 1] < 0xFF:
            size, mask = data[position + 1] & 0x7F, position + 2
            if size == 126:
                size, mask = int.from_bytes(data[mask : mask + 2], "big"), mask + 2
            payload = mask + 4
            if payload + size > end or size > self.limits.max_message_size:
                break
            self._meters.message(now)
            octets = apply_mask(data[payload : payload + size], data[mask:payload])
            self._deliver(data[position] & 0x0F, octets)
            position = payload + size
        return position

    def _parse(self, data: bytes | bytearray, now: float) -> None:
        protocol = self._protocol
        if data:
            self._behind += len(data)
            protocol.receive_data(data)
        else:
            self._peer_is_done = True
            protocol.receive_eof()
        protocol.data_to_send()  # pongs and goodbyes are ours
        for frame in protocol.events_received():
            assert isinstance(frame, Parsed)
            self._behind -= _size_of(frame)
            self._take(frame, now)
        if protocol.parser_exc is not None:
            self._conclude(*_reason_for(protocol.parser_exc, self.limits))
        elif not data:
            self._conclude(CloseReason.PEER_LOST, "connection lost without a close frame")

    def _conclude(self, reason: CloseReason, text: str = "", cause: BaseException | None = None) -> None:
        """Nothing comes after this. What has come before is the handler's, if it comes for it soon."""
        if self._verdict is not None or self._over or self._closing:
            return
        self._verdict = reason, text, cause
        if self._messages and self._nursery is not None:
            self._nursery.start_soon(self._wait_for_handler, name="last messages")
        else:
            self._end(reason, text, cause)

    async def _wait_for_handler(self) -> None:
        with trio.move_on_after(_SOON):
            while not (self._over or self._closing):
                await self._news.park()
        if self._verdict is not None:
            self._end(*self._verdict)

    async def receive(self) -> str | bytes:
        """See `Wire.receive`."""
        if self._messages:
            await trio.lowlevel.checkpoint()
        while not self._messages:
            if self._verdict is not None:
                self._end(*self._verdict)
            if self._over:
                raise WireClosed
            await self._news.park()
        message, size = self._messages.popleft()
        if not self._messages:
            self._messages = _NONE
        self._unread -= size
        if not self._listening and not self._full:
            self._start_listening()
            self._news.unpark_all()
        return message

    def _take(self, frame: Parsed, now: float) -> None:
        match frame.opcode:
            case Opcode.CLOSE:
                self._take_close(bytes(frame.data))
            case Opcode.PING | Opcode.PONG:
                self._meters.control(now)
                if frame.opcode is Opcode.PING:
                    self._answer_ping(bytes(frame.data))
            case _ if not (self._verdict or self._over or self._closing):
                self._take_data(frame, now)

    def _take_data(self, frame: Parsed, now: float) -> None:
        if frame.opcode is not Opcode.CONT:
            self._meters.message(now)
            self._opcode = frame.opcode
        self._pieces.append(frame.data)
        self._meters.fragments(len(self._pieces))
        if frame.fin:
            octets = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
            self._pieces = []
            self._deliver(self._opcode, bytes(octets))

    def _deliver(self, opcode: int, octets: bytes) -> None:
        """One whole message, for the handler; unless something has been wrong before it."""
        if self._verdict is not None or self._over or self._meters.violation is not None:
            return
        try:
            message = str(octets, "utf-8") if opcode == Opcode.TEXT else octets
        except UnicodeDecodeError:
            self._conclude(CloseReason.INVALID_TEXT)
            return
        size = len(octets) + _OVERHEAD
        if self._messages is _NONE:
            self._messages = deque()
        self._messages.append((message, size))
        self._unread += size

    def _take_close(self, payload: bytes) -> None:
        self._peers_close, self._peer_is_done = payload, True
        said = payload[2:].decode("utf-8", "replace")
        self._conclude(CloseReason.PEER_CLOSED, f"closed by the peer{f': {said}' if said else ''}")

    def _answer_ping(self, payload: bytes) -> None:
        """Now if the socket takes it, else when it does; of several, the last one counts."""
        if self._closing or self._nursery is None:
            return
        if self._answering or not self._link.offer(encode(PONG, payload)):
            self._pong = payload
            if not self._answering:
                self._answering = True
                self._nursery.start_soon(self._answer_pings, name="pong")

    async def _answer_pings(self) -> None:
        try:
            while self._pong is not None and not self._closing:
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
        return frame.deflated if self.compression else frame.octets

    def ping(self) -> None:
        """See `Wire.ping`. A peer that the kernel knows to be gone is found here, even if nobody listens."""
        if not self._opened.is_set:
            return
        if self.silent_since is None and self._link.peer_is_gone():
            self._end(CloseReason.PEER_LOST)
        else:
            self._link.ping()

    # -- ending ------------------------------------------------------------------------------------------------

    async def close(self, code: int, text: str) -> None:
        """See `Wire.close`: our close frame, and then the peer's answer, whatever precedes it."""
        if not self._opened.is_set:
            return
        self._closing = self._goodbye_said = True
        self._news.unpark_all()
        self._start_listening()
        with contextlib.suppress(WireClosed):
            await self._link.say(goodbye(code, text, self._peers_close))
            while not self._peer_is_done:
                await self._news.park()

    def cut(self, code: int, text: str) -> None:
        """See `Wire.cut`."""
        if not self._goodbye_said and self._opened.is_set and code != NO_CODE:
            self._goodbye_said = True
            self._link.offer(goodbye(code, text, self._peers_close))
        self._closing = self._over = self._peer_is_done = True
        self._stop_listening()
        self._link.cut()
        self._opened.set()  # whoever waits to send finds the link closed
        self._news.unpark_all()
        self._let_go()

    def _let_go(self) -> None:
        """Nobody is told anything any more; and nothing of this refers to itself, so it goes without the collector."""
        self._ended = self._nursery = self._link.nursery = self._link.broken = self._verdict = None
        self._protocol.parser.close()
        self._protocol.parser_exc = None


def _size_of(frame: Parsed) -> int:
    """How many octets it had on its way, at least: lengths may be written longer than necessary."""
    size = len(frame.data)
    return size + (6 if size < 126 else 8 if size < 65_536 else 14)


def _reason_for(exception: BaseException, limits: Limits) -> tuple[CloseReason, str, BaseException | None]:
    """What the parser has stumbled over."""
    match exception:
        case EOFError():
            return CloseReason.PEER_LOST, "connection lost without a close frame", None
        case PayloadTooBig():
            return CloseReason.TOO_BIG, f"message exceeds {limits.max_message_size} bytes", None
        case UnicodeDecodeError():
            return CloseReason.INVALID_TEXT, "", None
        case ProtocolError():
            return CloseReason.PROTOCOL_ERROR, "", None
    return CloseReason.PROTOCOL_ERROR, "", exception
