"""Rooms, runs and users as audiences."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from supervisor import ConnectionClosed, Limits, RoomLimitReached, events
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


@pytest.mark.req("R10")
async def test_who_watches_rooms_is_told_of_everybody_whatever_ends_them(autojump_clock) -> None:
    async with open_house() as house:
        told = []

        def watch(room, joined, left) -> None:
            told.append((room.group.name, dict(joined), dict(left)))

        for _ in range(2):  # once, however often it asks
            house.supervisor.watch_rooms(watch)
        ann, bob, cid = [await house.enter(user) for user in ("ann", "bob", "cid")]
        for conn in (ann, bob, cid):
            conn.join("hall", conn.user)
        bob.join("hall", "bob")  # which changes nothing
        bob.join("hall", "robert")
        joined = [("hall", {ann: "ann"}, {}), ("hall", {bob: "bob"}, {}), ("hall", {cid: "cid"}, {})]
        assert told == [*joined, ("hall", {bob: "robert"}, {})]
        told.clear()
        ann.leave("hall")
        ann.join("attic")
        await house.supervisor.disconnect_all()  # of each room once
        assert told[:2] == [("hall", {}, {ann: "ann"}), ("attic", {ann: None}, {})]
        assert told[2:] == [("attic", {}, {ann: None}), ("hall", {}, {bob: "robert", cid: "cid"})]


def lingerer(seconds: float):
    async def handler(conn) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

    return handler


@pytest.mark.req("R39")
async def test_a_take_over_does_not_flap(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=1, rooms=2)) as house:
        told: list[Any] = []
        house.supervisor.watch_rooms(lambda room, joined, left: told.append((room.group.name, joined, left)))
        old = await house.enter(session="phone")
        for room in ("a", "b"):
            old.join(room, {"in": room})
        old.follow("run")
        told.clear()
        new = await house.enter(session="phone", takes_over=True, handler=lingerer(0.05))
        assert told == [("a", {new: {"in": "a"}}, {old: {"in": "a"}}), ("b", {new: {"in": "b"}}, {old: {"in": "b"}})]
        assert new.rooms == ("a", "b")
        assert house.supervisor.run("run").members == ()  # it asks for that itself, from a number on
        told.clear()
        with trio.move_on_after(0.01) as impatience:  # one who takes over, and is gone before it has a seat
            await house.enter(session="phone", takes_over=True)
        assert impatience.cancelled_caught
        assert house.supervisor.rooms() == ()
        assert [(room, len(joined), len(left)) for room, joined, left in told] == [
            *(("a", 1, 1), ("b", 1, 1)),
            *(("a", 0, 1), ("b", 0, 1)),
        ]


async def test_a_watcher_that_fails_hurts_nobody(autojump_clock) -> None:
    async with open_house() as house:

        def fails(room, joined, left) -> None:
            raise ValueError("watcher")

        house.supervisor.watch_rooms(fails)
        (await house.enter()).join("hall")
        assert [event.what for event in house.told(events.Failed)] == ["watcher"]


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
