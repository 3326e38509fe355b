"""The second engine: the protocol of `websockets`, which does no input or output, fed by whoever wants to receive.

No task reads for a connection: its handler does, in its own task, when it asks for a message. While it does something
else, an attendant looks after it, one for all connections: pings are answered, closes and departures seen.
"""

from __future__ import annotations

import base64
import contextlib
import hashlib
import logging
import os
from collections import deque
from collections.abc import Coroutine
from typing import Any

import attrs
import trio
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Frame as Parsed
from websockets.frames import Opcode
from websockets.protocol import SERVER, Protocol

from .._words.closing import CloseReason
from .._words.frames import PONG, Frame, encode
from .._words.limits import Limits
from .._words.wire import Ended, WireClosed
from .link import NO_CODE, Link, Stream, goodbye
from .meters import Meters

_RECEIVE_BYTES = 65_536
_GUID = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"  # RFC 6455 section 1.3
#: What a message counts for besides its bytes: empty ones fill the memory too.
_OVERHEAD = 100
#: What is said on a connection, a new token for instance, is not for the log, however much of it is wanted.
_SILENT = logging.getLogger("supervisor.websockets")
_SILENT.setLevel(logging.WARNING)


@attrs.define(eq=False)
class Attendant:
    """Listens for those whose handlers do something else; `run` it as long as there may be connections."""

    #: Seconds between two rounds; who has not listened for a whole one is attended to.
    pause: float = 0.05
    _away: set[SansIo] = attrs.field(factory=set)
    _attended: set[SansIo] = attrs.field(factory=set)
    _somebody: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def run(self) -> None:
        """Make rounds while there is somebody to look after."""
        while True:
            while not self._away and not self._attended:
                await self._somebody.park()
            await trio.sleep(self.pause)
            for wire in list(self._attended):
                wire.listen_now()
            self._attended |= self._away
            self._away.clear()

    def take(self, wire: SansIo) -> None:
        """Its handler stops listening."""
        self._away.add(wire)
        if self._somebody:
            self._somebody.unpark_all()

    def give_back(self, wire: SansIo) -> None:
        """Its handler listens again, or it is gone."""
        self._away.discard(wire)
        self._attended.discard(wire)

    def listens_for(self, wire: SansIo) -> bool:
        """Whether it is being looked after."""
        return wire in self._attended


@attrs.define(eq=False)
class SansIo:
    """A `Wire` over one accepted socket whose request head has been read, judged and found good."""

    stream: Stream
    peer: str
    #: ``Sec-WebSocket-Key``, checked.
    key: str
    subprotocol: str | None
    limits: Limits
    write_progress: float
    attendant: Attendant
    _link: Link = attrs.field(init=False)
    _meters: Meters = attrs.field(init=False)
    _protocol: Protocol = attrs.field(init=False)
    _ended: Ended | None = None
    _nursery: trio.Nursery | None = None
    #: Complete messages that nobody has asked for, with what each counts for; and the sum of that.
    _messages: deque[tuple[str | bytes, int]] = attrs.field(factory=deque)
    _unread: int = 0
    #: The opcode and the pieces of the message that is arriving.
    _opcode: Opcode = Opcode.CONT
    _pieces: list[Any] = attrs.field(factory=list)
    #: What the last ping that has not been answered said.
    _pong: bytes | None = None
    _heard_at: float = 0.0
    #: Somebody waits for the socket.
    _hearing: bool = False
    #: A task of its own listens: for streams that can only be waited for.
    _has_reader: bool = False
    _opened: trio.Event = attrs.field(factory=trio.Event)
    #: Whoever waits for messages while somebody else listens, or for room.
    _news: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)
    #: What ends it, once the handler has taken the messages that came before; or comes for none of them for too long.
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
        """See `Wire.silent_since`."""
        listening = self._hearing or self.attendant.listens_for(self)
        return self._heard_at if listening and not self._full else None

    @property
    def stalled_since(self) -> float | None:
        """See `Wire.stalled_since`."""
        return self._link.stalled_since

    @property
    def _full(self) -> bool:
        return self._unread >= self.limits.max_message_size

    # -- opening -----------------------------------------------------------------------------------------------

    async def open(self, nursery: trio.Nursery, ended: Ended) -> None:
        """See `Wire.open`: the 101 is written here, and nothing is read before it."""
        self._nursery, self._ended = nursery, ended
        self._link.nursery, self._link.broken = nursery, self._broken
        await self._link.send(self._answer())
        self._opened.set()
        self._heard_at = trio.current_time()
        self.attendant.take(self)
        if not isinstance(self.stream, trio.SocketStream):
            self._has_reader = True
            nursery.start_soon(self._read_on, name="reader")

    def _answer(self) -> bytes:
        accept = base64.b64encode(hashlib.sha1(self.key.encode() + _GUID, usedforsecurity=False).digest()).decode()
        protocol = f"Sec-WebSocket-Protocol: {self.subprotocol}\r\n" if self.subprotocol else ""
        return (
            "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            f"Sec-WebSocket-Accept: {accept}\r\n{protocol}\r\n"
        ).encode("ascii")

    def _broken(self, reason: CloseReason) -> None:
        if self._opened.is_set():
            self._end(reason)
        else:  # a peer that does not take the 101 is not there
            self._end(CloseReason.PEER_LOST, "connection lost during the upgrade")

    def _end(self, reason: CloseReason, text: str = "", cause: BaseException | None = None) -> None:
        self._over = True
        self._news.unpark_all()
        if self._ended is not None:
            self._ended(reason, text, cause)

    # -- receiving ---------------------------------------------------------------------------------------------

    async def receive(self) -> str | bytes:
        """See `Wire.receive`."""
        if self._messages:
            await trio.lowlevel.checkpoint()
        self.attendant.give_back(self)
        try:
            while not self._messages:
                if self._verdict is not None:
                    self._end(*self._verdict)
                if self._over:
                    raise WireClosed
                if self._hearing or self._has_reader:
                    await self._news.park()
                else:
                    await self._hear()
        finally:
            if not self._over:
                self.attendant.take(self)
        message, size = self._messages.popleft()
        self._unread -= size
        if self._has_reader:
            self._news.unpark_all()
        return message

    async def _hear(self) -> None:
        """Wait for the peer to say something, and take it in."""
        self._hearing, self._heard_at = True, trio.current_time()
        data: bytes | bytearray
        try:
            if isinstance(self.stream, trio.SocketStream):
                sock = self.stream.socket
                await trio.lowlevel.wait_readable(sock)  # to try before would be in vain, nearly always
                data = os.read(sock.fileno(), _RECEIVE_BYTES)
            else:
                data = await self.stream.receive_some(_RECEIVE_BYTES)
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        finally:
            self._hearing = False
            self._news.unpark_all()
        self._take_in(data)
        if self._pong is not None:
            with contextlib.suppress(WireClosed):  # whoever closes has said so
                await self._link.send(self._next_pong())

    def listen_now(self) -> None:
        """Take in what has come, without waiting, as far as there is room for it."""
        if self._verdict is not None and not self._over:
            self._end(*self._verdict)
        if self._over or self._hearing or self._full or not isinstance(self.stream, trio.SocketStream):
            return
        if self._pong is not None and not self._link.offer(encode(PONG, self._pong)):
            return  # it does not read what it has asked for
        self._pong = None
        try:
            data = os.read(self.stream.socket.fileno(), _RECEIVE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self._take_in(data)

    async def _read_on(self) -> None:
        """The reader of a stream that can only be waited for."""
        while not self._peer_is_done:
            while self._full and not self._closing:
                await self._news.park()
            if not self._peer_is_done:
                await self._hear()

    def _take_in(self, data: bytes | bytearray) -> None:
        if self._link.closed:  # cut, and nobody wants to hear any more
            self._peer_is_done = True
            return
        self._heard_at = now = trio.current_time()
        protocol = self._protocol
        if data:
            self._meters.heard(len(data), now)
            protocol.receive_data(data)
        else:
            protocol.receive_eof()
            self._peer_is_done = True
        protocol.data_to_send()  # pongs and goodbyes are ours
        for frame in protocol.events_received():
            assert isinstance(frame, Parsed)
            self._take(frame, now)
        if self._meters.violation is not None:
            self._conclude(*self._meters.violation)
        elif protocol.parser_exc is not None:
            self._conclude(*_reason_for(protocol.parser_exc, self.limits))
        elif not data:
            self._conclude(CloseReason.PEER_LOST, "connection lost without a close frame")

    def _conclude(self, reason: CloseReason, text: str = "", cause: BaseException | None = None) -> None:
        """Nothing comes after this; what came before is the handler's, if it comes for it."""
        if self._verdict is not None or self._over or self._closing:
            return
        self._verdict = reason, text, cause
        if not self._messages or self.attendant.listens_for(self):
            self._end(*self._verdict)

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
        if not frame.fin or self._meters.violation is not None:
            return
        octets = self._pieces[0] if len(self._pieces) == 1 else b"".join(self._pieces)
        self._pieces = []
        try:
            message = str(octets, "utf-8") if self._opcode is Opcode.TEXT else bytes(octets)
        except UnicodeDecodeError:
            self._conclude(CloseReason.INVALID_TEXT)
            return
        size = len(octets) + _OVERHEAD
        self._messages.append((message, size))
        self._unread += size

    def _take_close(self, payload: bytes) -> None:
        self._peers_close, self._peer_is_done = payload, True
        said = payload[2:].decode("utf-8", "replace")
        self._conclude(CloseReason.PEER_CLOSED, f"closed by the peer{f': {said}' if said else ''}")

    def _answer_ping(self, payload: bytes) -> None:
        """Now if the socket takes it, else before anything more is read; of several, the last one counts."""
        if self._closing or self._pong is not None or not self._link.offer(encode(PONG, payload)):
            self._pong = payload

    def _next_pong(self) -> bytes:
        payload, self._pong = self._pong or b"", None
        return encode(PONG, payload)

    # -- sending -----------------------------------------------------------------------------------------------

    def write(self, frame: Frame) -> Coroutine[Any, Any, None] | None:
        """See `Wire.write`; before the 101 is written, it waits."""
        return self._link.write(frame.octets) if self._opened.is_set() else self._write_when_open(frame)

    async def _write_when_open(self, frame: Frame) -> None:
        await self._opened.wait()
        await self._link.send(frame.octets)

    def offer(self, frame: Frame) -> bool:
        """See `Wire.offer`."""
        return self._opened.is_set() and self._link.offer(frame.octets)

    def ping(self) -> None:
        """See `Wire.ping`. A peer that the kernel knows to be gone is found here, even if nobody listens."""
        if not self._opened.is_set():
            return
        if self.silent_since is None and self._link.peer_is_gone():
            self._end(CloseReason.PEER_LOST)
        else:
            self._link.ping()

    # -- ending ------------------------------------------------------------------------------------------------

    async def close(self, code: int, text: str) -> None:
        """See `Wire.close`: our close frame, and then the peer's answer, whatever precedes it."""
        if not self._opened.is_set():
            return
        self._closing = self._goodbye_said = True
        self._pong = None
        self._news.unpark_all()
        with contextlib.suppress(WireClosed):
            await self._link.say(goodbye(code, text, self._peers_close))
            while not self._peer_is_done:
                if self._hearing or self._has_reader:
                    await self._news.park()
                else:
                    await self._hear()

    def cut(self, code: int, text: str) -> None:
        """See `Wire.cut`."""
        if not self._goodbye_said and self._opened.is_set() and code != NO_CODE:
            self._goodbye_said = True
            self._link.offer(goodbye(code, text, self._peers_close))
        self._closing = self._over = self._peer_is_done = True
        self.attendant.give_back(self)
        self._link.cut()
        self._opened.set()  # whoever waits to send finds the link closed
        self._news.unpark_all()
        self._let_go()

    def _let_go(self) -> None:
        """Nobody is told anything any more; and nothing of this refers to itself, so it goes without the collector."""
        self._ended = self._nursery = self._link.nursery = self._link.broken = None
        self._protocol.parser.close()
        self._protocol.parser_exc = None


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
