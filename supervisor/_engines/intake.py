"""What one peer says: octets in; messages, pings and the end out. It waits for nothing."""

from __future__ import annotations

import logging
from collections import deque
from typing import Any

import attrs
from websockets.exceptions import PayloadTooBig, ProtocolError
from websockets.frames import Frame, Opcode
from websockets.protocol import SERVER, Protocol

try:
    from websockets.speedups import apply_mask
except ImportError:  # no binary for this system
    from websockets.utils import apply_mask

from .._words.closing import CloseReason
from .._words.limits import Limits
from .deflate import agree
from .meters import Meters

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

Verdict = tuple[CloseReason, str, BaseException | None]


@attrs.define(eq=False)
class Intake:
    """The protocol of `websockets`, behind a shortcut for what nearly all messages are."""

    limits: Limits
    #: Complete messages that nobody has asked for, with what each counts for; and the sum of that.
    messages: deque[tuple[str | bytes, int]] = _NONE
    unread: int = 0
    #: What the pings said that are to be answered.
    pings: list[bytes] = attrs.field(factory=list)
    #: Why nothing comes any more.
    verdict: Verdict | None = None
    #: The payload of the peer's close frame.
    close_payload: bytes | None = None
    #: The peer has said all that it will ever say.
    done: bool = False
    #: We have begun to close: nothing is wanted any more but the peer's end.
    closing: bool = False
    #: Messages may come compressed, and may go so.
    compressed: bool = False
    _meters: Meters = attrs.field(init=False)
    _protocol: Protocol = attrs.field(init=False)
    #: How many octets of an unfinished frame the protocol has been fed.
    _behind: int = 0
    #: The opcode and the pieces of the message that is arriving.
    _opcode: Opcode = Opcode.CONT
    _pieces: list[Any] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self._meters = Meters(self.limits)
        self._protocol = Protocol(SERVER, max_size=self.limits.max_message_size, logger=_SILENT)

    def agree(self, offers: str) -> str | None:
        """Compress, if the client offers it in a way that will do; returns what is to be answered."""
        agreed = agree(offers)
        if agreed is None:
            return None
        answer, extension = agreed
        self._protocol.extensions = [extension]
        self.compressed = True
        return answer

    @property
    def full(self) -> bool:
        """Whether as much is unread as one message may hold."""
        return self.unread >= self.limits.max_message_size and not self.closing

    def next_message(self) -> str | bytes:
        """The oldest that nobody has asked for."""
        message, size = self.messages.popleft()
        if not self.messages:
            self.messages = _NONE
        self.unread -= size
        return message

    def take_in(self, data: bytes | bytearray, now: float) -> None:
        """Parse what has come, nothing at the peer's end; whatever is wrong with it is the verdict."""
        self._meters.heard(len(data), now)
        try:
            plain = not (self._behind or self._pieces or self.closing or self.compressed)
            rest = data[self._take_plain(data, now) :] if plain else data
            if rest or not data:
                self._parse(rest, now)
        except Exception as exception:  # noqa: BLE001 - reported as a Failed event, and it ends this connection
            self.done = True
            self._conclude(CloseReason.PROTOCOL_ERROR, "", exception)
        if self._meters.violation is not None:
            self._conclude(*self._meters.violation)

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
            self.done = True
            protocol.receive_eof()
        protocol.data_to_send()  # pongs and goodbyes are ours
        for frame in protocol.events_received():
            assert isinstance(frame, Frame)
            self._behind -= _size_of(frame)
            self._take(frame, now)
        if protocol.parser_exc is not None:
            self._conclude(*_reason_for(protocol.parser_exc, self.limits))
        elif not data:
            self._conclude(CloseReason.PEER_LOST, "connection lost without a close frame")

    def _take(self, frame: Frame, now: float) -> None:
        match frame.opcode:
            case Opcode.CLOSE:
                self._take_close(bytes(frame.data))
            case Opcode.PING | Opcode.PONG:
                self._meters.control(now)
                if frame.opcode is Opcode.PING and not self.closing and self._meters.violation is None:
                    self.pings.append(bytes(frame.data))
            case _ if self.verdict is None and not self.closing:
                self._take_data(frame, now)

    def _take_close(self, payload: bytes) -> None:
        self.close_payload, self.done = payload, True
        said = payload[2:].decode("utf-8", "replace")
        self._conclude(CloseReason.PEER_CLOSED, f"closed by the peer{f': {said}' if said else ''}")

    def _take_data(self, frame: Frame, now: float) -> None:
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
        if self.verdict is not None or self._meters.violation is not None:
            return
        try:
            message = str(octets, "utf-8") if opcode == Opcode.TEXT else octets
        except UnicodeDecodeError:
            self._conclude(CloseReason.INVALID_TEXT)
            return
        size = len(octets) + _OVERHEAD
        if self.messages is _NONE:
            self.messages = deque()
        self.messages.append((message, size))
        self.unread += size

    def _conclude(self, reason: CloseReason, text: str = "", cause: BaseException | None = None) -> None:
        if self.verdict is None and not self.closing:
            self.verdict = reason, text, cause

    def let_go(self) -> None:
        """Nothing is wanted any more. Nothing of this refers to itself afterwards, so it goes without the collector."""
        self.done = self.closing = True
        self.verdict = None
        self._protocol.parser.close()
        self._protocol.parser_exc = None


def _size_of(frame: Frame) -> int:
    """How many octets it had on its way, at least: lengths may be written longer than necessary."""
    size = len(frame.data)
    return size + (6 if size < 126 else 8 if size < 65_536 else 14)


def _reason_for(exception: BaseException, limits: Limits) -> Verdict:
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
