"""Handlers of every honest shape: whatever they do, `verify` must not convict them."""

from __future__ import annotations

import hashlib
import json

import trio

from supervisor import Connection


async def returns_after_one(conn: Connection) -> None:
    await conn.receive()


async def pushes_and_never_reads(conn: Connection) -> None:
    while True:
        await conn.send("tick")
        await trio.sleep(1)


async def wants_a_login(conn: Connection) -> None:
    with trio.fail_after(5):
        await conn.receive()
    async for _ in conn:
        pass


async def has_an_idle_time_of_its_own(conn: Connection) -> None:
    with trio.move_on_after(60):
        while True:
            await conn.receive()


async def closes_on_bad_input(conn: Connection) -> None:
    async for message in conn:
        try:
            await conn.send(json.dumps({"echo": json.loads(message)}))
        except ValueError:
            conn.close(4400, "bad input")


async def asks_a_thread(conn: Connection) -> None:
    await conn.send(await trio.to_thread.run_sync(lambda: "from a database"))
    async for message in conn:
        data = message.encode() if isinstance(message, str) else message
        await conn.send(await trio.to_thread.run_sync(lambda data=data: hashlib.sha256(data).hexdigest()))


async def says_goodbye_to_a_database(conn: Connection) -> None:
    try:
        async for message in conn:
            await conn.send(message)
    finally:
        with trio.move_on_after(0.2, shield=True):
            await trio.sleep(0.1)


async def has_a_hook(conn: Connection) -> None:
    conn.on_close(trio.sleep, 0.01)
    async for _ in conn:
        pass


SHAPES = (
    returns_after_one,
    pushes_and_never_reads,
    wants_a_login,
    has_an_idle_time_of_its_own,
    closes_on_bad_input,
    asks_a_thread,
    says_goodbye_to_a_database,
    has_a_hook,
)
