"""Connections of somebody else's `serve_websocket`: what two changed lines protect from."""

from __future__ import annotations

import contextlib
from functools import partial

import pytest
import trio
import trio.lowlevel
from trio_websocket import open_websocket_url, serve_websocket

from supervisor import Identity, Limits, Overflow, Policies, Timeouts, open_supervisor
from tests.serving import connect, file_descriptors, settled, tasks, upgrade_head


@contextlib.asynccontextmanager
async def borrowing(handler, identify=None, **settings):
    """A plain trio-websocket server, supervised; its URL and its supervisor."""
    async with open_supervisor(**settings) as supervisor, trio.open_nursery() as nursery:
        supervised = supervisor.handler(handler, identify=identify or (lambda request: Identity(user=request.path[1:])))
        server = await nursery.start(partial(serve_websocket, supervised, "127.0.0.1", 0, ssl_context=None))
        port = server.listeners[0].port
        yield supervisor, port
        await settled(supervisor)
        assert supervisor.audit() == ()
        nursery.cancel_scope.cancel()


async def echo(conn) -> None:
    async for message in conn:
        await conn.send(message)


async def test_messages_go_both_ways_and_the_end_is_known() -> None:
    async with borrowing(echo) as (supervisor, port):
        async with open_websocket_url(f"ws://127.0.0.1:{port}/ann") as ws:
            for message in ("text", b"bytes"):
                await ws.send_message(message)
                assert await ws.get_message() == message
            assert [conn.user for conn in supervisor.connections()] == ["ann"]
        await settled(supervisor)
        assert supervisor.statistics().closed == {"peer_closed": 1}


@pytest.mark.req("R03")
async def test_the_oldest_tab_is_evicted() -> None:
    async with borrowing(echo, limits=Limits(per_user=1)) as (_, port), connect(port) as first, connect(port) as second:
        await first.upgrade("/ann")
        await second.upgrade("/ann")
        assert (await first.closed_with())[0] == 4505


@pytest.mark.req("R03")
async def test_a_refusal_is_http_and_then_the_end() -> None:
    policies = Policies(overflow_user=Overflow.REJECT)
    async with borrowing(echo, limits=Limits(per_user=1), policies=policies) as (_, port):
        async with connect(port) as first, connect(port) as second:
            await first.upgrade("/ann")
            await second.send(upgrade_head("/ann"))
            status, _, body = await second.response()
            assert status == 429
            assert b"exceeded maximum connections per user limit (1/1)" in body
            with trio.fail_after(1):
                await second.ended()


@pytest.mark.req("R11")
async def test_a_peer_that_never_reads_is_closed_in_bounded_time() -> None:
    async def flood(conn) -> None:
        while True:
            await conn.send(bytes(100_000))

    async with borrowing(flood) as (supervisor, port):
        before = tasks(), file_descriptors()
        async with connect(port, receive_buffer=4096) as raw:
            await raw.upgrade("/ann")
            await trio.sleep(0.3)
            (record,) = await supervisor.disconnect_user("ann")
            assert record.cleanup <= 0.6
        with trio.fail_after(1):
            while (tasks(), file_descriptors()) != before:
                await trio.sleep(0.01)


@pytest.mark.req("R51")
async def test_a_vanished_peer_is_found_by_the_heartbeat() -> None:
    async with borrowing(echo, timeouts=Timeouts(ping_interval=0.2, pong=0.2)) as (supervisor, port):
        async with connect(port) as raw:
            await raw.upgrade("/ann")
            with trio.fail_after(2):
                while not supervisor.statistics().closed:
                    await trio.sleep(0.01)
            assert supervisor.statistics().closed == {"unresponsive": 1}


async def test_identify_may_be_async_and_may_refuse() -> None:
    async def identify(request) -> Identity:
        await trio.lowlevel.checkpoint()
        return Identity(user="")

    async with borrowing(echo, identify) as (_, port), connect(port) as raw:
        await raw.send(upgrade_head("/ann"))
        assert (await raw.response())[0] == 400


@pytest.mark.req("R19")
async def test_a_failing_handler_does_not_end_the_server() -> None:
    async def fails(conn) -> None:
        raise ValueError("handler raises")

    async with borrowing(fails) as (supervisor, port):
        for _ in range(2):
            async with connect(port) as raw:
                await raw.upgrade("/ann")
                assert await raw.closed_with() == (1011, "handler failed")
        assert supervisor.statistics().failures == {"handler": 2}


async def test_a_cancelled_send_ends_the_connection() -> None:
    async def impatient(conn) -> None:
        with trio.move_on_after(0.2):
            await conn.send(bytes(10_000_000))
        await trio.sleep_forever()

    async with borrowing(impatient) as (supervisor, port), connect(port, receive_buffer=4096) as raw:
        await raw.upgrade("/ann")
        await settled(supervisor)
        while not supervisor.statistics().closed:
            await trio.sleep(0.01)
        assert supervisor.statistics().closed == {"send_cancelled": 1}
