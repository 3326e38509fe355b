"""The servers that are compared: ``python -m tests.benchmarks.servers NAME`` says its port and serves until killed.

Each returns every message unchanged; one that begins with ``!`` goes to everybody. Each is as its own documentation has
it, without compression, which ours never negotiates. What they need is the extra ``benchmark``.
"""

from __future__ import annotations

import asyncio
import logging
import socket
import sys
from collections.abc import Callable
from functools import partial
from typing import Any

SHOUT = b"!"
MAX_SIZE = 1 << 20


def ours(engine: str) -> None:
    """The embedded server, with every default but the limits."""
    import trio

    from supervisor import Connection, Limits, Options, serve, tune_collector

    async def handler(conn: Connection) -> None:
        conn.join("all")
        room = conn.supervisor.room("all")
        async for message in conn:
            if message[:1] == SHOUT:
                room.publish(message)
            else:
                await conn.send(message)

    async def main() -> None:
        limits = Limits(per_user=10_000, total=100_000, lobby=10_000, control_rate=None)
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve, handler, Options(port=0, engine=engine), limits=limits))
            tune_collector()  # as ``ws-supervisor serve`` does
            say(server.port)

    trio.run(main)


def bare_trio_websocket() -> None:
    """trio-websocket by itself."""
    import trio
    from trio_websocket import ConnectionClosed, WebSocketConnection, WebSocketRequest, serve_websocket

    crowd: set[WebSocketConnection] = set()

    async def handler(request: WebSocketRequest) -> None:
        ws = await request.accept()
        crowd.add(ws)
        try:
            while True:
                message = await ws.get_message()
                for to in list(crowd) if message[:1] == SHOUT else (ws,):
                    await to.send_message(message)
        except ConnectionClosed:
            crowd.discard(ws)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            server = await nursery.start(partial(serve_websocket, handler, "127.0.0.1", 0, ssl_context=None))
            say(server.port)

    trio.run(main)


def websockets_asyncio() -> None:
    """websockets on asyncio."""
    from websockets.asyncio.server import ServerConnection, broadcast
    from websockets.asyncio.server import serve as serve_websockets

    async def handler(ws: ServerConnection) -> None:
        async for message in ws:
            if message[:1] == SHOUT:
                broadcast(ws.server.connections, message)
            else:
                await ws.send(message)

    async def main() -> None:
        async with serve_websockets(handler, "127.0.0.1", 0, compression=None, max_size=MAX_SIZE) as server:
            say(server.sockets[0].getsockname()[1])
            await asyncio.Future()

    asyncio.run(main())


def websockets_trio() -> None:
    """websockets on Trio."""
    import trio
    from websockets.trio.server import ServerConnection
    from websockets.trio.server import serve as serve_websockets

    crowd: set[ServerConnection] = set()

    async def handler(ws: ServerConnection) -> None:
        crowd.add(ws)
        try:
            async for message in ws:
                for to in list(crowd) if message[:1] == SHOUT else (ws,):
                    await to.send(message)
        finally:
            crowd.discard(ws)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            serving = partial(serve_websockets, handler, 0, host="127.0.0.1", compression=None, max_size=MAX_SIZE)
            server = await nursery.start(serving)
            say(server.listeners[0].socket.getsockname()[1])

    trio.run(main)


def aiohttp() -> None:
    """aiohttp's server."""
    from aiohttp import WSMsgType, web

    crowd: set[web.WebSocketResponse] = set()

    async def handler(request: web.Request) -> web.WebSocketResponse:
        ws = web.WebSocketResponse(compress=False, max_msg_size=MAX_SIZE)
        await ws.prepare(request)
        crowd.add(ws)
        async for message in ws:
            if message.type is WSMsgType.BINARY:
                for to in list(crowd) if message.data[:1] == SHOUT else (ws,):
                    await to.send_bytes(message.data)
        crowd.discard(ws)
        return ws

    async def main() -> None:
        app = web.Application()
        app.add_routes([web.get("/ws", handler)])
        runner = web.AppRunner(app, access_log=None)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        say(runner.addresses[0][1])
        await asyncio.Future()

    asyncio.run(main())


def picows() -> None:
    """picows, which is written in Cython."""
    from picows import WSFrame, WSListener, WSMsgType, WSTransport, ws_create_server

    crowd: set[WSTransport] = set()

    class Listener(WSListener):
        def on_ws_connected(self, transport: WSTransport) -> None:
            crowd.add(transport)

        def on_ws_disconnected(self, transport: WSTransport) -> None:
            crowd.discard(transport)

        def on_ws_frame(self, transport: WSTransport, frame: WSFrame) -> None:
            if frame.msg_type == WSMsgType.CLOSE:
                transport.send_close(frame.get_close_code())
                transport.disconnect()
            elif frame.msg_type == WSMsgType.BINARY:
                payload = frame.get_payload_as_bytes()
                for to in list(crowd) if payload[:1] == SHOUT else (transport,):
                    to.send(WSMsgType.BINARY, payload)

    async def main() -> None:
        server = await ws_create_server(lambda request: Listener(), "127.0.0.1", 0)
        say(server.sockets[0].getsockname()[1])
        await asyncio.Future()

    asyncio.run(main())


def starlette() -> None:
    """Starlette on uvicorn."""
    from starlette.applications import Starlette
    from starlette.routing import WebSocketRoute
    from starlette.websockets import WebSocket, WebSocketDisconnect

    crowd: set[WebSocket] = set()

    async def endpoint(ws: WebSocket) -> None:
        await ws.accept()
        crowd.add(ws)
        try:
            while True:
                message = await ws.receive_bytes()
                for to in list(crowd) if message[:1] == SHOUT else (ws,):
                    await to.send_bytes(message)
        except WebSocketDisconnect:
            crowd.discard(ws)

    app = Starlette(routes=[WebSocketRoute("/ws", endpoint)])
    serve_app(app, ws_per_message_deflate=False, ws_max_size=MAX_SIZE)


def socketio() -> None:
    """python-socketio on uvicorn; its protocol is its own, and the load speaks it."""
    import socketio as library

    server = library.AsyncServer(
        async_mode="asgi", max_http_buffer_size=MAX_SIZE, http_compression=False, ping_interval=3600
    )  # the load does not answer its pings

    @server.on("m")
    async def message(sid: str, data: str) -> None:
        if data.startswith("!"):
            await server.emit("m", data)
        else:
            await server.emit("m", data, to=sid)

    serve_app(library.ASGIApp(server), ws_per_message_deflate=False)


def channels() -> None:
    """Django Channels on uvicorn, with its layer in memory."""
    import django
    from django.conf import settings

    layers = {"default": {"BACKEND": "channels.layers.InMemoryChannelLayer", "CONFIG": {"capacity": 10_000}}}
    settings.configure(SECRET_KEY="of a benchmark", INSTALLED_APPS=["channels"], CHANNEL_LAYERS=layers)
    django.setup()
    from channels.generic.websocket import AsyncWebsocketConsumer

    class Consumer(AsyncWebsocketConsumer):  # type: ignore[misc]  # has no types
        async def connect(self) -> None:
            await self.channel_layer.group_add("all", self.channel_name)
            await self.accept()

        async def disconnect(self, code: int) -> None:
            await self.channel_layer.group_discard("all", self.channel_name)

        async def receive(self, text_data: str | None = None, bytes_data: bytes | None = None) -> None:
            if bytes_data is not None and bytes_data[:1] == SHOUT:
                await self.channel_layer.group_send("all", {"type": "shout", "data": bytes_data})
            else:
                await self.send(bytes_data=bytes_data)

        async def shout(self, event: dict[str, Any]) -> None:
            await self.send(bytes_data=event["data"])

    serve_app(Consumer.as_asgi(), ws_per_message_deflate=False, ws_max_size=MAX_SIZE)


def serve_app(app: Any, **settings: Any) -> None:
    """An ASGI application on uvicorn."""
    import uvicorn

    sock = socket.create_server(("127.0.0.1", 0), backlog=4096)
    config = uvicorn.Config(app, log_level="critical", lifespan="off", backlog=4096, **settings)
    say(sock.getsockname()[1])
    asyncio.run(uvicorn.Server(config).serve(sockets=[sock]))


SERVERS: dict[str, Callable[[], None]] = {
    "ours": partial(ours, "trio-websocket"),
    "ours (websockets)": partial(ours, "websockets"),
    "trio-websocket": bare_trio_websocket,
    "websockets": websockets_asyncio,
    "websockets.trio": websockets_trio,
    "aiohttp": aiohttp,
    "picows": picows,
    "starlette": starlette,
    "socketio": socketio,
    "channels": channels,
}


def say(port: int) -> None:
    """Where it listens."""
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    import resource

    logging.disable(logging.CRITICAL)
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    SERVERS[sys.argv[1]]()
