"""Emergency cleanup: when it starts, whom it takes, when it stops."""

from __future__ import annotations

import pytest
import trio

from supervisor import CloseReason, Identity, LimitReached, Limits, Overflow, Policies, Timeouts, events
from supervisor._decisions.shedding import excess
from supervisor.testing import FaultWire
from tests.helpers import open_house, reason, settle, sleeper, slow_to_leave

REJECT = Policies(overflow_user=Overflow.REJECT)


async def says_hello(conn) -> None:
    await conn.send("hello")
    await trio.sleep_forever()


@pytest.mark.req("R13")
@pytest.mark.parametrize(
    ("limit", "starts_at", "left"),
    [
        *[(1, 1, 0), (2, 2, 1), (3, 3, 2), (5, 4, 3), (10, 8, 7), (20, 16, 14), (100, 80, 70), (1000, 800, 700)],
        (90, 72, 63),  # 90 * 0.7 is a hair less than 63
    ],
)
def test_the_marks(limit: int, starts_at: int, left: int) -> None:
    policies = Policies()
    assert excess(starts_at - 1, limit, policies) == 0
    assert excess(starts_at, limit, policies) == starts_at - left
    assert excess(limit + 1, limit, policies) == limit + 1 - left


@pytest.mark.req("R13")
async def test_long_idle_connections_go_at_eighty_percent(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=20, idle_ttl=300)) as house:
        idle = await house.fill(15)
        await trio.sleep(150)
        newcomer = await house.enter()
        assert [reason(conn) for conn in idle] == [CloseReason.SHED] * 2 + [None] * 13
        assert newcomer.end is None
        assert len(house.ids()) == 14
        (event,) = house.told(events.EmergencyCleanup)
        assert (event.limit, event.before, event.shed) == ("user 'ann'", 15, (idle[0].id, idle[1].id))


@pytest.mark.req("R13")
async def test_the_unresponsive_go_before_the_idle(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=20)) as house:
        idle = await house.fill(14)
        mute = await house.enter(wire=FaultWire(answers_pings=False))
        await trio.sleep(160)  # pinged every 20 s; the answers came, but for the last one
        assert reason(mute) is CloseReason.UNRESPONSIVE
        mute = await house.enter(wire=FaultWire(answers_pings=False))
        await trio.sleep(22)
        assert mute.end is None
        await house.enter()
        assert reason(mute) is CloseReason.SHED
        assert sum(reason(conn) is CloseReason.SHED for conn in idle) == 1


@pytest.mark.req("R13")
async def test_five_fresh_tabs_stay_and_a_sixth_evicts(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=5)) as house:
        tabs = await house.fill(5)
        await trio.sleep(149)
        assert len(house.ids()) == 5
        await house.enter()
        assert [reason(tab) for tab in tabs] == [CloseReason.EVICTED, None, None, None, None]
        assert house.told(events.EmergencyCleanup) == []


@pytest.mark.req("R13", "R14")
async def test_nobody_is_refused_while_anything_is_reclaimable(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=5), policies=REJECT) as house:
        await house.fill(5)
        with pytest.raises(LimitReached):
            await house.enter()
        await trio.sleep(150)
        before = trio.current_time()
        await house.enter()
        assert trio.current_time() - before <= 0.1
        assert len(house.ids()) == 3


@pytest.mark.req("R13")
async def test_the_total_is_relieved_too(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=5, total=10)) as house:
        for number in range(7):
            await house.enter(f"user-{number}")
        await trio.sleep(200)
        await house.enter("late")
        assert house.supervisor.statistics().connections == 7
        assert house.told(events.EmergencyCleanup)[0].limit == "total"


@pytest.mark.req("R13", "R17")
async def test_shedding_by_hand_takes_what_is_reclaimable_and_says_so(autojump_clock) -> None:
    async with open_house(timeouts=Timeouts(pong=1000)) as house:
        idle = await house.enter()
        mute = await house.enter(wire=FaultWire(answers_pings=False))  # idle too, and counted once
        await trio.sleep(200)
        fresh = await house.fill(2, "bob")
        records = await house.supervisor.shed()
        assert [record.connection for record in records] == [mute.id, idle.id]
        assert {record.reason for record in records} == {CloseReason.SHED}
        (event,) = house.told(events.EmergencyCleanup)
        assert (event.limit, event.before, event.shed) == ("total", 4, (mute.id, idle.id))
        assert all(conn.end is None for conn in fresh)
        assert await house.supervisor.shed() == ()


@pytest.mark.req("R52")
async def test_a_stalled_write_makes_a_suspect(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=5)) as house:
        stalled = await house.enter(handler=says_hello, wire=FaultWire("never-reads"))
        await house.fill(2)
        await trio.sleep(2)
        await house.enter()
        assert reason(stalled) is CloseReason.SHED


FRESH = {
    "ping": (sleeper, "mute", 20.5),
    "write": (says_hello, "never-reads", 0.5),
}


@pytest.mark.req("R13")
@pytest.mark.parametrize("outstanding", FRESH)
async def test_a_moment_without_an_answer_makes_nobody_reclaimable(autojump_clock, outstanding: str) -> None:
    handler, kind, seconds = FRESH[outstanding]
    async with open_house(limits=Limits(per_user=5)) as house:
        waiting = await house.enter(handler=handler, wire=FaultWire(kind))
        await house.fill(2)
        await trio.sleep(seconds)
        assert waiting in house.supervisor._ledger.total.suspects
        await house.enter()
        assert waiting.end is None
        await trio.sleep(0.5)
        await house.enter()
        assert reason(waiting) is CloseReason.SHED


@pytest.mark.req("R13")
async def test_who_has_answered_a_ping_is_suspected_no_longer(autojump_clock) -> None:
    async with open_house() as house:
        suspects = house.supervisor._ledger.total.suspects
        wire = FaultWire("mute")
        conn = await house.enter(wire=wire)
        await trio.sleep(25)
        assert conn in suspects
        wire.become("healthy")
        await trio.sleep(20)
        assert conn not in suspects
        assert conn not in conn.host.roster.suspects


@pytest.mark.req("R13")
@pytest.mark.parametrize("way", ["send", "send_nowait"])
async def test_who_has_taken_a_message_is_suspected_no_longer(autojump_clock, way: str) -> None:
    async with open_house() as house:
        suspects = house.supervisor._ledger.total.suspects
        if way == "send":
            conn = await house.enter(handler=says_hello, wire=FaultWire("slow"))
        else:
            conn = await house.enter(wire=FaultWire("slow"))
            conn.send_nowait("hello")
        await trio.sleep(0.1)
        assert conn in suspects
        await trio.sleep(0.2)
        assert conn not in suspects
        assert conn not in conn.host.roster.suspects


@pytest.mark.req("R13")
async def test_how_long_idle_is_long_can_be_said(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=5), policies=Policies(shed_idle_after=10)) as house:
        conns = await house.fill(3)
        await trio.sleep(10)
        await house.enter()
        assert [reason(conn) for conn in conns] == [CloseReason.SHED, None, None]


@pytest.mark.req("R13")
async def test_who_waits_gets_the_claim_of_who_was_shed_by_hand(autojump_clock) -> None:
    policies = Policies(overflow_user=Overflow.WAIT, shed_idle_after=10)
    async with open_house(limits=Limits(per_user=1), policies=policies, timeouts=Timeouts(wait=60)) as house:
        idle = await house.enter(handler=slow_to_leave(0.4))
        house.callers.start_soon(house.enter)
        await trio.sleep(10)
        house.callers.start_soon(house.supervisor.shed)
        await settle()
        assert (reason(idle), house.supervisor.statistics().waiting) == (CloseReason.SHED, 0)
        await idle.wait_gone()
        assert len(house.ids()) == 1


@pytest.mark.req("R13")
async def test_sending_does_not_make_a_mute_peer_responsive(autojump_clock) -> None:
    async def ticks(conn) -> None:
        while True:
            await trio.sleep(0.5)
            await conn.send("tick")

    async with open_house(limits=Limits(per_user=5)) as house:
        mute = await house.enter(handler=ticks, wire=FaultWire(answers_pings=False))
        await trio.sleep(30.2)
        await house.supervisor.shed()
        assert reason(mute) is CloseReason.SHED


@pytest.mark.req("R13")
async def test_what_a_refused_newcomer_has_freed_is_given_to_who_waits(autojump_clock) -> None:
    """Emergency cleanup may free claims for a newcomer that is refused all the same; those who wait get them."""

    async def stubborn(conn) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(500)

    async def wait() -> None:
        await house.supervisor.start(FaultWire(), Identity(user="cid"), sleeper)

    policies = Policies(overflow_total=Overflow.WAIT)
    limits = Limits(per_user=2, total=2, stuck=0)
    async with open_house(limits=limits, policies=policies, timeouts=Timeouts(wait=1000)) as house:
        stuck = await house.enter("ann", handler=stubborn)
        await house.supervisor.disconnect(stuck.id)
        await house.fill(2, "bob")
        house.callers.start_soon(wait)
        await trio.sleep(160)
        with pytest.raises(LimitReached, match="HARD LIMIT"):
            await house.enter("ann")
        assert house.supervisor.audit() == ()
        assert len(house.ids("cid")) == 1
        await settle()
