"""The supervisor as its owner uses it: asking, telling, cleaning up by hand."""

from __future__ import annotations

import math

import attrs
import pytest
import trio

from supervisor import (
    CloseReason,
    Draining,
    Identity,
    Limits,
    NotFound,
    Overflow,
    Policies,
    Timeouts,
    events,
    open_supervisor,
)
from supervisor.testing import FaultWire
from tests.helpers import open_house, reason, settle, sleeper


@pytest.mark.req("R17")
async def test_disconnect_ends_one_and_says_how(autojump_clock) -> None:
    async with open_house() as house:
        first, second = await house.fill(2)
        record = await house.supervisor.disconnect(first.id, CloseReason.REVOKED)
        assert (record.connection, record.reason, record.identity.user) == (first.id, CloseReason.REVOKED, "ann")
        assert house.ids() == [second.id]
        for unknown in (first.id, "c999", ""):
            with pytest.raises(NotFound):
                await house.supervisor.disconnect(unknown)


@pytest.mark.req("R17", "R16")
async def test_disconnect_user_ends_all_of_theirs(autojump_clock) -> None:
    async with open_house() as house:
        theirs = await house.fill(3, "ann")
        await house.fill(2, "bob")
        records = await house.supervisor.disconnect_user("ann")
        assert [record.connection for record in records] == [conn.id for conn in theirs]
        assert len(house.ids("bob")) == 2
        for unknown in ("ann", "user:ann", ""):
            with pytest.raises(NotFound):
                await house.supervisor.disconnect_user(unknown)
        with pytest.raises(NotFound, match="session 's' of user 'bob'"):
            await house.supervisor.disconnect_user("bob", session="s")


@pytest.mark.req("R17")
async def test_everything_can_be_ended_and_newcomers_still_come(autojump_clock) -> None:
    async with open_house() as house:
        for user in "abc":
            await house.fill(2, user)
        assert len(await house.supervisor.disconnect_all()) == 6
        assert house.ids() == []
        await house.enter()


@pytest.mark.req("R17")
async def test_expire_idle_takes_what_is_older(autojump_clock) -> None:
    async with open_house() as house:
        old = await house.enter()
        await trio.sleep(60)
        young = await house.enter()
        records = await house.supervisor.expire_idle(older_than=60)
        assert [record.connection for record in records] == [old.id]
        assert reason(old) is CloseReason.IDLE
        assert young.end is None
        assert await house.supervisor.expire_idle(older_than=60) == ()
        for bad in (-1, math.nan):
            with pytest.raises(ValueError, match="older_than"):
                await house.supervisor.expire_idle(older_than=bad)


@pytest.mark.req("R16")
async def test_cleanups_of_several_users_do_not_interfere(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=20)) as house:
        for number in range(10):
            for _ in range(20):
                await house.enter(f"user-{number}", wire=FaultWire("mute"))
        before = trio.current_time()
        async with trio.open_nursery() as nursery:
            for number in range(10):
                nursery.start_soon(house.supervisor.disconnect_user, f"user-{number}")
        assert trio.current_time() - before == pytest.approx(0.5)
        cleanups = [event.cleanup for event in house.told(events.Closed)]
        assert sorted(cleanups) == pytest.approx([0.5 - number * 0.25 / 1000 for number in reversed(range(200))])


async def test_drain_ends_all_at_a_rate_and_admits_nobody(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=100)) as house:
        await house.fill(100)
        started = trio.current_time()
        refused: list[type] = []

        async def knock() -> None:
            await trio.sleep(0.05)
            with pytest.raises(Draining):
                await house.enter("bob")
            refused.append(Draining)

        house.callers.start_soon(knock)
        records = await house.supervisor.drain(rate=50)
        assert len(records) == 100
        assert {record.reason for record in records} == {CloseReason.RESTART}
        assert trio.current_time() - started == pytest.approx(1.9, abs=0.2)
        assert refused == [Draining]
        assert [type(event) for event in house.heard if "Drain" in type(event).__name__] == [
            events.DrainStarted,
            events.DrainFinished,
        ]
        assert await house.supervisor.drain() == ()


async def test_cut_does_not_wait_for_goodbyes(autojump_clock) -> None:
    async with open_house() as house:
        for kind in ("mute", "healthy", "never-reads"):
            await house.enter(wire=FaultWire(kind))
        house.supervisor.connections()[0].close()
        before = trio.current_time()
        assert len(await house.supervisor.cut()) == 3
        assert trio.current_time() == before
        with pytest.raises(Draining):
            await house.enter()


async def test_drain_keeps_its_deadline(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=100)) as house:
        for _ in range(100):
            await house.enter(wire=FaultWire("mute"))
        started = trio.current_time()
        assert len(await house.supervisor.drain(rate=1, deadline=3)) == 100
        assert trio.current_time() - started == pytest.approx(3.5)


@pytest.mark.parametrize("bad", [{"rate": 0}, {"rate": -1}, {"rate": math.nan}, {"deadline": -1}])
async def test_drain_refuses_nonsense_and_loses_nothing(autojump_clock, bad) -> None:
    async with open_house() as house:
        await house.enter()
        with pytest.raises(ValueError, match=next(iter(bad))):
            await house.supervisor.drain(**bad)
        assert not house.supervisor.draining
        assert len(house.ids()) == 1


async def test_leaving_the_block_ends_everybody_in_half_a_second(autojump_clock) -> None:
    wires = [FaultWire(kind) for kind in ("healthy", "mute", "never-reads")]
    async with open_supervisor() as supervisor:
        conns = [await supervisor.start(wire, Identity(user="ann"), sleeper) for wire in wires]
        await settle()
        before = trio.current_time()
    assert 0.499 <= trio.current_time() - before <= 0.5
    assert {reason(conn) for conn in conns} == {CloseReason.GOING_AWAY}
    assert {wire.farewell[0] for wire in wires} == {1001}


async def test_what_the_block_raises_comes_out_as_it_is(autojump_clock) -> None:
    with pytest.raises(LookupError, match="mine"):
        async with open_supervisor() as supervisor:
            await supervisor.start(FaultWire("mute"), Identity(user="ann"), sleeper)
            raise LookupError("mine")
    assert supervisor.statistics().seats == 0


async def test_a_cancellation_from_outside_is_honoured_and_bounded(autojump_clock) -> None:
    with trio.move_on_after(1) as scope:
        async with open_supervisor() as supervisor:
            await supervisor.start(FaultWire("mute"), Identity(user="ann"), sleeper)
            await trio.sleep_forever()
    assert scope.cancelled_caught
    assert trio.current_time() == pytest.approx(1.5)


async def test_statistics_are_a_frozen_snapshot(autojump_clock) -> None:
    async with open_house() as house:
        conn = await house.enter()
        conn.join("room")
        figures = house.supervisor.statistics()
        assert (figures.connections, figures.users, figures.rooms, figures.seats, figures.admitted) == (1, 1, 1, 1, 1)
        conn.close(4321, "bye")
        await conn.wait_gone()
        assert figures.connections == 1
        assert house.supervisor.statistics().closed == {"closed": 1}
        with pytest.raises(attrs.exceptions.FrozenInstanceError):
            figures.connections = 2
        with pytest.raises(TypeError):
            figures.closed["x"] = 1


@pytest.mark.req("R19")
async def test_a_failing_subscriber_hurts_nobody_and_is_told(autojump_clock) -> None:
    def failing(event: events.Event) -> None:
        raise RuntimeError("subscriber raises")

    async with open_house() as house:
        end = house.supervisor.subscribe(failing)
        conn = await house.enter()
        assert len(house.ids()) == 1
        assert [event.what for event in house.told(events.Failed)] == ["subscriber"]
        end()
        conn.close()
        await conn.wait_gone()
        assert house.supervisor.statistics().failures == {"subscriber": 1}


@pytest.mark.req("R19")
async def test_a_subscriber_may_ask_and_tell_from_within(autojump_clock) -> None:
    audits: list[tuple[str, ...]] = []

    async with open_house(limits=Limits(per_user=2)) as house:

        def meddler(event: events.Event) -> None:
            audits.append(house.supervisor.audit())
            if isinstance(event, events.Admitted) and event.identity.user == "ann":
                house.supervisor.connection(event.connection).close()

        house.supervisor.subscribe(meddler)
        conn = await house.enter("ann")
        await conn.wait_gone()
        await house.fill(3, "bob")
        assert set(audits) == {()}
        kinds = [type(event).__name__ for event in house.heard if not isinstance(event, events.Audited)]
        assert kinds[:3] == ["Admitted", "Leaving", "Closed"]


async def test_the_connection_of_an_id(autojump_clock) -> None:
    async with open_house() as house:
        conn = await house.enter()
        assert house.supervisor.connection(conn.id) is conn
        conn.close()
        await settle()
        with pytest.raises(NotFound):
            house.supervisor.connection(conn.id)


async def test_time_outs_are_what_they_say(autojump_clock) -> None:
    async with open_house(timeouts=Timeouts(close=2, handler_exit=1)) as house:
        mute = await house.enter(wire=FaultWire("mute"))
        assert (await house.supervisor.disconnect(mute.id)).cleanup == pytest.approx(2)


async def test_drain_counts_those_who_were_here_and_not_those_who_waited(autojump_clock) -> None:
    async def wait() -> None:
        with pytest.raises(Draining):
            await house.supervisor.start(FaultWire(), Identity(user="bob"), sleeper)

    policies = Policies(overflow_total=Overflow.WAIT)
    async with open_house(limits=Limits(total=1), policies=policies) as house:
        await house.enter()
        house.callers.start_soon(wait)
        await settle()
        assert len(await house.supervisor.drain()) == 1
        assert [event.connections for event in house.told(events.DrainStarted)] == [1]
