"""Limits that change while everything runs, and limits that are only watched."""

from __future__ import annotations

import time
from functools import partial

import pytest
import trio

from supervisor import CloseReason, Limits, Overflow, Policies, Refused, Timeouts, events
from tests.helpers import House, open_house, reason, settle, slow_to_leave
from tests.serving import connect, open_server, upgrade_head


async def try_to_enter(house: House, outcomes: list[str], user: str = "ann") -> None:
    try:
        outcomes.append((await house.enter(user)).id)
    except Refused as refusal:
        outcomes.append(refusal.error)


@pytest.mark.req("R49")
async def test_raising_lets_those_who_wait_in_at_once(autojump_clock) -> None:
    policies = Policies(overflow_user=Overflow.WAIT)
    async with open_house(limits=Limits(per_user=1), policies=policies) as house:
        await house.enter()
        outcomes: list[str] = []
        for _ in range(3):
            house.callers.start_soon(try_to_enter, house, outcomes)
        await settle()
        assert house.supervisor.statistics().waiting == 3
        now = trio.current_time()
        assert await house.supervisor.set_limits(per_user=3) == ()
        await settle()
        assert (house.ids("ann"), trio.current_time()) == (["c1", "c2", "c3"], now)
        assert house.supervisor.statistics().waiting == 1


@pytest.mark.req("R49")
async def test_raising_gives_seats_to_those_who_wait_for_the_slow(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=1)) as house:
        await house.enter(handler=slow_to_leave(0.3))
        house.callers.start_soon(house.enter)
        await settle()
        (newcomer,) = house.supervisor.connections()
        assert not newcomer.begun
        await house.supervisor.set_limits(per_user=2)
        await settle()
        assert newcomer.begun


@pytest.mark.req("R49")
@pytest.mark.parametrize(
    ("policy", "stay"),
    [
        (Overflow.EVICT_OLDEST, ["c4", "c5"]),
        (Overflow.EVICT_IDLEST, ["c1", "c5"]),
        (Overflow.REJECT, ["c1", "c2"]),
        (Overflow.WAIT, ["c1", "c2"]),
    ],
)
async def test_lowering_evicts_by_policy(autojump_clock, policy: Overflow, stay: list[str]) -> None:
    async with open_house(limits=Limits(per_user=5), policies=Policies(overflow_user=policy)) as house:
        conns = await house.fill(5)
        await trio.sleep(1)
        for conn in (conns[4], conns[0]):
            house.supervisor._ledger.touch(conn)
        closed = await house.supervisor.set_limits(per_user=2)
        assert house.ids() == stay
        assert {record.reason for record in closed} == {CloseReason.EVICTED}
        assert closed[0].end.text == "user 'ann' exceeded maximum connections per user limit (5/2)"
        (changed,) = house.told(events.LimitsChanged)
        assert (changed.before.per_user, changed.after.per_user) == (5, 2)
        assert set(changed.ended) == {record.connection for record in closed}


@pytest.mark.req("R49")
async def test_lowering_the_total_takes_from_the_greediest(autojump_clock) -> None:
    policies = Policies(overflow_total=Overflow.EVICT_GREEDIEST)
    async with open_house(limits=Limits(total=10), policies=policies) as house:
        await house.fill(4, "ann")
        await house.fill(2, "bob")
        await house.supervisor.set_limits(total=4)
        assert house.ids() == ["c3", "c4", "c5", "c6"]


@pytest.mark.req("R49", "R01")
async def test_after_lowering_the_slow_to_leave_cannot_hold_up_anybody(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=4)) as house:
        await house.fill(4, handler=slow_to_leave(0.4))
        house.callers.start_soon(partial(house.supervisor.set_limits, per_user=1))
        await settle()
        assert house.supervisor.audit() == ()
        now = trio.current_time()
        newcomer = await house.enter()
        assert trio.current_time() - now <= Timeouts().evict
        assert house.ids() == [newcomer.id]


@pytest.mark.req("R49", "R06")
async def test_times_count_anew(autojump_clock) -> None:
    async with open_house() as house:
        idle, young = await house.fill(2)
        await trio.sleep(20)
        house.supervisor._ledger.touch(young)
        closed = await house.supervisor.set_limits(idle_ttl=10)
        assert [record.connection for record in closed] == [idle.id]
        await trio.sleep(10.001)
        assert reason(young) is CloseReason.IDLE
        old = await house.enter()
        await house.supervisor.set_limits(idle_ttl=300, lifetime=5)
        await trio.sleep(5.001)
        assert reason(old) is CloseReason.LIFETIME


@pytest.mark.req("R49", "R37")
async def test_rates_change_too(autojump_clock) -> None:
    async with open_house() as house:
        await house.supervisor.set_limits(connect_rate_user="1/10s")
        outcomes: list[str] = []
        for _ in range(2):
            await try_to_enter(house, outcomes)
        await house.supervisor.set_limits(connect_rate_user=None)
        await try_to_enter(house, outcomes)
        assert outcomes == ["c1", "rate_limited", "c3"]


@pytest.mark.req("R49")
async def test_what_cannot_be_a_limit_changes_nothing(autojump_clock) -> None:
    async with open_house() as house:
        before = house.supervisor.limits
        with pytest.raises(ValueError, match="per_user must be a whole number"):
            await house.supervisor.set_limits(per_user=0)
        with pytest.raises(TypeError, match="per_uesr"):
            await house.supervisor.set_limits(per_uesr=3)
        assert house.supervisor.limits is before
        assert house.told(events.LimitsChanged) == []


# -- only watched ----------------------------------------------------------------------------------------------

WATCHED = Limits(per_user=2, total=4, idle_ttl=100, lifetime=250, enforce=False)


@pytest.mark.req("R49")
@pytest.mark.parametrize(
    ("policy", "whom", "why"),
    [
        (Overflow.EVICT_OLDEST, "c1", CloseReason.EVICTED),
        (Overflow.REJECT, "c3", CloseReason.LIMIT_REACHED),
        (Overflow.WAIT, "c3", CloseReason.LIMIT_REACHED),
    ],
)
async def test_nobody_is_refused_or_evicted_and_it_is_said_who_would_be(
    autojump_clock, policy: Overflow, whom: str, why: CloseReason
) -> None:
    async with open_house(limits=WATCHED, policies=Policies(overflow_user=policy)) as house:
        await house.fill(3)
        assert house.ids() == ["c1", "c2", "c3"]
        (spared,) = house.told(events.Spared)
        assert (spared.connection, spared.reason) == (whom, why)
        assert spared.text == "user 'ann' exceeded maximum connections per user limit (2/2)"
        figures = house.supervisor.statistics()
        assert (figures.spared, figures.users_at_limit, figures.enforce) == ({why.name.lower(): 1}, 1, False)


@pytest.mark.req("R49")
async def test_nobody_is_expired_or_shed_and_each_is_named_once_in_a_ttl(autojump_clock) -> None:
    async with open_house(limits=WATCHED) as house:
        conn = await house.enter()
        await trio.sleep(220)
        assert [event.at for event in house.told(events.Spared)] == [100.0, 200.0]
        await trio.sleep(300)
        reasons = [event.reason for event in house.told(events.Spared)]
        assert reasons.count(CloseReason.LIFETIME) == 1
        assert reasons.count(CloseReason.IDLE) == 4
        assert conn.end is None
        await house.fill(3)  # beyond the high-water mark each time
        assert house.told(events.EmergencyCleanup) == []


@pytest.mark.req("R49", "R13")
async def test_who_would_be_shed_is_named(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=5, idle_ttl=100, enforce=False)) as house:
        await house.fill(4)
        await trio.sleep(60)
        await house.fill(2)
        shed = [event.connection for event in house.told(events.Spared) if event.reason is CloseReason.SHED]
        assert shed == ["c1", "c2", "c3"]
        assert len(house.ids()) == 6


@pytest.mark.req("R49")
async def test_enforcing_again_ends_what_is_beyond(autojump_clock) -> None:
    async with open_house(limits=WATCHED) as house:
        await house.fill(4)
        closed = await house.supervisor.set_limits(enforce=True)
        assert [record.connection for record in closed] == ["c1", "c2"]
        assert house.ids() == ["c3", "c4"]


@pytest.mark.req("R49")
async def test_what_protects_the_process_is_in_force(autojump_clock) -> None:
    async with open_house(limits=WATCHED) as house:
        conn = await house.enter(expires_at=time.time() + 5)
        await trio.sleep(6)
        assert reason(conn) is CloseReason.CREDENTIAL_EXPIRED


@pytest.mark.req("R49")
async def test_a_credential_that_is_renewed_after_the_lifetime_ends_nobody(autojump_clock) -> None:
    async with open_house(limits=Limits(lifetime=60, enforce=False)) as house:
        conn = await house.enter()
        await trio.sleep(200)
        house.supervisor._ledger.renew(conn, time.time() + 100)
        await trio.sleep(50)
        assert conn.serving
        await trio.sleep(60)
        assert reason(conn) is CloseReason.CREDENTIAL_EXPIRED


@pytest.mark.req("R49")
@pytest.mark.parametrize(
    ("name", "value"), [("total", 10**400), ("idle_ttl", 1e-12), ("idle_ttl", 10**400), ("lifetime", 1e300)]
)
async def test_what_is_too_small_or_too_large_is_no_limit(autojump_clock, name: str, value: float) -> None:
    async with open_house() as house:
        with pytest.raises(ValueError, match=name):
            await house.supervisor.set_limits(**{name: value})


# -- on a server -----------------------------------------------------------------------------------------------


@pytest.mark.req("R49", "R37")
async def test_a_server_follows() -> None:
    async with open_server() as server:
        for rate, statuses in (("1/60s", [101, 429]), (None, [101, 101])):
            await server.supervisor.set_limits(connect_rate_address=rate)
            for expected in statuses:
                async with connect(server) as raw:
                    await raw.send(upgrade_head())
                    assert (await raw.response())[0] == expected
