"""One message on its way out: encoded once, written to as many connections as want it."""

from __future__ import annotations

import struct
import zlib

TEXT, BINARY, CLOSE, PING, PONG = 0x1, 0x2, 0x8, 0x9, 0xA


def encode(opcode: int, payload: bytes) -> bytes:
    """A whole, unmasked WebSocket frame, as a server sends it (RFC 6455, section 5.2)."""
    size = len(payload)
    if size < 126:
        return bytes((0x80 | opcode, size)) + payload
    if size < 65536:
        return struct.pack("!BBH", 0x80 | opcode, 126, size) + payload
    return struct.pack("!BBQ", 0x80 | opcode, 127, size) + payload


#: What a receiver must be able to look back on, as a power of two.
WINDOW_BITS = 15
_COMPRESSED = 0x40
#: Shorter messages do not become shorter.
_WORTH_IT = 128
_FLUSHED = b"\0\0\xff\xff"


def deflate(payload: bytes) -> bytes:
    """A message's payload as RFC 7692 compresses it, without a context."""
    deflater = zlib.compressobj(wbits=-WINDOW_BITS, memLevel=5)
    return (deflater.compress(payload) + deflater.flush(zlib.Z_SYNC_FLUSH)).removesuffix(_FLUSHED)


def close_payload(code: int, text: str) -> bytes:
    """What a close frame carries: the code, and the text cut to what fits, at a character's border."""
    return struct.pack("!H", code) + text.encode("utf-8", "replace")[:123].decode("utf-8", "ignore").encode()


class Frame:
    """A message, and the octets that carry it. The same frame may be written to any number of connections."""

    __slots__ = ("_deflated", "message", "octets")

    def __init__(self, message: str | bytes | bytearray | memoryview) -> None:
        if isinstance(message, str):
            self.message: str | bytes = message
            self.octets = encode(TEXT, message.encode())
        elif isinstance(message, bytes | bytearray | memoryview):
            self.message = bytes(message)
            self.octets = encode(BINARY, self.message)
        else:
            raise TypeError(f"a message is str or bytes, not {type(message).__name__}")

        self._deflated: bytes | None = None

    @property
    def deflated(self) -> bytes:
        """The octets for those who have agreed on compression: shorter, if that is possible. Made once."""
        if self._deflated is None:
            self._deflated = self._deflate()
        return self._deflated

    def _deflate(self) -> bytes:
        payload = self.message.encode() if isinstance(self.message, str) else self.message
        if len(payload) < _WORTH_IT:
            return self.octets
        shorter = encode(_COMPRESSED | (self.octets[0] & 0x0F), deflate(payload))
        return min(shorter, self.octets, key=len)

    def __len__(self) -> int:
        return len(self.octets)


def numbered(text: str, number: int) -> Frame:
    """A JSON object, and its number as ``seq``."""
    return Frame(f'{text[:-1]},"seq":{number}}}')
