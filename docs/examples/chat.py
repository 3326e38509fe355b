"""A chat that keeps nothing by itself: rooms, and whatever ends, belong to the connection.

ws-supervisor verify --app docs.examples.chat:handler
"""

from __future__ import annotations

from supervisor import Connection


async def handler(conn: Connection) -> None:
    conn.join("lobby", metadata={"user": conn.user})
    async for message in conn:
        conn.supervisor.room("lobby").publish(message, exclude=conn)
