"""What goes by on the way in: sizes, fragments and the close frame, told from frame headers alone."""

from __future__ import annotations

import struct

import attrs

from .._words.frames import CLOSE
from .meters import Meters

_CONTROL = 0x08
_CONTINUATION = 0x0
#: A control frame has at most so many bytes of payload; what claims more is none, and the engine says so.
_MAX_CONTROL = 125


@attrs.define(eq=False)
class Scanner:
    """Follows the frames of one client and keeps the books that the engine behind it does not.

    Bytes, not characters, count towards ``max_message_size``, from a frame's header on; a message may come in
    ``max_fragments`` frames, empty ones included, or pieces of frames. It judges nothing else: RFC 6455 is the
    engine's business.
    """

    meters: Meters
    #: The sizes of messages that are complete and that nobody has asked for, and their sum.
    unread: list[int] = attrs.field(factory=list)
    unread_bytes: int = 0
    #: The unmasked payload of the peer's close frame; None before it is complete.
    close_payload: bytes | None = None
    _header: bytearray = attrs.field(factory=bytearray)
    _payload_left: int = 0
    _message_size: int = 0
    _fragments: int = 0
    #: In the middle of a message, between its first header and its last byte.
    _unfinished: bool = False
    _final: bool = False
    _close: bytearray | None = None

    def feed(self, data: bytes | bytearray, now: float) -> None:
        """Follow some more bytes, which have come `now`."""
        position, end = 0, len(data)
        self.meters.heard(end, now)
        if self._unfinished:  # the engine keeps what it is given piece by piece, so a piece costs like a frame
            self._count_fragment()
        while position < end and self.close_payload is None:
            if self._payload_left:
                taken = min(self._payload_left, end - position)
                if self._close is not None:
                    self._close += data[position : position + taken]
                self._payload_left -= taken
                position += taken
            else:
                position = self._read_header(data, position, now)
            if not self._payload_left and not self._header:
                self._finish_frame()

    def _read_header(self, data: bytes | bytearray, position: int, now: float) -> int:
        """Collect the header that starts, or goes on, at `position`; returns where to continue."""
        header = self._header
        while (missing := _header_size(header) - len(header)) > 0:
            header += data[position : position + missing]
            if position + missing > len(data):
                return len(data)
            position += missing
        self._begin_frame(header, now)
        self._header = bytearray()
        return position

    def _begin_frame(self, header: bytearray, now: float) -> None:
        opcode, size = header[0] & 0x0F, _payload_size(header)
        self._payload_left = size
        if opcode == CLOSE and size <= _MAX_CONTROL:
            self._close = header[-4:] if header[1] & 0x80 else bytearray(4)
        if opcode & _CONTROL:
            self.meters.control(now)
            return
        if opcode != _CONTINUATION:
            self._message_size = self._fragments = 0
            self.meters.message(now)
        self._unfinished, self._final = True, bool(header[0] & 0x80)
        self._message_size += size
        self.meters.size(self._message_size)
        self._count_fragment()

    def _count_fragment(self) -> None:
        self._fragments += 1
        self.meters.fragments(self._fragments)

    def read(self) -> None:
        """The oldest complete message has been asked for."""
        if self.unread:
            self.unread_bytes -= self.unread.pop(0)

    def _finish_frame(self) -> None:
        if self._unfinished and self._final:
            self._unfinished = False
            self.unread.append(self._message_size)
            self.unread_bytes += self._message_size
        if self._close is not None:
            mask, payload = self._close[:4], self._close[4:]
            self.close_payload = bytes(byte ^ mask[index % 4] for index, byte in enumerate(payload))


def _header_size(header: bytearray) -> int:
    """How long the whole header is, as far as its first bytes tell."""
    if len(header) < 2:
        return 2
    extended = {126: 2, 127: 8}.get(header[1] & 0x7F, 0)
    return 2 + extended + (4 if header[1] & 0x80 else 0)


def _payload_size(header: bytearray) -> int:
    size = header[1] & 0x7F
    if size == 126:
        return int(struct.unpack_from("!H", header, 2)[0])
    if size == 127:
        return int(struct.unpack_from("!Q", header, 2)[0])
    return size
