"""All that was seen in production, at once, on one server: each with its own outcome, and nothing left in the end."""

from __future__ import annotations

import contextlib
from collections import Counter
from functools import partial
from typing import Any

import attrs
import pytest
import trio

from supervisor import Limits, Policies, Server, Timeouts, hub
from supervisor._server.pressure import Pressure
from supervisor._words.events import Admitted
from tests.serving import Raw, connect, file_descriptors, frame, open_server, settled, tasks, upgrade_head
from tests.siege import Blackhole
from tests.test_runs import GOLDEN

LIMIT = 20
GOLDEN_USERS = [f"golden-{number}" for number in range(40)]
MISMATCHED = [f"mismatched-{number}" for number in range(10)]


@attrs.define(eq=False)
class Stage:
    """One server, and everybody who troubles it; all that is opened is closed together, or vanishes."""

    server: Server
    stack: contextlib.AsyncExitStack
    networks: trio.Nursery
    slowest: float = 0.0
    told: Counter[int] = attrs.field(factory=Counter)

    def here(self, user: str) -> int:
        return len(self.server.supervisor.connections(user=user))

    async def enter(self, path: str, port: int | None = None, **options: Any) -> Raw:
        raw = await self.stack.enter_async_context(connect(port or self.server, **options))
        await raw.upgrade(path)
        return raw

    async def tabs(self) -> None:
        """R26: eight tabs stay, and leave within half a second when the browser is gone."""
        async with contextlib.AsyncExitStack() as browser:
            for _ in range(8):
                tab = await browser.enter_async_context(connect(self.server))
                await tab.upgrade("/ws?user=tabs")
            assert self.here("tabs") == 8
        with trio.fail_after(0.5 + 0.2):  # and what this loop is late by, with all the others in it
            while self.here("tabs"):
                await trio.sleep(0.005)

    async def burst(self) -> None:
        """R27: twenty-five at once, of whom the newest twenty stay."""
        started = trio.current_time()
        for _ in range(25):
            await self.enter("/ws?user=burst")
        assert trio.current_time() - started < 2
        assert self.here("burst") == LIMIT

    async def phone(self) -> None:
        """R28: fifteen times another network, the old sockets half-open; each takes over from the one before."""
        for _ in range(15):
            network = Blackhole(self.server.port)
            await self.networks.start(network.serve)
            raw = await self.enter("/ws?user=phone&session=phone&takeover=1", network.port)
            assert (await raw.message())["session"] == "phone"
            network.open = False
            assert self.here("phone") == 1
            await trio.sleep(0.1)

    async def mismatched(self) -> None:
        """R29: a hundred whose session and socket have other names, cleaned by each of them."""
        supervisor, keys = self.server.supervisor, []
        for number in range(100):
            user, kind = MISMATCHED[number % 10], "session" if number % 2 else "websocket_factory"
            raw = await self.enter(f"/ws?user={user}&session={kind}_{number}")
            keys.append((user, f"{kind}_{number}", (await raw.message())["connection"]))
        async with trio.open_nursery() as hands:  # nobody answers the goodbyes, each of which takes half a second
            for user, session, _ in keys[::2]:
                hands.start_soon(partial(supervisor.disconnect_user, user, session=session))
            for _, _, connection in keys[1:50:2]:
                hands.start_soon(supervisor.disconnect, connection)
        left = {conn.id for conn in supervisor.connections()}
        assert left.isdisjoint(connection for *_, connection in (*keys[::2], *keys[1:50:2]))
        async with trio.open_nursery() as hands:
            for user in MISMATCHED[1::2]:
                hands.start_soon(supervisor.disconnect_user, user)
        assert sum(map(self.here, MISMATCHED)) == 0

    async def arrivals(self) -> None:
        """R30: one every ten milliseconds, and nobody leaves by themselves."""
        for number in range(200):
            await self.enter("/ws?user=arrivals")
            assert self.here("arrivals") == min(LIMIT, number + 1)
            await trio.sleep(0.01)

    async def zombies(self) -> None:
        """R31: twenty who do not read what is published to them, and one more for whom one of them leaves."""
        for _ in range(LIMIT):
            raw = await self.enter("/ws?user=noisy", receive_buffer=4096)
            await raw.say(op="join", room="noise")
        room = self.server.supervisor.room("noise")
        for _ in range(40):
            room.publish("x" * 50_000)
            await trio.sleep(0.02)
        await self.enter("/ws?user=noisy")
        assert self.here("noisy") <= LIMIT

    async def neighbour(self, user: str, count: int, over: trio.Event) -> None:
        """R31: the others have no errors, and no long waits."""
        guests = [await self.enter(f"/ws?user={user}") for _ in range(count)]
        for raw in guests:
            await raw.message()
        while not over.is_set():
            for raw in guests:
                started = trio.current_time()
                await raw.send(frame(1, b'{"op":"ping","ref":1}'))
                assert (await raw.message())["pong"]
                self.slowest = max(self.slowest, trio.current_time() - started)
            await trio.sleep(0.05)
        assert self.here(user) == count

    async def golden(self, user: str) -> None:
        """R32: five events, in order."""
        raw = await self.enter(f"/ws?user={user}")
        await raw.say(op="run", agent="demo", data=user)
        told: list[str] = []
        while "run_ended" not in told:
            message = await raw.message()
            if message["type"] == "run":
                told.append(message["event"])
        assert told == [*GOLDEN, "run_ended"]

    async def pressure(self) -> None:
        """R33: while memory is short, newcomers are told so; then they come in again."""
        used = 0.0
        self.server.pressure = Pressure((lambda: (used, 100.0),))
        for used in (100.0, 0.0):
            await trio.sleep(0.3 if used else 0.06)
            async with connect(self.server) as raw:
                await raw.send(upgrade_head("/ws?user=late"))
                status, _, body = await raw.response() if used else (101, None, b"")
                self.told[status] += 1
                assert b"1013" in body if used else True
        assert self.told == {503: 1, 101: 1}


@pytest.mark.req("R45")
async def test_everything_at_once(record_property: Any) -> None:
    limits = Limits(per_user=LIMIT, total=1000)
    timeouts = Timeouts(write_progress=60, ping_interval=60)
    policies = Policies(shed_at=1.0, shed_to=1.0)
    async with open_server(hub, limits=limits, timeouts=timeouts, policies=policies) as server:
        await trio.sleep(0.1)
        before, most = (tasks(), file_descriptors()), 0
        waited: list[float] = []
        server.supervisor.subscribe(lambda event: isinstance(event, Admitted) and waited.append(event.waited))
        over = trio.Event()

        async def count() -> None:
            nonlocal most
            while not over.is_set():
                figures = server.supervisor.statistics()
                most = max(most, figures.users)
                assert server.supervisor.audit() == ()
                assert figures.seats <= limits.total
                await trio.sleep(0.05)

        with trio.fail_after(60):
            async with trio.open_nursery() as networks, contextlib.AsyncExitStack() as stack:
                stage = Stage(server, stack, networks)
                async with trio.open_nursery() as neighbours:
                    neighbours.start_soon(count)
                    neighbours.start_soon(stage.neighbour, "busy", 18, over)
                    neighbours.start_soon(stage.neighbour, "calm", 5, over)
                    async with trio.open_nursery() as troubles:
                        for user in GOLDEN_USERS:
                            troubles.start_soon(stage.golden, user)
                        for trouble in (stage.tabs, stage.burst, stage.phone, stage.mismatched):
                            troubles.start_soon(trouble)
                        for trouble in (stage.arrivals, stage.zombies):
                            troubles.start_soon(trouble)
                    await stage.pressure()
                    over.set()
                assert server.supervisor.statistics().hard_limits == 0
                networks.cancel_scope.cancel()
            server.pressure = Pressure(())
            with trio.fail_after(2):
                await settled(server.supervisor)
                while (tasks(), file_descriptors()) != before:
                    await trio.sleep(0.005)
        assert server.supervisor.audit() == ()
        waited.sort()
        assert most >= 50
        assert waited[int(0.99 * len(waited))] <= 0.1
        record_property("users at once", most)
        record_property("slowest answer to a neighbour, ms", round(1000 * stage.slowest))
