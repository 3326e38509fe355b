"""The live view in a terminal: what it knows, and what it shows of it."""

from __future__ import annotations

import io

import pytest
import trio
from rich.console import Console

from supervisor import Identity, Limits
from supervisor.cli.remote import Target
from supervisor.cli.top import House, bar, render
from supervisor.testing import FaultWire
from tests.helpers import sleeper
from tests.serving import open_server


def screen(house: House) -> str:
    console = Console(file=io.StringIO(), width=100, height=40, force_terminal=False)
    console.print(render(house, 40))
    return console.file.getvalue()  # type: ignore[attr-defined]  # it is the StringIO above


def test_a_bar_is_as_full_as_what_it_stands_for() -> None:
    assert [bar(filled, 10, 10) for filled in (0, 5, 10, 12)] == ["░" * 10, "█████░░░░░", "█" * 10, "█" * 10]
    assert bar(1, 0, 3) == "░░░"


@pytest.mark.req("R35")
async def test_it_shows_what_a_server_tells() -> None:
    house = House()
    async with open_server(limits=Limits(per_user=2, total=4)) as server:
        supervisor = server.supervisor
        for user in ("ann", "ann", "b[red]\x1b[2J"):
            await supervisor.start(FaultWire(), Identity(user=user), sleeper)
        listening, told = trio.open_memory_channel[tuple[str, dict]](100)

        def listen() -> None:
            for kind, data in Target(url=f"http://127.0.0.1:{server.port}").events():
                trio.from_thread.run_sync(listening.send_nowait, (kind, data))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(trio.to_thread.run_sync, listen)
            house.hear(*(await told.receive()), 0.0)
            shown = screen(house)
            assert "3 of 4 connections" in shown
            assert "well  users 2" in shown
            assert "2/2" in shown
            assert "b[red]·[2J" in shown  # nothing that a terminal would obey
            await supervisor.start(FaultWire(), Identity(user="ann"), sleeper)
            while "evicted" not in screen(house):
                house.hear(*(await told.receive()), 1.0)
            await supervisor.start(FaultWire(), Identity(user="cid"), sleeper)
            while "emergency" not in screen(house):
                house.hear(*(await told.receive()), 2.0)
            assert house.ranking()[0] == ("ann", 2, 0, 0)
            assert house.arrivals() > 0
            await supervisor.set_limits(enforce=False)
            while "watching only" not in screen(house):
                house.hear(*(await told.receive()), 3.0)
            await supervisor.drain()
            while "draining" not in screen(house):
                house.hear(*(await told.receive()), 4.0)
            server.stop()  # ends the stream, and with it the thread


def test_many_users_are_cut_to_the_screen() -> None:
    house = House(statistics={"per_user_limit": 5}, users={f"c{number}": f"u{number}" for number in range(100)})
    house.statistics |= dict.fromkeys(("users", "rooms", "waiting", "leaving", "closing", "stuck", "shed"), 0)
    house.statistics |= {"connections": 100, "total_limit": 1000, "draining": False, "enforce": True, "admitted": 9}
    house.admitted.append((0.0, 9))
    assert "… and 79 more" in screen(house)


def test_the_stuck_are_kept_apart() -> None:
    house = House(users={"c1": "ann"}, leaving={"c2": "ann"})
    for event in ("handler_stuck", "handler_returned"):
        house._note({"event": event, "connection": "c2", "user": "ann", "at": ""})
        assert house.ranking() == [("ann", 1, 0, int(event == "handler_stuck"))]
