"""Several nodes that share a real Valkey: limits, messages and presence are of all together, whatever becomes of it."""

from __future__ import annotations

import contextlib
import gc
import json
import weakref
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
import trio

from supervisor import (
    CloseReason,
    ClusterOptions,
    Connection,
    Identity,
    LimitReached,
    Limits,
    OutcomeUnknown,
    Overflow,
    Policies,
    Superseded,
    Supervisor,
    Timeouts,
    Unavailable,
    open_cluster,
    open_supervisor,
)
from supervisor._cluster.cluster import Cluster
from supervisor._words import events
from supervisor.testing import FaultWire
from tests.valkey import Valkey
from tests.valkey import valkey as valkey  # a fixture

LEASE = 1.0


async def stays(conn: Connection) -> None:
    await trio.sleep_forever()


@attrs.define(eq=False)
class Node:
    """One node in this process."""

    supervisor: Supervisor
    cluster: Cluster
    heard: list[Any] = attrs.field(factory=list)

    async def enter(self, user: str = "ann", handler: Any = stays, **identity: Any) -> Connection:
        return await self.supervisor.start(FaultWire(), Identity(user=user, **identity), handler)

    def here(self, user: str = "ann") -> int:
        return len(self.supervisor.connections(user=user))

    def happened(self, kind: type[events.Event]) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]


@contextlib.asynccontextmanager
async def open_nodes(
    valkey: Valkey, count: int = 2, *, lease: float = LEASE, without: str = "local", **settings: Any
) -> AsyncIterator[list[Node]]:
    """So many of them; each ends properly, and nothing but what is kept for a while is in the engine then."""
    options = ClusterOptions(url=valkey.url, lease=lease, patience=min(0.5, lease), without=without)
    async with contextlib.AsyncExitStack() as stack:
        nodes = []
        for _ in range(count):
            supervisor = await stack.enter_async_context(open_supervisor(**settings))
            node = Node(supervisor, await stack.enter_async_context(open_cluster(supervisor, options)))
            supervisor.subscribe(node.heard.append)
            nodes.append(node)
        with trio.fail_after(30):
            yield nodes
        for node in nodes:
            assert node.supervisor.audit() == ()
            assert not [it for it in node.happened(events.Failed) if it.what != "node"], node.heard


async def until(condition: Any, seconds: float = 10) -> None:
    """Wait until it is so."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.005)


def said(conn: Connection) -> list[Any]:
    """What its peer was sent."""
    return [json.loads(message) for message in conn.wire.sent]


def left(valkey: Valkey) -> set[str]:
    """What is in the engine, without what is kept for a while, or for all."""
    names = {key.removeprefix("ws-supervisor:") for key in valkey.names()}
    return {name for name in names if not name.startswith("h:") and name not in ("epoch", "top", "order")}


# -- limits ----------------------------------------------------------------------------------------------------


@pytest.mark.req("R41", "R03", "R25")
async def test_the_oldest_of_all_nodes_leaves_for_a_newcomer_at_any(valkey: Valkey) -> None:
    async with open_nodes(valkey, 3, limits=Limits(per_user=3)) as nodes:
        conns = [await node.enter() for node in nodes]
        newest = await nodes[1].enter()
        await until(lambda: conns[0].end is not None)
        assert conns[0].end.reason is CloseReason.EVICTED
        assert conns[0].end.text == "user 'ann' exceeded maximum connections per user limit (3/3)"
        assert [conn.end for conn in (*conns[1:], newest)] == [None] * 3
    assert left(valkey) == set()


@pytest.mark.req("R41", "R02", "R04")
async def test_limits_that_refuse_are_of_all_nodes(valkey: Valkey) -> None:
    policies = Policies(overflow_user=Overflow.REJECT)
    async with open_nodes(valkey, limits=Limits(per_user=2, total=3), policies=policies) as (one, other):
        ann = await one.enter()
        await other.enter()
        with pytest.raises(LimitReached, match=r"user 'ann' exceeded maximum connections per user limit \(2/2\)"):
            await one.enter()
        bob = await other.enter("bob")
        with pytest.raises(LimitReached, match=r"user 'eve' exceeded maximum connections total limit \(3/3\)"):
            await one.enter("eve")
        await one.supervisor.disconnect(ann.id)
        await other.enter("eve")
        await other.supervisor.disconnect(bob.id)
        await one.enter()
        assert (one.here() + other.here(), other.here("eve")) == (2, 1)
        assert one.supervisor.statistics().refused == {"limit_reached": 2}
    assert left(valkey) == set()


@pytest.mark.req("R41")
async def test_the_greediest_user_of_all_nodes_gives_way(valkey: Valkey) -> None:
    policies = Policies(overflow_total=Overflow.EVICT_GREEDIEST)
    async with open_nodes(valkey, limits=Limits(total=4), policies=policies) as (one, other):
        oldest, greedy = await other.enter("bob"), [await one.enter() for _ in range(3)]
        await other.enter("eve")
        await until(lambda: greedy[0].end is not None)
        assert greedy[0].end.text == "user 'ann' exceeded maximum connections total limit (4/4)"
        assert oldest.end is None


@pytest.mark.req("R41", "R49")
async def test_who_waits_for_a_place_gets_the_one_that_is_free_at_another_node(valkey: Valkey) -> None:
    settings = {"limits": Limits(per_user=1), "policies": Policies(overflow_user=Overflow.WAIT)}
    async with open_nodes(valkey, timeouts=Timeouts(wait=5), **settings) as (one, other):
        first, got = await one.enter(), []

        async def wait() -> None:
            got.append(await other.enter())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(wait)
            await trio.sleep(0.2)
            assert (got, first.end) == ([], None)
            await one.supervisor.disconnect(first.id)
        assert got[0].end is None


@pytest.mark.req("R41", "R01")
@pytest.mark.parametrize("limit", [5, 20])
async def test_a_storm_through_three_nodes_never_exceeds_a_limit(valkey: Valkey, limit: int) -> None:
    inside = most = 0

    async def counts(conn: Connection) -> None:
        nonlocal inside, most
        inside += 1
        most = max(most, inside)
        try:
            await trio.sleep_forever()
        finally:
            inside -= 1

    async def storm(node: Node) -> None:
        with contextlib.suppress(LimitReached, Exception):
            await node.enter(handler=counts)

    timeouts = Timeouts(evict=10)  # nobody here is slow to leave, but the loop is
    async with open_nodes(valkey, 3, limits=Limits(per_user=limit), timeouts=timeouts, lease=5) as nodes:
        async with trio.open_nursery() as nursery:
            for number in range(300):
                nursery.start_soon(storm, nodes[number % 3])
        await until(lambda: inside == sum(node.here() for node in nodes) == limit)
        assert most == limit
        for node in nodes:
            assert not node.happened(events.NodeDisconnected)
    assert left(valkey) == set()


@pytest.mark.req("R41")
async def test_who_is_slow_to_leave_another_node_loses_the_seat_and_nobody_waits_for_long(valkey: Valkey) -> None:
    async def slow(conn: Connection) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.4)

    async with open_nodes(valkey, limits=Limits(per_user=1)) as (one, other):
        first = await one.enter(handler=slow)
        started = trio.current_time()
        second = await other.enter()
        assert 0.1 <= trio.current_time() - started < 0.4
        assert first.end.reason is CloseReason.EVICTED
        assert second.end is None


@pytest.mark.req("R39", "R41")
async def test_a_client_that_comes_back_to_another_node_takes_over(valkey: Valkey) -> None:
    async with open_nodes(valkey, limits=Limits(per_user=1), policies=Policies(overflow_user=Overflow.REJECT)) as nodes:
        first = await nodes[0].enter(session="s")
        for number in range(1, 6):
            second = await nodes[number % 2].enter(session="s", takes_over=True)
            await first.wait_gone()
            assert first.end.reason is CloseReason.TAKEN_OVER
            first = second
        with pytest.raises(LimitReached):
            await nodes[0].enter(session="another", takes_over=True)
        last = await nodes[0].enter(session="s", takes_over=1002)
        with pytest.raises(Superseded):
            await nodes[1].enter(session="s", takes_over=1001)
        assert last.end is None


async def test_limits_that_are_only_watched_keep_nobody_out(valkey: Valkey) -> None:
    async with open_nodes(valkey, limits=Limits(per_user=1, enforce=False)) as (one, other):
        conns = [await node.enter() for node in (one, other, one)]
        assert [conn.end for conn in conns] == [None] * 3


@pytest.mark.req("R10", "R41")
async def test_a_lease_leaves_nothing_to_the_cycle_collector(valkey: Valkey) -> None:
    async def returns(conn: Connection) -> None:
        await trio.lowlevel.checkpoint()

    async with open_nodes(valkey, 1) as (one,):
        gc.collect()
        gc.disable()
        try:
            seen = weakref.WeakSet[Connection]()
            for number in range(20):
                conn = await one.enter(f"user-{number % 3}", handler=returns if number % 2 else stays)
                seen.add(conn)
                if not number % 2:
                    conn.close()
                await conn.wait_gone()
            del conn
            one.heard.clear()
            await trio.sleep(0.01)
            assert len(seen) == 0
            assert one.cluster.leases.held == {}
        finally:
            gc.enable()


# -- messages --------------------------------------------------------------------------------------------------


@pytest.mark.req("R41")
async def test_what_is_told_is_told_at_all_nodes_in_one_order(valkey: Valkey) -> None:
    async with open_nodes(valkey, 3) as nodes:
        conns = [await node.enter(f"user-{number}") for number, node in enumerate(nodes)]
        for conn in conns:
            conn.join("r")
            await conn.supervisor.room("r").attend()

        async def talk(conn: Connection) -> None:
            for number in range(50):
                await conn.supervisor.room("r").tell({"from": conn.user, "n": number})

        async with trio.open_nursery() as nursery:
            for conn in conns:
                nursery.start_soon(talk, conn)
        await until(lambda: min(len(said(conn)) for conn in conns) == 150)
        assert said(conns[0]) == said(conns[1]) == said(conns[2])
        numbers = [message["seq"] for message in said(conns[0])]
        assert numbers == list(range(numbers[0], numbers[0] + 150))
        for conn in conns:
            assert [it["n"] for it in said(conns[0]) if it["from"] == conn.user] == list(range(50))


@pytest.mark.req("R41")
async def test_to_a_user_and_to_nobody_in_particular(valkey: Valkey) -> None:
    async with open_nodes(valkey) as (one, other):
        ann = await one.enter()
        told = await other.supervisor.user("ann").tell({"data": "é\x00\ud800"})
        assert told.delivered == 0
        other.supervisor.user("ann").publish("plain")
        other.supervisor.user("ann").publish(b"\xff\x00")
        await until(lambda: len(ann.wire.sent) == 3)
        assert ann.wire.sent[1:] == ["plain", b"\xff\x00"]
        assert said_first(ann) == {"data": "é\x00\ud800", "seq": told.seq}
        excluded = await one.supervisor.user("ann").tell({"data": 2}, exclude=ann)
        await one.supervisor.user("ann").tell({"data": 3})
        await until(lambda: len(ann.wire.sent) == 4)
        assert json.loads(ann.wire.sent[3])["seq"] == excluded.seq + 1


def said_first(conn: Connection) -> Any:
    return json.loads(conn.wire.sent[0])


@pytest.mark.req("R39", "R41")
async def test_what_was_missed_is_known_at_another_node(valkey: Valkey) -> None:
    async with open_nodes(valkey, limits=Limits(history_messages=5)) as (one, other):
        room = one.supervisor.room("r")
        first = (await room.tell({"n": 0})).seq
        for number in range(1, 8):
            await room.tell({"n": number})
        late = await other.enter()
        late.join("r")
        there = other.supervisor.room("r")
        await there.attend()
        assert there.last == first + 7
        assert there.recover(late, first + 4)
        assert [it["n"] for it in said(late)] == [5, 6, 7]
        assert not there.recover(late, first)  # some of it is not kept
        assert not there.recover(late, first + 100)


async def test_what_is_kept_is_bounded_in_bytes_and_in_time(valkey: Valkey) -> None:
    async with open_nodes(valkey, 1, limits=Limits(history_bytes=1000, history_age=0.5)) as (one,):
        room = one.supervisor.room("r")
        for number in range(10):
            await room.tell({"n": number, "data": "x" * 200})
        assert int(valkey.ask("XLEN", "ws-supervisor:h:room:r")) == 4
        await trio.sleep(0.6)
        assert valkey.names() & {"ws-supervisor:h:room:r"} == set()
        before = (await room.tell({"n": 0})).seq
        assert before > 10  # no number is given twice


async def test_a_quiet_room_keeps_its_numbers_while_somebody_is_there(valkey: Valkey) -> None:
    async with open_nodes(valkey, limits=Limits(history_age=0.6)) as (one, other):
        ann = await one.enter()
        ann.join("r")
        await one.supervisor.room("r").attend()
        first = await other.supervisor.room("r").tell({"n": 0})
        await trio.sleep(1.5)
        second = await other.supervisor.room("r").tell({"n": 1})
        assert second.seq == first.seq + 1
        await until(lambda: len(said(ann)) == 2)


# -- presence --------------------------------------------------------------------------------------------------


@pytest.mark.req("R41")
async def test_who_is_where_is_known_at_all_nodes(valkey: Valkey) -> None:
    seen: list[Any] = []

    def watch(room: Any, joined: Any, left: Any) -> None:
        seen.append((sorted(it.user for it in joined), sorted(it.user for it in left)))

    async with open_nodes(valkey) as (one, other):
        ann = await one.enter("ann")
        ann.join("r", {"colour": "red"})
        other.supervisor.watch_rooms(watch)
        bob = await other.enter("bob")
        bob.join("r")
        await until(lambda: len(one.supervisor.room("r").presence) == 2)
        await until(lambda: len(other.supervisor.room("r").presence) == 2)
        theirs = {it.user: metadata for it, metadata in other.supervisor.room("r").presence.items()}
        assert theirs == {"ann": {"colour": "red"}, "bob": None}
        ann.join("r", {"colour": "blue"})
        await until(lambda: {"colour": "blue"} in other.supervisor.room("r").presence.values())
        await one.supervisor.disconnect(ann.id)
        await until(lambda: len(other.supervisor.room("r").presence) == 1)
        assert seen == [(["bob"], []), (["ann"], []), (["ann"], []), ([], ["ann"])]


# -- when the engine is not well -------------------------------------------------------------------------------


@pytest.mark.req("A57", "R41")
async def test_a_cut_connection_is_nothing(valkey: Valkey) -> None:
    async with open_nodes(valkey, lease=3) as (one, other):
        ann, bob = await one.enter("ann"), await other.enter("bob")
        for conn in (ann, bob):
            conn.join("r")
            await conn.supervisor.room("r").attend()
        numbers = []
        for number in range(20):
            if number % 5 == 2:
                valkey.ask("CLIENT", "KILL", "TYPE", "pubsub")
            if number % 5 == 4:
                valkey.ask("SCRIPT", "FLUSH")
            with contextlib.suppress(OutcomeUnknown):
                numbers.append((await one.supervisor.room("r").tell({"n": number})).seq)
        await until(lambda: len(said(bob)) >= 20)
        assert [it["n"] for it in said(bob)] == list(range(20))
        assert said(ann) == said(bob)
        assert one.happened(events.NodeDisconnected)
        assert not any(it.anew for it in one.happened(events.NodeConnected))
        assert (ann.end, bob.end) == (None, None)


@pytest.mark.req("A57", "R41")
async def test_while_the_engine_is_away_newcomers_come_in_here_and_are_judged_when_it_is_back(valkey: Valkey) -> None:
    async with open_nodes(valkey, limits=Limits(per_user=2)) as (one, other):
        before = [await one.enter(), await other.enter()]
        valkey.kill()
        await until(lambda: not one.cluster.line.alive and not other.cluster.line.alive)
        assert [conn.end for conn in before] == [None, None]
        alone = [await one.enter(), await other.enter()]
        with pytest.raises(Unavailable):
            await one.supervisor.room("r").tell({"n": 1})
        epoch = one.supervisor.epoch
        valkey.start()
        await until(lambda: len([conn for conn in (*before, *alone) if conn.end is None]) == 2)
        await trio.sleep(0.1)
        gone = [conn for conn in (*before, *alone) if conn.end is not None]
        assert len(gone) == 2
        assert {conn.end.reason for conn in gone} == {CloseReason.EVICTED}
        assert one.supervisor.epoch == other.supervisor.epoch != epoch
    assert left(valkey) == set()


@pytest.mark.req("A57")
async def test_or_they_are_refused(valkey: Valkey) -> None:
    async with open_nodes(valkey, without="refuse") as (one, other):
        await one.enter()
        valkey.pause()
        started = trio.current_time()
        with pytest.raises(Unavailable, match="not known now who is at the other nodes"):
            await other.enter()
        assert trio.current_time() - started < 0.5 + 0.2
        valkey.go_on()
        await until(lambda: other.cluster.line.engine is not None and other.cluster.line.alive)
        await other.enter()
        assert (one.here(), other.here()) == (1, 1)
    assert left(valkey) == set()


@pytest.mark.req("A57")
async def test_an_engine_without_memory_tells_nothing_and_loses_no_seat(valkey: Valkey) -> None:
    async with open_nodes(valkey, without="refuse", limits=Limits(per_user=2)) as (one, other):
        ann = await one.enter()
        valkey.ask("CONFIG", "SET", "maxmemory", "1")
        with pytest.raises((Unavailable, OutcomeUnknown)):
            await other.supervisor.room("r").tell({"n": 1})
        with pytest.raises(Unavailable):
            await other.enter()
        await one.supervisor.disconnect(ann.id)
        valkey.ask("CONFIG", "SET", "maxmemory", "0")
        await until(lambda: one.cluster.line.engine is not None and other.cluster.line.engine is not None)
        for node in (one, other):
            await node.enter("bob")
        assert valkey.ask("ZCARD", "ws-supervisor:all") == 2
    assert left(valkey) == set()


@pytest.mark.req("A58")
async def test_who_is_cancelled_while_asking_leaves_nothing_behind_and_hears_no_other_answer(valkey: Valkey) -> None:
    async with open_nodes(valkey, 1, lease=5) as (one,):
        room, right = one.supervisor.room("r"), 0

        async def tell(number: int) -> None:
            nonlocal right
            with trio.move_on_after(number % 7 * 0.0005):
                told = await room.tell({"n": number})
                kept = valkey_message(valkey, told.seq)
                right += kept == {"n": number}
                return

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(tell, number)
        assert await room.tell({"n": -1})
        assert one.cluster.line.waiting == type(one.cluster.line.waiting)()

        async def come(number: int) -> None:
            with trio.move_on_after(number % 7 * 0.0005):
                await one.enter(f"user-{number}")

        async with trio.open_nursery() as nursery:
            for number in range(200):
                nursery.start_soon(come, number)
        await until(lambda: one.supervisor.statistics().seats == one.supervisor.statistics().connections)
        await room.tell({"n": -2})  # whatever was given back before this is given back
        assert valkey.ask("ZCARD", "ws-supervisor:all") == one.supervisor.statistics().connections
        assert valkey.ask("ZCARD", "ws-supervisor:leaving") == 0
    assert left(valkey) == set()


def valkey_message(valkey: Valkey, number: int) -> Any:
    [entry] = valkey.ask("XRANGE", "ws-supervisor:h:room:r", f"{number}-0", f"{number}-0")
    return json.loads(entry[1][1])


@pytest.mark.req("A60")
async def test_what_no_node_would_say_is_counted_and_hurts_nobody(valkey: Valkey) -> None:
    async with open_nodes(valkey) as (one, other):
        ann = await one.enter()
        ann.join("r")
        await one.supervisor.room("r").attend()
        node, room = f"ws-supervisor:node:{one.cluster.node}", "ws-supervisor:c:room:r"
        forged = [
            *(
                (room, text)
                for text in ("", "said", "said x - {}", "said 99999 - []", "said 5 - nothing", "came n [1]")
            ),
            *(
                (room, text)
                for text in ("came n [{}]", "came n " + "[" * 5000, "data n \xff", "unknown n x", "\x80\x04K\x01.")
            ),
            *(
                (node, text)
                for text in ("evict", "order x {", "order x []", 'order x {"number":"y"}', "free", "what is this")
            ),
        ]
        for channel, text in forged:
            valkey.ask("PUBLISH", channel, text)
        await until(lambda: one.cluster.garbled >= len(forged) - 2)
        await other.supervisor.room("r").tell({"n": 1})
        await until(lambda: any(it.get("n") == 1 for it in said(ann)))
        assert ann.end is None
        assert other.cluster.garbled == 0


@pytest.mark.req("A60")
async def test_what_no_node_would_write_is_counted_and_hurts_nobody(valkey: Valkey) -> None:
    async with open_nodes(valkey) as (one, other):
        for room, card in (("a", "{"), ("b", "1"), ("c", "{}"), ("d", "\xff")):
            valkey.ask("SADD", f"ws-supervisor:a:{room}", other.cluster.node)
            valkey.ask("HSET", f"ws-supervisor:p:{room}:{other.cluster.node}", "x", card)
            ann = await one.enter(room)
            ann.join(room)
            await one.supervisor.room(room).attend()
        await until(lambda: one.cluster.garbled == 4)
        valkey.ask("SET", "ws-supervisor:h:room:e", "no stream")
        with pytest.raises(OutcomeUnknown):
            await one.supervisor.room("e").tell({"n": 1})
        assert (await one.supervisor.room("f").tell({"n": 1})).seq
        assert one.cluster.garbled == 5
        assert not one.happened(events.NodeDisconnected)
        assert one.here("a") == 1


@contextlib.asynccontextmanager
async def deaf(node: Node, channel: str) -> AsyncIterator[None]:
    """A node does not hear what is said there, for the length of the block."""
    engine, other = node.cluster.line.engine, node.supervisor.room("other")
    engine.unsubscribe([channel])
    await other.tell({"wait": "for that"})
    yield
    engine.subscribe([channel])
    await other.tell({"wait": "for that, too"})


@pytest.mark.req("A61")
async def test_messages_that_do_not_come_are_asked_for(valkey: Valkey) -> None:
    async with open_nodes(valkey) as (one, other):
        ann = await one.enter()
        ann.join("r")
        await one.supervisor.room("r").attend()
        first = (await other.supervisor.room("r").tell({"n": 0})).seq
        await until(lambda: len(said(ann)) == 1)
        async with deaf(one, "ws-supervisor:c:room:r"):
            for number in range(1, 4):
                await other.supervisor.room("r").tell({"n": number})
        assert len(said(ann)) == 1
        await other.supervisor.room("r").tell({"n": 4})
        await until(lambda: len(said(ann)) == 5)
        assert [it["seq"] for it in said(ann)] == list(range(first, first + 5))


@pytest.mark.req("A61", "R39")
async def test_what_nobody_has_any_more_is_announced(valkey: Valkey) -> None:
    async with open_nodes(valkey, limits=Limits(history_messages=2)) as (one, other):
        ann = await one.enter()
        ann.join("r")
        await one.supervisor.room("r").attend()
        first = (await other.supervisor.room("r").tell({"n": 0})).seq
        await until(lambda: len(said(ann)) == 1)
        async with deaf(one, "ws-supervisor:c:room:r"):
            for number in range(1, 9):
                await other.supervisor.room("r").tell({"n": number})
        await other.supervisor.room("r").tell({"n": 9})
        await until(lambda: len(said(ann)) == 3)
        assert [it["n"] for it in said(ann)] == [0, 8, 9]
        [lost] = one.happened(events.MessagesLost)
        assert (lost.audience, lost.after, lost.before) == ("room:r", first, first + 8)


@pytest.mark.req("A62")
async def test_no_nodes_clock_says_anything(valkey: Valkey, monkeypatch: pytest.MonkeyPatch) -> None:
    import time

    clock = time.time
    async with open_nodes(valkey, limits=Limits(per_user=2)) as nodes:
        for skew in (0.0, 3600.0, -3600.0, 60.0):
            monkeypatch.setattr(time, "time", lambda skew=skew: clock() + skew)
            for node in nodes:
                await node.enter()
                await node.supervisor.room("r").tell({"n": 1})
        await until(lambda: sum(node.here() for node in nodes) == 2)
        await trio.sleep(1.5 * LEASE)
        assert sum(node.here() for node in nodes) == 2
        assert not any(node.happened(events.NodeDisconnected) for node in nodes)


def test_settings_that_make_no_sense_are_refused() -> None:
    for wrong in ({"lease": 0.1}, {"lease": 1, "patience": 2}, {"without": "hope"}):
        with pytest.raises(ValueError, match=next(iter(wrong)) if len(wrong) == 1 else "patience"):
            ClusterOptions(url="redis://127.0.0.1", **wrong)
    from supervisor._cluster.engine import parse_url

    for url in ("http://127.0.0.1", "redis://", "redis://h:port", "unix://", "nothing"):
        with pytest.raises(ValueError, match="an engine is redis://"):
            parse_url(url, 1.0)


async def test_who_is_connected_already_is_no_node(valkey: Valkey) -> None:
    async with open_supervisor() as supervisor:
        await supervisor.start(FaultWire(), Identity(user="ann"), stays)
        with pytest.raises(RuntimeError, match="before anybody connects"):
            async with open_cluster(supervisor, ClusterOptions(url=valkey.url)):
                pass


# -- runs ------------------------------------------------------------------------------------------------------


async def counts_to(run: Any, count: int) -> int:
    for number in range(count):
        run.emit("step", number)
        await trio.sleep(0.01)
    return count


@pytest.mark.req("R41", "R39")
async def test_a_run_is_followed_at_another_node_by_those_of_its_user_and_goes_on_for_them(valkey: Valkey) -> None:
    async with open_nodes(valkey) as (one, other):
        first = await one.enter()
        wire = first.wire
        await until(lambda: first.begun)
        run = one.supervisor.start_run("ann", counts_to, 60)
        run.follow(first)
        await trio.sleep(0.1)
        second = await other.enter()
        [card] = await other.cluster.runs("ann")
        assert (card["run"], card["outcome"]) == (run.id, None)
        complete, last = await other.cluster.follow(second, run.id, 0)
        assert complete
        assert last > 0
        await trio.sleep(0.05)
        await one.supervisor.disconnect(first.id)  # nobody of them is here any more, and it goes on
        await until(lambda: said(second)[-1]["event"] == "run_ended")
        assert [event["seq"] for event in said(second)] == list(range(1, 62))
        assert said(second)[-1]["data"]["outcome"] == "completed"
        assert second.wire.sent[:10] == wire.sent[:10]
        assert second.groups == {}
        [card] = await other.cluster.runs("ann")
        assert card["outcome"] == "completed"


@pytest.mark.req("R41")
async def test_a_run_is_cancelled_from_another_node_and_lost_with_its_own(valkey: Valkey) -> None:
    async with open_nodes(valkey) as (one, other):
        await one.enter()
        run = one.supervisor.start_run("ann", counts_to, 10_000)
        ann = await other.enter()
        await other.cluster.follow(ann, run.id, None)
        other.cluster.cancel(run.id)
        await until(lambda: run.outcome is not None)
        await until(lambda: said(ann)[-1:] and said(ann)[-1]["event"] == "run_ended")
        assert said(ann)[-1]["data"]["outcome"] == "cancelled"


@pytest.mark.req("R39", "R41")
async def test_what_somebody_says_who_was_taken_over_meanwhile_is_not_said(valkey: Valkey) -> None:
    """Else their client, who does not find it where it is now, would say it again, and it would be said twice."""
    async with open_nodes(valkey) as (one, other):
        ann = await one.enter(session="s", takes_over=1)
        line = one.cluster.line
        sending, line._wanted = line._wanted, trio.Event()  # it does not look for work
        with trio.CancelScope():
            async with trio.open_nursery() as nursery:
                caught: list[Exception] = []

                async def say() -> None:
                    try:
                        await one.supervisor.room("r").tell({"n": 1}, by=ann)
                    except Unavailable as unavailable:
                        caught.append(unavailable)

                nursery.start_soon(say)
                again = await other.enter(session="s", takes_over=2)
                sending.set()
        assert again.end is None
        told = await other.supervisor.room("r").tell({"n": 2}, by=again)
        assert caught
        assert valkey_message(valkey, told.seq) == {"n": 2}
        assert valkey.ask("XLEN", "ws-supervisor:h:room:r") == 1
