"""A proxy that cuts: between real clients and a real server, in every way in which a network can fail them."""

from __future__ import annotations

import enum
import socket
import struct
from collections import Counter
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from itertools import repeat

import attrs
import trio


class Manner(enum.Enum):
    """How a connection ends."""

    RESET = "both sides are told, with a reset"
    CLOSE = "both sides are told, politely"
    HALF_OPEN = "the server is not told: its side stays open"
    SILENT = "nobody is told: nothing comes through any more"


@attrs.frozen
class Cut:
    """What one connection has to expect: so many bytes to the server, or from it, then its end."""

    up: int
    down: int
    manner: Manner


@attrs.define(eq=False)
class Proxy:
    """Deals its cuts to one connection after another; when there are no more, nothing is cut."""

    #: The ports of one connection after another.
    targets: Iterator[int]
    cuts: Iterator[Cut]
    port: int = 0
    connections: int = 0
    done: Counter[Manner] = attrs.field(factory=Counter)
    #: No cut is left.
    exhausted: trio.Event = attrs.field(factory=trio.Event)

    async def serve(self, client: trio.SocketStream) -> None:
        self.connections += 1
        cut = next(self.cuts, None)
        if cut is None:
            self.exhausted.set()
        try:
            server = await trio.open_tcp_stream("127.0.0.1", next(self.targets))
        except OSError:
            await trio.aclose_forcefully(client)
            return
        async with client, server:
            async with trio.open_nursery() as nursery:
                limits = (None, None) if cut is None else (cut.up, cut.down)
                nursery.start_soon(self._pump, client, server, limits[0], nursery)
                nursery.start_soon(self._pump, server, client, limits[1], nursery)
            if cut is not None:
                self.done[cut.manner] += 1
                await self._end(client, server, cut.manner)

    async def _pump(
        self, source: trio.SocketStream, sink: trio.SocketStream, budget: int | None, nursery: trio.Nursery
    ) -> None:
        try:
            async for data in source:
                if budget is not None and len(data) >= budget:
                    await sink.send_all(data[:budget])
                    break
                budget = None if budget is None else budget - len(data)
                await sink.send_all(data)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass
        nursery.cancel_scope.cancel()

    async def _end(self, client: trio.SocketStream, server: trio.SocketStream, manner: Manner) -> None:
        if manner is Manner.RESET:
            for stream in (client, server):
                stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        elif manner is Manner.HALF_OPEN:
            await trio.aclose_forcefully(client)
            await _until_closed(server)
        elif manner is Manner.SILENT:
            await _until_closed(client)


async def _until_closed(stream: trio.SocketStream) -> None:
    try:
        async for _ in stream:
            pass
    except (trio.BrokenResourceError, trio.ClosedResourceError):
        pass


@asynccontextmanager
async def open_proxy(target: int | Iterator[int], cuts: Iterator[Cut]) -> AsyncIterator[Proxy]:
    """A proxy to a port of this machine, or for each connection to another."""
    proxy = Proxy(repeat(target) if isinstance(target, int) else target, cuts)
    async with trio.open_nursery() as nursery:
        listeners = await nursery.start(trio.serve_tcp, proxy.serve, 0)
        proxy.port = listeners[0].socket.getsockname()[1]
        yield proxy
        nursery.cancel_scope.cancel()
