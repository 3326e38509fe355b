"""The servers that are compared: ``python -m tests.benchmarks.servers NAME`` says its port and serves until killed."""

from __future__ import annotations

import logging
import sys
from functools import partial

import trio
from trio_websocket import ConnectionClosed, WebSocketRequest, serve_websocket

from supervisor import Limits, Options, echo, serve

LIMITS = Limits(per_user=1000, total=10_000)


async def ours() -> None:
    """The embedded server, with every default but the limits."""
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, echo, Options(port=0), limits=LIMITS))
        say(server.port)


async def bare() -> None:
    """trio-websocket by itself, as its documentation has it."""

    async def handler(request: WebSocketRequest) -> None:
        ws = await request.accept()
        try:
            while True:
                await ws.send_message(await ws.get_message())
        except ConnectionClosed:
            pass

    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve_websocket, handler, "127.0.0.1", 0, ssl_context=None))
        say(server.port)


def say(port: int) -> None:
    sys.stdout.write(f"{port}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    logging.getLogger("trio-websocket").setLevel(logging.CRITICAL)
    trio.run({"ours": ours, "bare": bare}[sys.argv[1]])
