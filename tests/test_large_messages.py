"""Large messages: bounded memory, whoever sends them; and nobody else has to wait for them."""

from __future__ import annotations

import contextlib
import gc
import tracemalloc
from functools import partial

import pytest
import trio
from websockets.exceptions import ConnectionClosed as PeerClosed
from websockets.sync.client import connect as peer_connect

from supervisor import Connection, Limits, Timeouts, echo
from tests.serving import Raw, connect, frame, open_server, settled

MB = 1_000_000


async def held_after(raw: Raw, octets: bytes, seconds: float) -> int:
    """How many bytes more are held when this has been sent again and again, for so long."""
    gc.collect()
    tracemalloc.start(1)
    with trio.move_on_after(seconds):
        while True:
            await raw.send(octets)
    held = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    return held


@pytest.mark.req("R38")
@pytest.mark.parametrize("opcode", [1, 2])
@pytest.mark.parametrize("size", [MB, 1000])
async def test_what_nobody_reads_is_bounded_in_bytes(opcode: int, size: int) -> None:
    """One message that is being received, and complete ones of together no more than one more."""

    async def deaf(conn: Connection) -> None:
        await trio.sleep_forever()

    async with open_server(deaf, limits=Limits(max_message_size=MB)) as server, connect(server) as raw:
        await raw.upgrade()
        assert await held_after(raw, frame(opcode, b"x" * size), seconds=0.3) <= 2 * MB + 100_000
        await raw.reset()


@pytest.mark.req("R38")
async def test_empty_messages_count_too() -> None:
    """Beside what is unread: one read of them, which are eleven thousand at most."""

    async def deaf(conn: Connection) -> None:
        await trio.sleep_forever()

    async with open_server(deaf, limits=Limits(max_message_size=100_000)) as server, connect(server) as raw:
        await raw.upgrade()
        assert await held_after(raw, frame(1) * 1000, seconds=1) <= 1_200_000
        await raw.reset()


@pytest.mark.req("R38")
async def test_whoever_reads_late_misses_nothing() -> None:
    """Reading stops while too much is unread, and goes on: nothing is lost, and the order is kept."""
    may_read = trio.Event()

    async def late(conn: Connection) -> None:
        await may_read.wait()
        async for message in conn:
            await conn.send(str(len(message)))

    sizes = [600_000, 600_000, 10, 0, 999_999, 1, 500_000, MB, 0, 3] * 3
    async with open_server(late, limits=Limits(max_message_size=MB)) as server, connect(server) as raw:
        await raw.upgrade()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raw.send, b"".join(frame(2, bytes(size)) for size in sizes))
            await trio.sleep(0.3)
            may_read.set()
            assert [int((await raw.frame())[1]) for _ in sizes] == sizes


@pytest.mark.req("R38")
async def test_a_full_backlog_keeps_nobody_from_leaving() -> None:
    async def deaf(conn: Connection) -> None:
        await trio.sleep_forever()

    async with open_server(deaf, limits=Limits(max_message_size=MB)) as server:
        for leave in ("server", "peer"):
            async with connect(server) as raw:
                await raw.upgrade()
                with trio.move_on_after(0.3):
                    await raw.send(frame(2, bytes(MB)) * 8)
                if leave == "server":
                    (record,) = await server.supervisor.disconnect_user("ann")
                    assert record.cleanup <= 0.6
        await server.supervisor.disconnect_all()
        await settled(server.supervisor)


@pytest.mark.req("R38", "R51")
async def test_a_large_message_that_still_moves_is_not_unresponsive() -> None:
    """For three times as long as a silent peer has: every piece of it is a sign of life."""
    timeouts = Timeouts(ping_interval=0.2, pong=0.2)
    async with open_server(echo, timeouts=timeouts) as server, connect(server) as raw:
        await raw.upgrade()
        message = frame(2, bytes(100_000))
        for start in range(0, len(message), 10_000):
            await raw.send(message[start : start + 10_000])
            await trio.sleep(0.12)
        while (heard := await raw.frame())[0] == 9:
            await raw.send(frame(10))
        assert heard == (2, bytes(100_000))


@pytest.mark.req("R38")
async def test_half_a_message_and_then_silence_is_idle() -> None:
    async with open_server(echo, limits=Limits(idle_ttl=0.4)) as server, connect(server) as raw:
        await raw.upgrade()
        message = frame(2, bytes(1000))
        for start in range(50):
            with contextlib.suppress(trio.BrokenResourceError):
                await raw.send(message[start : start + 1])
            await trio.sleep(0.02)
        assert await raw.closed_with() == (4001, "idle")


@pytest.mark.req("R38")
async def test_the_bound_is_the_bound_for_somebody_elses_client_too() -> None:
    def talk(url: str) -> int:
        with peer_connect(url, max_size=None) as peer:
            peer.send(bytes(2 * MB))
            assert len(peer.recv(20)) == 2 * MB
            peer.send(bytes(2 * MB + 1))
            with pytest.raises(PeerClosed) as closed:
                peer.recv(20)
            return closed.value.rcvd.code

    async with open_server(echo, limits=Limits(max_message_size=2 * MB)) as server:
        url = f"ws://127.0.0.1:{server.port}/ws?user=ann"
        assert await trio.to_thread.run_sync(partial(talk, url)) == 1009
