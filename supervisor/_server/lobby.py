"""The lobby: where sockets are until it is known what they want. Bounded in number, time and bytes."""

from __future__ import annotations

import math
import ssl
from collections.abc import Awaitable, Callable
from functools import partial

import attrs
import trio

from .._engines.link import Stream, close_now
from .._words.errors import BadRequest, Refused
from .exchange import Exchange, Hangup, RequestTimeout
from .head import Request

#: Takes over an exchange whose head has been read, and calls what it is given once it knows who is there. True if the
#: stream is somebody else's now.
Dispatch = Callable[[Exchange, Request, Callable[[], None]], Awaitable[bool]]
#: Is told of who was refused before its head was complete.
TurnedAway = Callable[[str, Refused], None]
#: Is told what an exchange has raised that is no peer's fault.
Failed = Callable[[Exchange, Exception], Awaitable[None]]


@attrs.define(eq=False)
class Lobby:
    """Everybody who has connected and not yet said what they want. They hold no seats."""

    #: How many there may be, now.
    capacity: Callable[[], int]
    handshake: float
    tls: ssl.SSLContext | None
    dispatch: Dispatch
    turned_away: TurnedAway
    failed: Failed
    #: Those who are waited for, oldest first.
    waiting: dict[trio.CancelScope, None] = attrs.field(factory=dict)
    #: Those who want to know of a socket that has been closed here.
    _watching: trio.lowlevel.ParkingLot = attrs.field(factory=trio.lowlevel.ParkingLot)

    async def make_room(self) -> None:
        """Send the one who has been here longest away, and wait until somebody has left."""
        self._send_oldest_away()
        await self._watching.park()

    def _send_oldest_away(self) -> None:
        if self.waiting:
            oldest = next(iter(self.waiting))
            del self.waiting[oldest]
            oldest.cancel()

    async def greet(self, stream: Stream, peer: str) -> None:
        """One socket's whole time here. Closes it, unless it has become somebody else's."""
        exchange = Exchange(stream, peer, self.handshake, secure=self.tls is not None)
        kept = False
        try:
            kept = await self._receive(exchange)
        except (Hangup, trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # gone, or never spoke the language of this port
        except Exception as exception:  # noqa: BLE001 - one request's failure, reported with its traceback
            await self.failed(exchange, exception)
        finally:
            if not kept:
                close_now(exchange.stream)
                self._watching.unpark_all()

    async def _receive(self, exchange: Exchange) -> bool:
        if len(self.waiting) >= self.capacity():
            self._send_oldest_away()
        with trio.move_on_after(self.handshake) as patience:
            self.waiting[patience] = None
            try:
                request = await self._listen(exchange)
                patience.deadline = math.inf  # what follows has bounds of its own
                return await self.dispatch(exchange, request, partial(self.waiting.pop, patience, None))
            except BadRequest as refusal:
                await self._turn_away(exchange, refusal)
            finally:
                self.waiting.pop(patience, None)
        if patience.cancelled_caught and exchange.spoken and trio.current_time() >= patience.deadline:
            with trio.move_on_after(0.1):
                await self._turn_away(exchange, RequestTimeout(f"no complete request within {self.handshake:g} s"))
        return False

    async def _turn_away(self, exchange: Exchange, refusal: BadRequest) -> None:
        self.turned_away(exchange.peer, refusal)
        await exchange.refuse(refusal)

    async def _listen(self, exchange: Exchange) -> Request:
        if self.tls is not None:
            assert isinstance(exchange.stream, trio.SocketStream)
            exchange.stream = trio.SSLStream(exchange.stream, self.tls, server_side=True, https_compatible=True)
            await exchange.stream.do_handshake()
        return await exchange.read_head()
