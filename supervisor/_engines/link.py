"""One socket, and whole frames onto it from several hands."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Callable, Coroutine
from typing import Any

import attrs
import trio

from .._words.closing import CloseReason
from .._words.frames import CLOSE, PING, close_payload, encode
from .._words.wire import WireClosed


class Pipe(trio.abc.HalfCloseableStream):
    """A stream that is no socket: it must know how to close without waiting."""

    def close(self) -> None:
        """Close now; who is sending or receiving finds that out."""
        raise NotImplementedError


Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream] | Pipe
#: Streams that are no sockets say nothing of progress within one call, so they are given this much at a time.
_CHUNK = 16_384
RECEIVE_BYTES = 65_536
_TCP_ESTABLISHED = 1
#: tcpi_bytes_acked and tcpi_bytes_received of Linux.
_BYTES = "QQ"
_PING = encode(PING, b"")
#: The close code that says that there was no close frame; so none carries it.
NO_CODE = 1006
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


def socket_of(stream: Stream) -> trio.socket.SocketType | None:
    """The socket under a plain or a TLS stream, if it is one."""
    if isinstance(stream, trio.SSLStream):
        return stream.transport_stream.socket
    return stream.socket if isinstance(stream, trio.SocketStream) else None


def close_now(stream: Stream) -> None:
    """Close the transport, whoever is using it."""
    sock = socket_of(stream)
    if sock is not None:
        sock.close()
    elif isinstance(stream, Pipe):
        stream.close()


def goodbye(code: int, text: str, peers: bytes | None) -> bytes:
    """Our close frame; or the peer's own, of which this is the payload, given back if nothing was wrong with it."""
    answers = peers is not None and code == CloseReason.PEER_CLOSED.code
    return encode(CLOSE, peers[:2] if peers is not None and answers else close_payload(code, text))


@attrs.define(eq=False)
class Link:
    """The way out of one connection. Everybody writes whole frames, one after another, in the order they came.

    A frame of which a part has been written is finished, or nothing is ever written after it: then the link is
    `cut`, and `broken` is told why.
    """

    stream: Stream
    write_progress: float
    nursery: trio.Nursery | None = None
    broken: Callable[[CloseReason], object] | None = None
    #: Since when a write has been waiting without progress.
    stalled_since: float | None = None
    closed: bool = False
    _busy: bool = False
    #: Who waits for their turn; None while nobody ever had to.
    _queue: trio.lowlevel.ParkingLot | None = None
    #: Of a plain socket; whose system calls are made here, because Trio's cost more than they do.
    _fd: int | None = None

    def __attrs_post_init__(self) -> None:
        if isinstance(self.stream, trio.SocketStream):
            self._fd = self.stream.socket.fileno()

    async def receive(self, at_most: int = RECEIVE_BYTES) -> bytes | bytearray:
        """What the peer has sent; nothing at its end, and at ours."""
        try:
            if self._fd is None:
                return await self.stream.receive_some(at_most)
            data = None
            while data is None and not self.closed:
                await trio.lowlevel.wait_readable(self._fd)  # to try before would be in vain, nearly always
                data = self.receive_now(at_most)
            return data or b""
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            return b""

    def receive_now(self, at_most: int = RECEIVE_BYTES) -> bytes | None:
        """The same, without waiting, from a plain socket. None if nothing has come."""
        if self.closed:  # another socket may have its number by now
            return b""
        assert self._fd is not None
        try:
            return os.read(self._fd, at_most)
        except BlockingIOError:
            return None
        except OSError:
            return b""

    def offer(self, octets: bytes) -> bool:
        """Write `octets` now if nobody else is writing and the socket takes their beginning; its end follows by
        itself. False, and nothing is written, otherwise; always for TLS and pipes.
        """
        if self._busy or self.nursery is None:
            return False
        written = self._write_now(octets)
        if 0 < written < len(octets):
            self._busy = True
            self.nursery.start_soon(self._follow, octets[written:], name="rest of a frame")
        return written > 0

    def ping(self) -> None:
        """Ask for a sign of life: now, or after what is being written, unless that does not move."""
        if not self.offer(_PING) and self.stalled_since is None and self.nursery is not None:
            self.nursery.start_soon(self._send_ping, name="ping")

    async def _send_ping(self) -> None:
        with contextlib.suppress(WireClosed):
            await self.send(_PING)

    async def say(self, octets: bytes) -> None:
        """Like `send`; what can be written at once is, even if the caller's time is over."""
        if not self.offer(octets):
            await self.send(octets)

    async def send(self, octets: bytes) -> None:
        """Write `octets`, however long it takes, in turn. `WireClosed` if that is impossible."""
        await trio.lowlevel.checkpoint_if_cancelled()
        rest = self.write(octets)
        if rest is not None:
            await rest

    def write(self, octets: bytes) -> Coroutine[Any, Any, None] | None:
        """The same, now. None if the socket has taken them; else what waits until it has, to be awaited at once."""
        if self._busy:
            return self._write_in_turn(octets)
        written = self._write_now(octets)
        if written == len(octets):
            return None
        self._busy = True
        return self._finish(octets[written:], begun=written > 0)

    async def _write_in_turn(self, octets: bytes) -> None:
        if self._queue is None:
            self._queue = trio.lowlevel.ParkingLot()
        await self._queue.park()  # whoever wakes us hands the turn over
        written = self._write_now(octets)
        if written < len(octets):
            await self._finish(octets[written:], begun=written > 0)
        else:
            self._pass_on()

    def _write_now(self, octets: bytes) -> int:
        """Write what the socket takes at once; how much that was."""
        if self.closed or self._fd is None:
            return 0
        try:
            return os.write(self._fd, octets)
        except BlockingIOError:
            return 0
        except OSError:
            self._break(CloseReason.PEER_LOST)
            return 0

    async def _finish(self, rest: bytes, *, begun: bool) -> None:
        try:
            await self._wait_and_write(rest, begun=begun)
        finally:
            self._pass_on()

    async def _follow(self, rest: bytes) -> None:
        with contextlib.suppress(WireClosed):
            await self._finish(rest, begun=True)

    def _pass_on(self) -> None:
        if self._queue is None or not self._queue.unpark():
            self._busy = False

    async def _wait_and_write(self, octets: bytes, *, begun: bool) -> None:
        if self.closed:
            raise WireClosed
        left = memoryview(octets)
        try:
            while left:
                self.stalled_since = trio.current_time()
                with trio.move_on_after(self.write_progress) as patience:
                    if isinstance(self.stream, trio.SocketStream):
                        left = left[await self.stream.socket.send(left) :]
                        begun = True
                    else:
                        begun = True
                        await self.stream.send_all(left[:_CHUNK])
                        left = left[_CHUNK:]
                if patience.cancelled_caught:
                    self._break(CloseReason.TOO_SLOW)
                    raise WireClosed
        except (OSError, trio.BrokenResourceError, trio.ClosedResourceError):
            self._break(CloseReason.PEER_LOST)
            raise WireClosed from None
        finally:
            self.stalled_since = None
            if left and begun:  # cancelled in mid-frame; no byte may follow
                self._break(CloseReason.SEND_CANCELLED)

    def _break(self, reason: CloseReason) -> None:
        if not self.closed:
            self.cut()
            if self.broken is not None:
                self.broken(reason)

    def cut(self) -> None:
        """Close the socket now. What the kernel could not deliver yet is dropped if somebody was still writing."""
        if self.closed:
            return
        self.closed = True
        sock = socket_of(self.stream)
        if self._busy and sock is not None:
            try:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            except OSError:
                pass  # the peer was faster
        close_now(self.stream)

    def traffic(self) -> tuple[int, int] | None:
        """Bytes that have come from the peer, and bytes that it has taken; by the kernel's count, None elsewhere."""
        sock = socket_of(self.stream)
        if self.closed or sock is None or not hasattr(socket, "TCP_INFO"):
            return None
        try:
            taken, received = struct.unpack_from(_BYTES, sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256), 120)
        except (OSError, struct.error):
            return None
        return received, taken

    def peer_is_gone(self) -> bool:
        """Whether the kernel knows that the other side has closed or vanished, though nobody has read it yet."""
        sock = socket_of(self.stream)
        if self.closed or sock is None or not hasattr(socket, "TCP_INFO"):
            return self.closed
        try:
            state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)
        except OSError:
            return True
        return state[0] != _TCP_ESTABLISHED
