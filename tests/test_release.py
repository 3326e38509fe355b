"""How long a connection takes to leave, whatever its peer does: ten thousand of them, and the slowest of each kind."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
import trio

from supervisor import Connection, Identity, Limits, Options, Request, Server, Unauthorized, events
from supervisor._decisions.dues import OVERRUN
from tests.serving import Raw, connect, frame, open_server, settled, upgrade_head
from tests.siege import Delay, lives

EACH = 2_000
AT_ONCE = 40


async def handler(conn: Connection) -> None:
    """Users are named after what they have come for."""
    if conn.user == "never reading":
        while True:
            await conn.send(bytes(100_000))
    if conn.user == "handler ends":
        await conn.receive()
        return
    await trio.sleep_forever()


def authenticate(request: Request) -> Identity:
    user = request.query("user") or ""
    if user == "refused":
        raise Unauthorized("on purpose")
    return Identity(user=user)


async def ends(raw: Raw) -> None:
    await raw.upgrade("/ws?user=handler%20ends")
    await raw.send(frame(1, b"now"))
    await raw.closed_with()


async def refused(raw: Raw) -> float:
    await raw.send(upgrade_head("/ws?user=refused"))
    assert (await raw.response())[0] == 401
    started = trio.current_time()
    await raw.ended()
    return trio.current_time() - started


async def never_reading(raw: Raw) -> None:
    await raw.upgrade("/ws?user=never%20reading")
    await trio.sleep(1.5)


@pytest.mark.slow
@pytest.mark.req("R11", "A14", "A20", "A32")
@pytest.mark.parametrize("visit", [ends, refused, never_reading, "oversize", "mute"])
async def test_nobody_takes_longer_than_the_bound(
    visit: Callable[[Raw], Awaitable[float | None]] | str, record_property
) -> None:
    """Those who do not answer are in a process of their own: they end, and come back, forty at a time."""
    slowest = 0.0
    delay = Delay(pause=0.001)

    def listen(event: events.Event) -> None:
        nonlocal slowest
        if isinstance(event, events.Closed):
            slowest = max(slowest, event.cleanup)

    async def visits(server: Server, count: int) -> None:
        nonlocal slowest
        for _ in range(count):
            async with connect(server, receive_buffer=4096 if visit is never_reading else None) as raw:
                took = await visit(raw) or 0.0  # meanwhile others may have taken longer
                slowest = max(slowest, took)

    async def disconnect(server: Server) -> None:
        """Mute and deaf peers are told to leave a moment after they have come."""
        while True:
            await trio.sleep(0.05)
            for conn in server.supervisor.connections():
                if conn.user in ("mute", "never reading") and trio.current_time() - conn.opened_at > 0.1:
                    conn.close()

    limits = Limits(per_user=EACH, total=EACH, max_message_size=1000)
    async with open_server(handler, Options(authenticate=authenticate), limits=limits) as server:
        server.supervisor.subscribe(listen)
        async with trio.open_nursery() as background:
            background.start_soon(disconnect, server)
            background.start_soon(delay.measure)
            if isinstance(visit, str):
                await lives(server, EACH, [visit], visit, AT_ONCE)
            else:
                at_once = AT_ONCE * 2 if visit is never_reading else AT_ONCE
                async with trio.open_nursery() as nursery:
                    for _ in range(at_once):
                        nursery.start_soon(visits, server, EACH // at_once + 1)
            await settled(server.supervisor)
            background.cancel_scope.cancel()
        record_property(f"slowest of {EACH}", slowest)
        record_property("this machine was late by", delay.longest)
        assert slowest <= 0.5 + 2 * delay.longest  # it may begin in one such moment, and end in another
        # A wire has OVERRUN to let go; a machine that is late by half of that may take all of it.
        assert server.supervisor.statistics().set_aside == 0 or delay.longest > OVERRUN / 2
