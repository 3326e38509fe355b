"""The lobby: where sockets are until it is known what they want. Bounded in number, time and bytes."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable

import attrs
import trio

from .._engines.link import Stream, socket_of
from .._words.errors import BadRequest
from .exchange import Exchange, Hangup
from .head import Request

#: Takes over an exchange whose head has been read. True if the stream is somebody else's now.
Dispatch = Callable[[Exchange, Request], Awaitable[bool]]


class HandshakeTimeout(BadRequest):
    """The head did not arrive in time."""

    status = 408


@attrs.define(eq=False)
class Lobby:
    """Everybody who has connected and not yet said what they want. They hold no seats."""

    capacity: int
    handshake: float
    tls: ssl.SSLContext | None
    dispatch: Dispatch
    #: Those who are waited for, oldest first.
    waiting: dict[trio.CancelScope, None] = attrs.field(factory=dict)

    def make_room(self) -> bool:
        """Send the one who has been here longest away; False if nobody is here."""
        if not self.waiting:
            return False
        oldest = next(iter(self.waiting))
        del self.waiting[oldest]
        oldest.cancel()
        return True

    async def greet(self, sock: trio.socket.SocketType, peer: str) -> None:
        """One socket's whole time in the lobby. Closes it, unless it has become somebody else's."""
        stream: Stream = trio.SocketStream(sock)
        kept = False
        try:
            kept = await self._receive(stream, peer)
        except (Hangup, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # gone, or never spoke the language of this port
        finally:
            if not kept:
                socket_of(stream).close()

    async def _receive(self, stream: Stream, peer: str) -> bool:
        if len(self.waiting) >= self.capacity:
            self.make_room()
        exchange = Exchange(stream, peer, secure=self.tls is not None)
        request = None
        with trio.move_on_after(self.handshake) as patience:
            self.waiting[patience] = None
            try:
                request = await self._listen(exchange)
            except BadRequest as refusal:
                await exchange.refuse(refusal)
            finally:
                self.waiting.pop(patience, None)
        if request is not None:
            return await self.dispatch(exchange, request)
        if patience.cancelled_caught and exchange.spoken and trio.current_time() >= patience.deadline:
            with trio.move_on_after(0.1):
                await exchange.refuse(HandshakeTimeout(f"no complete request within {self.handshake:g} s"))
        return False

    async def _listen(self, exchange: Exchange) -> Request:
        if self.tls is not None:
            assert isinstance(exchange.stream, trio.SocketStream)
            exchange.stream = trio.SSLStream(exchange.stream, self.tls, server_side=True, https_compatible=True)
            await exchange.stream.do_handshake()
        return await exchange.read_head()
