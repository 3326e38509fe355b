"""Every deadline, on the virtual clock."""

from __future__ import annotations

import math
import time

import pytest
import trio

from supervisor import CloseReason, Limits, Policies, Timeouts, Unauthorized, events
from supervisor.testing import Fault, FaultWire
from tests.helpers import House, echo, open_house, reason, settle, slow_to_leave


async def lived(house: House, seconds: float) -> list[tuple[str, float]]:
    """Wait, then say who has closed, why, and after how long."""
    await trio.sleep(seconds)
    await settle()
    return [(event.reason.name, round(event.duration, 3)) for event in house.told(events.Closed)]


@pytest.mark.req("R06", "R42")
@pytest.mark.parametrize("ttl", [0.5, 30.0, 300.0])
async def test_idle_connections_end_at_their_deadline(autojump_clock, ttl: float) -> None:
    async with open_house(limits=Limits(idle_ttl=ttl)) as house:
        await house.enter()
        await trio.sleep(ttl / 3)
        await house.enter()
        assert await lived(house, ttl * 2) == [("IDLE", ttl), ("IDLE", ttl)]
        assert {(event.end.code, event.end.text) for event in house.told(events.Closed)} == {(4001, "idle")}


@pytest.mark.req("R07")
async def test_messages_received_and_sent_are_activity(autojump_clock) -> None:
    async def speaker(conn) -> None:
        await trio.sleep(250)
        await conn.send("x")
        await trio.sleep_forever()

    async with open_house() as house:
        wire = FaultWire()
        await house.enter(wire=wire, handler=echo)
        await house.enter(handler=speaker)
        await trio.sleep(200)
        wire.deliver("hello")
        assert await lived(house, 1000) == [("IDLE", 500), ("IDLE", 550)]


@pytest.mark.req("R07")
async def test_broadcasts_and_pings_are_no_activity(autojump_clock) -> None:
    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(wire=wire)
        conn.join("room")
        for _ in range(29):
            await trio.sleep(10)
            assert house.supervisor.room("room").publish("x") == 1
        assert wire.pings > 5
        assert await lived(house, 300) == [("IDLE", 300)]


@pytest.mark.req("R07")
@pytest.mark.parametrize("direction", ["received_is_activity", "sent_is_activity"])
async def test_a_direction_can_be_switched_off(autojump_clock, direction: str) -> None:
    async def reader(conn) -> None:
        async for _ in conn:
            pass

    async def writer(conn) -> None:
        while True:
            await trio.sleep(100)
            await conn.send("x")

    async with open_house(policies=Policies(**{direction: False})) as house:
        wire = FaultWire()
        await house.enter(wire=wire, handler=reader if direction.startswith("received") else writer)
        await trio.sleep(100)
        wire.deliver("x")
        assert await lived(house, 1000) == [("IDLE", 300)]


async def test_a_lifetime_ends_whatever_happens(autojump_clock) -> None:
    async def busy(conn) -> None:
        while True:
            await trio.sleep(1)
            await conn.send("x")

    async with open_house(limits=Limits(lifetime=60)) as house:
        conn = await house.enter(handler=busy)
        assert await lived(house, 100) == [("LIFETIME", 60)]
        assert (conn.end.code, conn.end.text) == (4004, "lifetime over")


async def test_a_credential_ends_at_its_time_and_the_wall_clock_is_asked_once(autojump_clock, monkeypatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    async with open_house() as house:
        conn = await house.enter(expires_at=1_000_100.0)
        monkeypatch.setattr(time, "time", lambda: 2_000_000.0)
        assert await lived(house, 99.9) == []
        assert await lived(house, 1) == [("CREDENTIAL_EXPIRED", 100)]
        assert conn.end.code == 4005
        with pytest.raises(Unauthorized, match=r"^the credential has expired$"):
            await house.enter(expires_at=5.0)
        (event,) = house.told(events.Refused)
        assert (event.reason, event.text) == (CloseReason.UNAUTHORIZED, "the credential has expired")


async def test_a_credential_cannot_outlive_the_lifetime(autojump_clock, monkeypatch) -> None:
    monkeypatch.setattr(time, "time", lambda: 1_000_000.0)
    async with open_house(limits=Limits(lifetime=60)) as house:
        await house.enter(expires_at=1_000_100.0)
        assert await lived(house, 200) == [("LIFETIME", 60)]


@pytest.mark.req("R51")
async def test_a_silent_peer_is_pinged_and_then_unresponsive(autojump_clock) -> None:
    async with open_house(timeouts=Timeouts(ping_interval=20, pong=5)) as house:
        mute = FaultWire(answers_pings=False)
        await house.enter(wire=mute)
        await house.enter(wire=FaultWire())
        assert await lived(house, 30) == [("UNRESPONSIVE", 25)]
        assert mute.pings == 1
        assert mute.farewell[0] == 4002


@pytest.mark.req("R51")
async def test_nobody_is_unresponsive_while_we_do_not_listen(autojump_clock) -> None:
    async with open_house(timeouts=Timeouts(ping_interval=20, pong=5)) as house:
        wire = FaultWire(answers_pings=False)
        await house.enter(wire=wire)
        wire.silent_since = None
        assert await lived(house, 100) == []
        assert wire.pings in (4, 5)


async def test_nobody_is_pinged_while_waiting_for_a_seat(autojump_clock) -> None:
    """Its wire is not open yet."""
    timeouts = Timeouts(ping_interval=1, evict=3, handler_exit=5, close=5)
    async with open_house(limits=Limits(per_user=1), timeouts=timeouts) as house:
        await house.enter(handler=slow_to_leave(4))
        wire = FaultWire()
        await house.enter(wire=wire)
        assert wire.pings == 0
        await trio.sleep(1.1)
        assert wire.pings == 1


@pytest.mark.req("R42")
async def test_a_user_who_has_connections_is_never_gone_however_late_the_keeper_is(autojump_clock) -> None:
    async with open_house() as house:
        conn = await house.enter()
        autojump_clock.jump(400)
        assert house.supervisor._ledger.close_user(conn.host) is False
        assert house.supervisor.statistics().users == 1


@pytest.mark.req("R42")
async def test_a_users_nursery_lingers_and_then_closes(autojump_clock) -> None:
    async with open_house(timeouts=Timeouts(linger=30)) as house:
        conn = await house.enter()
        host = conn.host
        conn.close()
        await trio.sleep(29)
        assert house.supervisor.statistics().users == 1
        again = await house.enter()
        assert again.host is host
        await trio.sleep(60)
        again.close()
        await trio.sleep(29.9)
        assert house.supervisor.statistics().users == 1
        await trio.sleep(0.2)
        assert house.supervisor.statistics().users == 0


async def test_no_linger_means_at_once(autojump_clock) -> None:
    async with open_house() as house:
        conn = await house.enter()
        conn.close()
        await settle()
        assert house.supervisor.statistics().users == 0


@pytest.mark.req("R42", "R06")
async def test_the_handlers_own_deadline_holds_without_a_keeper(autojump_clock) -> None:
    """Each handler runs inside a scope whose deadline is its TTL with five seconds of slack, keeper or not."""
    async with open_house(limits=Limits(idle_ttl=10)) as house:
        conn = await house.enter()
        assert conn.scope.deadline == pytest.approx(trio.current_time() + 15)
        conn.host.alarm.deadline = math.inf  # a keeper that has overslept
        assert await lived(house, 20) == [("IDLE", 15)]


@pytest.mark.req("R06")
async def test_a_stall_of_our_own_expires_nobody_who_has_spoken(mock_clock) -> None:
    """The loop stands still across the deadline; what has arrived meanwhile is seen before anybody is expired."""
    wire = FaultWire()
    async with open_house(limits=Limits(idle_ttl=10)) as house:
        conn = await house.enter(wire=wire, handler=echo)
        silent = await house.enter()
        mock_clock.jump(14.9)
        await settle()
        assert (conn.end, silent.end) == (None, None)
        wire.deliver("it was waiting in the kernel")
        await settle()
        mock_clock.jump(0.25)
        await settle()
        assert (conn.end, reason(silent)) == (None, CloseReason.IDLE)
        for seconds in (1, 8.78):
            mock_clock.jump(seconds)
            await settle()
        assert reason(conn) is CloseReason.IDLE


@pytest.mark.req("R12")
async def test_a_stall_of_our_own_sets_no_handler_aside(autojump_clock) -> None:
    async with open_house() as house:
        conn = await house.enter(handler=slow_to_leave(0.7))
        conn.close()
        await settle()
        autojump_clock.jump(0.6)
        await settle()
        assert conn.closed is None
        autojump_clock.jump(0.15)
        await settle()
        assert conn.closed.stuck_at is None


@pytest.mark.req("R11")
async def test_a_stall_of_our_own_sets_no_goodbye_aside(autojump_clock) -> None:
    async with open_house() as house:
        conn = await house.enter(wire=FaultWire(faults=[Fault("close", "shield")]))
        conn.close()
        await settle()
        autojump_clock.jump(0.7)
        await settle()
        assert conn.closed is None
        autojump_clock.jump(0.3)
        await settle()
        assert conn.closed.stuck_at is not None


@pytest.mark.req("R51")
async def test_a_stall_of_our_own_makes_nobody_unresponsive(autojump_clock) -> None:
    async with open_house(timeouts=Timeouts(ping_interval=20, pong=5)) as house:
        wire = FaultWire("mute")
        answers, silent = await house.enter(wire=wire), await house.enter(wire=FaultWire("mute"))
        for seconds in (20, 5.2):
            autojump_clock.jump(seconds)
            await settle()
        assert (answers.end, silent.end) == (None, None)
        wire.become("healthy")
        autojump_clock.jump(0.3)
        await settle()
        assert (answers.end, reason(silent)) == (None, CloseReason.UNRESPONSIVE)


@pytest.mark.req("R11")
async def test_a_goodbye_is_over_at_its_own_bound_however_long_a_handler_may_take(autojump_clock) -> None:
    async with open_house(timeouts=Timeouts(handler_exit=5, close=0.5)) as house:
        conn = await house.enter(wire=FaultWire(faults=[Fault("close", "shield")]))
        record = await house.supervisor.disconnect(conn.id)
        assert record.cleanup == pytest.approx(0.6)


@pytest.mark.req("R06")
async def test_a_thousand_end_on_the_same_tick(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=10)) as house:
        for number in range(100):
            await house.fill(10, f"user-{number}")
        assert await lived(house, 300) == [("IDLE", 300)] * 1000


async def test_closing_a_stalled_write_does_not_wait_for_it(autojump_clock) -> None:
    async def sender(conn) -> None:
        await conn.send("x" * 100)

    async with open_house() as house:
        conn = await house.enter(handler=sender, wire=FaultWire("never-reads"))
        conn.close()
        before = trio.current_time()
        await conn.wait_gone()
        assert trio.current_time() == before  # a frame that has begun cannot be followed by a goodbye
        assert conn.closed.stuck_at is None
        assert house.told(events.Failed) == []


@pytest.mark.req("R06", "R12")
async def test_a_loop_that_is_always_late_expires_all_the_same(mock_clock) -> None:
    """Being late earns one moment of grace for each due, not a life of it."""
    async with open_house(limits=Limits(idle_ttl=10)) as house:
        conn = await house.enter()
        mock_clock.jump(10.2)
        await settle()
        assert conn.end is None
        mock_clock.jump(0.5)  # late again
        await settle()
        assert reason(conn) is CloseReason.IDLE


@pytest.mark.req("R06")
async def test_what_falls_due_while_others_have_their_turns_is_not_judged_yet(autojump_clock) -> None:
    """The keeper gives everybody a few turns before it judges; who becomes due meanwhile has not had theirs."""
    async with open_house() as house:
        conn = await house.enter()
        ledger, now = house.supervisor._ledger, trio.current_time()
        conn.last_active = now - 300.0
        ledger.look(conn.host, now - 0.01, now - 0.01)
        assert conn.end is None
        ledger.look(conn.host, now, now)
        assert reason(conn) is CloseReason.IDLE
