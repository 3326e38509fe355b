"""The same chat, as it is often written; every line that leaks is one that was seen somewhere. Do not copy.

ws-supervisor verify --app docs.examples.leaky_chat:handler
"""

from __future__ import annotations

from pathlib import Path

import trio

from supervisor import Connection

SOCKETS: dict[str, Connection] = {}
LOGS = []


def key_for_creation(conn: Connection) -> str:
    return f"{conn.user}:thread_session_{conn.id}"


def key_for_cleanup(conn: Connection) -> str:
    return f"{conn.user}:thread_websocket_factory_{conn.id}"


async def keep_alive(conn: Connection) -> None:
    while True:
        await trio.sleep(1)
        conn.send_nowait("are you there?")


async def handler(conn: Connection) -> None:
    SOCKETS[key_for_creation(conn)] = conn
    LOGS.append(Path("/dev/null").open("a"))  # noqa: ASYNC230, SIM115 - it is part of what leaks
    trio.lowlevel.spawn_system_task(keep_alive, conn)
    try:
        async for message in conn:
            for other in list(SOCKETS.values()):
                other.send_nowait(message)
    finally:
        SOCKETS.pop(key_for_cleanup(conn), None)
