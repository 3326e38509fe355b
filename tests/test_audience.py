"""Rooms, runs and users as audiences."""

from __future__ import annotations

import pytest
import trio

from supervisor import ConnectionClosed, Limits, RoomLimitReached
from supervisor.testing import FaultWire
from tests.helpers import open_house, settle


@pytest.mark.req("R10")
async def test_a_room_has_its_members_and_no_others(autojump_clock) -> None:
    async with open_house() as house:
        room = house.supervisor.room("lobby")
        ann, bob = await house.enter("ann"), await house.enter("bob")
        assert (room.members, house.supervisor.rooms()) == ((), ())
        ann.join("lobby", {"mood": "fine"})
        bob.join("lobby")
        assert room.members == (ann, bob)
        assert room.presence == {ann: {"mood": "fine"}, bob: None}
        ann.join("lobby", "changed")
        assert room.presence == {ann: "changed", bob: None}
        assert ann.rooms == ("lobby",)
        assert ann.leave("lobby")
        assert not ann.leave("lobby")
        bob.close()
        assert (room.members, house.supervisor.rooms()) == ((), ())  # at once, not when it is gone


async def test_a_membership_can_last_for_a_block(autojump_clock) -> None:
    async def visitor(conn) -> None:
        async with conn.join("async"):
            with conn.join("sync"):
                await trio.sleep(1)
            await trio.sleep(1)
        await trio.sleep_forever()

    async with open_house() as house:
        conn = await house.enter(handler=visitor)
        assert set(conn.rooms) == {"async", "sync"}
        await trio.sleep(1.5)
        assert conn.rooms == ("async",)
        await trio.sleep(1)
        assert conn.rooms == ()


async def test_publishing_reaches_everybody_once(autojump_clock) -> None:
    async with open_house() as house:
        wires = [FaultWire() for _ in range(3)]
        conns = [await house.enter(wire=wire) for wire in wires]
        for conn in conns:
            conn.join("room")
        conns[0].follow("run-1")
        assert house.supervisor.room("room").publish("x", exclude=conns[0]) == 2
        assert house.supervisor.user("ann").publish(b"y") == 3
        assert house.supervisor.run("run-1").publish("z") == 1
        assert house.supervisor.user("nobody").publish("?") == 0
        assert [wire.sent for wire in wires] == [[b"y", "z"], ["x", b"y"], ["x", b"y"]]


@pytest.mark.req("R10")
async def test_a_room_and_a_run_of_one_name_are_two(autojump_clock) -> None:
    async with open_house() as house:
        conn = await house.enter()
        conn.follow("name")
        assert house.supervisor.room("name").members == ()
        assert house.supervisor.run("name").members == (conn,)
        assert (house.supervisor.rooms(), house.supervisor.statistics().rooms) == ((), 0)
        assert conn.rooms == ()
        assert conn.leave("name") is False


@pytest.mark.req("R10")
async def test_nobody_joins_while_leaving(autojump_clock) -> None:
    async with open_house() as house:
        conn = await house.enter()
        conn.close()
        with pytest.raises(ConnectionClosed):
            conn.join("room")
        with pytest.raises(ConnectionClosed):
            conn.follow("run")
        await settle()
        assert house.supervisor.rooms() == ()


@pytest.mark.req("R10", "R18")
async def test_a_session_is_an_index_of_one_user(autojump_clock) -> None:
    async with open_house() as house:
        mine = await house.enter("ann", session="s")
        theirs = await house.enter("bob", session="s")
        assert house.supervisor.connections(session="s") == (mine, theirs)
        assert house.supervisor.connections(user="ann", session="s") == (mine,)
        await house.supervisor.disconnect_user("ann", session="s")
        assert house.supervisor.connections(session="s") == (theirs,)


async def test_rooms_of_a_connection_and_in_all_are_limited_and_runs_do_not_count(autojump_clock) -> None:
    async with open_house(limits=Limits(rooms=2, rooms_total=3)) as house:
        ann, bob = await house.enter("ann"), await house.enter("bob")
        for number in range(5):
            ann.follow(f"run {number}")
        ann.join("a")
        ann.join("b")
        with pytest.raises(RoomLimitReached, match=r"rooms per connection limit \(2/2\)"):
            ann.join("c")
        assert ann.join("b", "again") is not None
        assert ann.rooms == ("a", "b")
        bob.join("c")
        with pytest.raises(RoomLimitReached, match=r"rooms total limit \(3/3\)"):
            bob.join("d")
        bob.join("a")
        ann.close()
        bob.leave("c")
        bob.join("d")
        assert set(house.supervisor.rooms()) == {"a", "d"}
