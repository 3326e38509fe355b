"""Who comes in, who is refused, who leaves for whom."""

from __future__ import annotations

import contextlib
import gc
from functools import partial

import pytest
import trio

from supervisor import (
    CloseReason,
    Draining,
    HardLimitReached,
    Identity,
    LimitReached,
    Limits,
    Overflow,
    Policies,
    Refused,
    Superseded,
    Timeouts,
    events,
    open_supervisor,
)
from supervisor.testing import FaultWire, Peer
from tests.helpers import open_house, reason, settle, sleeper, slow_to_leave
from tests.serving import connect, open_server

REJECT = Policies(overflow_user=Overflow.REJECT)
WAIT = Policies(overflow_user=Overflow.WAIT)


@pytest.mark.req("R01", "R03")
@pytest.mark.parametrize("limit", [1, 5, 20])
async def test_the_oldest_leaves_for_the_newcomer(autojump_clock, limit: int) -> None:
    async with open_house(limits=Limits(per_user=limit)) as house:
        conns = await house.fill(limit + 1)
        assert reason(conns[0]) is CloseReason.EVICTED
        sentence = f"user 'ann' exceeded maximum connections per user limit ({limit}/{limit})"
        assert conns[0].end.text == sentence
        assert house.ids() == [conn.id for conn in conns[1:]]
        assert all(conn.end is None for conn in conns[1:])


@pytest.mark.req("R01")
@pytest.mark.parametrize("limit", [5, 20])
@pytest.mark.parametrize("policies", [Policies(), REJECT], ids=["evict", "reject"])
async def test_a_thousand_at_once_never_exceed_the_limit(autojump_clock, limit: int, policies: Policies) -> None:
    peak = inside = 0

    async def handler(conn) -> None:
        nonlocal peak, inside
        inside += 1
        peak = max(peak, inside, conn.supervisor.statistics().seats)
        try:
            await trio.sleep_forever()
        finally:
            inside -= 1

    outcomes: list[object] = []

    async def connect(house) -> None:
        try:
            outcomes.append(await house.supervisor.supervise(FaultWire(), Identity(user="ann"), handler))
        except LimitReached as refused:
            outcomes.append(type(refused))
        except Superseded as refused:
            outcomes.append(type(refused))

    async with open_house(limits=Limits(per_user=limit), policies=policies) as house:
        for _ in range(1000):
            house.callers.start_soon(connect, house)
        await settle()
        assert len(house.ids()) == limit
        assert house.supervisor.statistics().seats == limit
    assert peak == limit
    assert len(outcomes) == 1000


@pytest.mark.req("R03")
async def test_the_idlest_leaves(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=3), policies=Policies(overflow_user=Overflow.EVICT_IDLEST)) as house:
        first, second, third = await house.fill(3)
        await trio.sleep(1)
        await first.send("activity")
        await third.send("activity")
        await house.enter()
        assert [reason(it) for it in (first, second, third)] == [None, CloseReason.EVICTED, None]


@pytest.mark.req("R02", "R03")
async def test_the_greediest_user_gives_a_seat(autojump_clock) -> None:
    policies = Policies(overflow_total=Overflow.EVICT_GREEDIEST)
    async with open_house(limits=Limits(per_user=5, total=6), policies=policies) as house:
        await house.fill(2, "bob")
        greedy = await house.fill(4, "ann")
        await house.enter("cid")
        assert reason(greedy[0]) is CloseReason.EVICTED
        assert len(house.ids("bob")) == 2


@pytest.mark.req("R02", "R05")
@pytest.mark.parametrize("policy", [Overflow.REJECT, Overflow.EVICT_OLDEST, Overflow.EVICT_IDLEST])
async def test_two_hundred_users_fill_the_house(autojump_clock, policy: Overflow) -> None:
    async with open_house(limits=Limits(per_user=5, total=1000), policies=Policies(overflow_total=policy)) as house:
        for number in range(200):
            await house.fill(5, f"user-{number}")
        assert house.supervisor.statistics().connections == 1000
        assert all(len(house.ids(f"user-{number}")) == 5 for number in range(200))
        if policy is Overflow.REJECT:
            with pytest.raises(LimitReached) as refused:
                await house.enter("late")
            assert (refused.value.limit, refused.value.current, refused.value.maximum) == ("total", 1000, 1000)
            assert refused.value.status == 503
            assert str(refused.value) == "user 'late' exceeded maximum connections total limit (1000/1000)"
        else:
            await house.enter("late")
            assert len(house.ids("user-0")) == 4
            assert house.supervisor.statistics().connections == 1000


@pytest.mark.req("R03")
async def test_reject_says_what_is_full(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=20), policies=REJECT) as house:
        await house.fill(20)
        with pytest.raises(LimitReached) as refused:
            await house.enter()
        assert str(refused.value) == "user 'ann' exceeded maximum connections per user limit (20/20)"
        assert (refused.value.user, refused.value.limit) == ("ann", "per user")
        assert (refused.value.status, refused.value.retry_after) == (429, 1.0)
        (event,) = house.told(events.Refused)
        assert event.text == str(refused.value)


@pytest.mark.req("R04")
@pytest.mark.parametrize("limit", [5, 20])
async def test_after_some_leave_exactly_as_many_enter(autojump_clock, limit: int) -> None:
    async with open_house(limits=Limits(per_user=limit), policies=REJECT) as house:
        conns = await house.fill(limit)
        for leaving in range(1, limit + 1):
            for conn in house.supervisor.connections()[:leaving]:
                conn.close()
            await house.fill(leaving)
            with pytest.raises(LimitReached):
                await house.enter()
        assert len(conns) == limit


@pytest.mark.req("R03")
async def test_who_waits_gets_the_next_claim_in_order(autojump_clock) -> None:
    entered: list[str] = []

    async def wait_for_seat(house, name: str) -> None:
        await house.supervisor.start(FaultWire(), Identity(user="ann"), sleeper)
        entered.append(name)

    async with open_house(limits=Limits(per_user=1), policies=WAIT) as house:
        (conn,) = await house.fill(1)
        for name in ("first", "second"):
            house.callers.start_soon(wait_for_seat, house, name)
            await settle()
        assert house.supervisor.statistics().waiting == 2
        conn.close()
        await settle()
        assert entered == ["first"]
        house.supervisor.connections()[0].close()
        await settle()
        assert entered == ["first", "second"]


@pytest.mark.req("R03")
@pytest.mark.parametrize(
    ("limits", "policies", "limit", "status"),
    [
        (Limits(per_user=1), WAIT, "per user", 429),
        (Limits(total=1), Policies(overflow_total=Overflow.WAIT), "total", 503),
    ],
    ids=["per user", "total"],
)
async def test_who_waits_too_long_is_refused(
    autojump_clock, limits: Limits, policies: Policies, limit: str, status: int
) -> None:
    async with open_house(limits=limits, policies=policies, timeouts=Timeouts(wait=3)) as house:
        await house.enter()
        before = trio.current_time()
        with pytest.raises(LimitReached) as refused:
            await house.enter()
        assert trio.current_time() - before == pytest.approx(3)
        assert str(refused.value) == f"user 'ann' exceeded maximum connections {limit} limit (1/1)"
        assert (refused.value.limit, refused.value.status) == (limit, status)
        (event,) = house.told(events.Refused)
        assert (event.reason, event.text, event.hard) == (CloseReason.LIMIT_REACHED, str(refused.value), False)


@pytest.mark.req("R03")
async def test_beyond_those_who_may_wait_a_newcomer_is_refused_at_once(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=1, lobby=1), policies=WAIT) as house:
        conn = await house.enter()
        house.callers.start_soon(house.enter)
        await settle()
        before = trio.current_time()
        with pytest.raises(LimitReached) as refused:
            await house.enter()
        assert trio.current_time() == before
        assert str(refused.value) == "user 'ann' exceeded maximum connections per user limit (1/1)"
        assert [event.text for event in house.told(events.Refused)] == [str(refused.value)]
        assert house.supervisor.statistics().waiting == 1
        conn.close()
        await settle()


@pytest.mark.req("R03", "R43")
async def test_who_waited_for_a_claim_takes_the_seat_of_who_is_slow_to_leave_after_100_ms(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=1), policies=WAIT) as house:
        conn = await house.enter(handler=slow_to_leave(0.4))
        house.callers.start_soon(house.enter)
        await settle()
        conn.close()
        left = trio.current_time()
        await trio.sleep(0.3)
        assert [event.at - left for event in house.told(events.Admitted)[1:]] == pytest.approx([0.1])


@pytest.mark.req("R03", "R06")
async def test_who_waits_gets_the_claim_of_who_has_expired_and_an_idle_time_of_its_own(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=1, idle_ttl=10), policies=WAIT, timeouts=Timeouts(wait=60)) as house:
        first = await house.enter(handler=slow_to_leave(0.4))
        await trio.sleep(2)
        house.callers.start_soon(house.enter)
        await trio.sleep(8)
        await settle()
        assert (reason(first), house.supervisor.statistics().waiting) == (CloseReason.IDLE, 0)
        second = house.supervisor.connection(house.ids()[0])
        before = trio.current_time()
        await second.wait_gone()
        assert (reason(second), trio.current_time() - before) == (CloseReason.IDLE, pytest.approx(10))


async def test_who_waits_is_refused_when_the_house_drains(autojump_clock) -> None:
    async def wait(house) -> None:
        with pytest.raises(Draining):
            await house.enter("ann")

    policies = Policies(overflow_total=Overflow.WAIT)
    async with open_house(limits=Limits(total=1), policies=policies) as house:
        await house.enter("bob")
        house.callers.start_soon(wait, house)
        await settle()
        await house.supervisor.drain()
        with pytest.raises(Draining, match=r"^draining: no new connections are admitted$"):
            await house.enter("cid")
        refused = [(event.identity.user, event.reason) for event in house.told(events.Refused)]
        assert refused == [("ann", CloseReason.RESTART), ("cid", CloseReason.RESTART)]


@pytest.mark.req("R03")
async def test_a_waiting_newcomer_can_be_superseded(autojump_clock) -> None:
    """Slow leavers keep the seats for 100 ms; who waits for them can lose its claim to a newer one."""

    async def superseded(house) -> None:
        with pytest.raises(Superseded) as refused:
            await house.enter()
        assert refused.value.reason is CloseReason.EVICTED
        assert refused.value.status == 429
        assert str(refused.value) == "user 'ann' exceeded maximum connections per user limit (1/1)"

    async with open_house(limits=Limits(per_user=1)) as house:
        await house.enter(handler=slow_to_leave(0.05))
        house.callers.start_soon(superseded, house)
        await settle()
        newest = await house.enter()
        assert house.ids() == [newest.id]
        (event,) = house.told(events.Refused)
        assert event.reason is CloseReason.EVICTED
        assert event.text == "user 'ann' exceeded maximum connections per user limit (1/1)"


@pytest.mark.req("R12", "R43")
async def test_a_newcomer_takes_the_seat_of_who_is_slow_to_leave_after_100_ms(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=20)) as house:
        await house.fill(20, handler=slow_to_leave(0.4))
        before = trio.current_time()
        await house.enter()
        assert trio.current_time() - before == pytest.approx(0.1)
        assert house.supervisor.statistics().seats == 20


@pytest.mark.req("R43")
async def test_a_newcomer_takes_only_the_seats_that_it_needs(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=2)) as house:
        first, second = await house.fill(2, handler=slow_to_leave(0.4))
        first.close()
        second.close()
        newcomer = await house.enter()
        assert [len(conn.seats) for conn in (first, second, newcomer)] == [0, 2, 2]


@pytest.mark.req("R43")
async def test_who_leaves_just_in_time_keeps_its_seats(autojump_clock) -> None:
    """Twenty times, since the newcomer and the one that leaves wake in one batch, which Trio shuffles."""
    held: list[int] = []

    async def just_in_time(conn) -> None:
        try:
            await slow_to_leave(0.1)(conn)
        finally:
            held.append(len(conn.seats))

    async with open_house(limits=Limits(per_user=1)) as house:
        for _ in range(20):
            await house.enter(handler=just_in_time)
            newcomer = await house.enter()
            newcomer.close()
            await settle()
    assert held == [2] * 20


@pytest.mark.req("R43")
async def test_a_keeper_that_looks_does_not_prolong_the_wait_for_a_seat(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=2)) as house:
        await house.enter(handler=slow_to_leave(0.4))
        wire = FaultWire()
        await house.enter(wire=wire)
        await trio.sleep(19.95)
        before = trio.current_time()
        await house.enter()
        assert trio.current_time() - before == pytest.approx(0.1)
        assert wire.pings == 1


@pytest.mark.req("R12")
async def test_a_handler_whose_seats_were_taken_counts_as_stuck(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=1, stuck=0)) as house:
        await house.enter(handler=slow_to_leave(0.4))
        await house.enter()
        with pytest.raises(HardLimitReached) as refused:
            await house.enter()
        assert str(refused.value) == "HARD LIMIT: user 'ann' still over limit after cleanup (1/1, 1 stuck)"
        await trio.sleep(0.4)
        await house.enter()


@pytest.mark.req("R12")
async def test_a_handler_that_has_its_seats_still_is_not_stuck(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=2, stuck=0)) as house:
        await house.fill(2, handler=slow_to_leave(0.05))
        async with trio.open_nursery() as nursery:
            for _ in range(2):
                nursery.start_soon(house.enter)
        assert len(house.ids()) == 2
        assert house.told(events.Refused) == []


@pytest.mark.req("R12")
async def test_too_many_stuck_handlers_are_the_hard_limit(autojump_clock) -> None:
    async def stubborn(conn) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    async with open_house(limits=Limits(per_user=20)) as house:
        conns = await house.fill(21, handler=stubborn)
        for conn in conns[1:]:
            conn.close()
        await trio.sleep(0.5)
        await settle()
        assert house.supervisor.statistics().stuck == 21
        before = trio.current_time()
        with pytest.raises(HardLimitReached) as refused:
            await house.enter()
        assert trio.current_time() - before <= 0.1
        assert str(refused.value) == "HARD LIMIT: user 'ann' still over limit after cleanup (20/20, 21 stuck)"
        (event,) = house.told(events.Refused)
        assert (event.reason, event.text, event.hard) == (CloseReason.LIMIT_REACHED, str(refused.value), True)
        await house.enter("bob")  # nobody else's business
        await trio.sleep(60)
        await settle()
        await house.enter()  # they have returned after all


@pytest.mark.req("R01", "R12")
async def test_newcomers_who_are_evicted_while_they_wait_are_not_stuck(autojump_clock) -> None:
    """They have no handler yet, so there is nothing of theirs that could be stuck."""
    refused = []

    async def arrive() -> None:
        try:
            await house.supervisor.start(FaultWire(), Identity(user="ann"), sleeper)
        except (Superseded, HardLimitReached) as refusal:
            refused.append(type(refusal))

    async with open_house(limits=Limits(per_user=5, stuck=0)) as house:
        await house.fill(5)
        async with trio.open_nursery() as nursery:
            for _ in range(50):
                nursery.start_soon(arrive)
        assert refused == [Superseded] * 45


@pytest.mark.req("R05")
async def test_ten_users_hold_their_full_share(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=5), policies=REJECT) as house:
        for number in range(10):
            await house.fill(5, f"user-{number}")
        for number in range(10):
            with pytest.raises(LimitReached):
                await house.enter(f"user-{number}")
        assert house.supervisor.statistics().connections == 50


@pytest.mark.req("R03")
async def test_evicting_ones_own_makes_room_in_the_total_too(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=2, total=2)) as house:
        first, _ = await house.fill(2)
        await house.enter()
        assert reason(first) is CloseReason.EVICTED
        with pytest.raises(LimitReached, match="total limit"):
            await house.enter("bob")


async def test_a_caller_that_gives_up_while_waiting_was_never_here(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=1), policies=WAIT, timeouts=Timeouts(wait=60)) as house:
        await house.enter()
        with trio.move_on_after(1) as patience:
            await house.supervisor.supervise(FaultWire(), Identity(user="ann"), sleeper)
        assert patience.cancelled_caught
        assert house.supervisor.statistics().waiting == 0
        assert len(house.ids()) == 1


async def test_two_users_named_alike_are_two(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=1)) as house:
        for name in ("0", "00", "False", " ", "Ann", "ann", "ann ", "ａnn", "__proto__"):
            await house.enter(name)
        assert house.supervisor.statistics().users == 9


@pytest.mark.req("R21")
@pytest.mark.parametrize("policy", [Overflow.REJECT, Overflow.WAIT, Overflow.EVICT_OLDEST])
async def test_no_refusal_leaves_cyclic_garbage(autojump_clock, policy: Overflow) -> None:
    """Whoever floods a full house must not make work for the collector."""

    async def knock() -> None:
        with contextlib.suppress(LimitReached, Superseded):
            conn = await supervisor.start(FaultWire(), Identity(user="ann"), sleeper)
            await conn.wait_gone()

    policies = Policies(overflow_user=policy, overflow_total=policy)
    async with open_supervisor(limits=Limits(per_user=1, total=1), policies=policies) as supervisor:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(knock)
            await settle()
            gc.collect()
            gc.disable()
            for _ in range(5):
                nursery.start_soon(knock)
            await trio.sleep(10)
            left = gc.collect()
            gc.enable()
            nursery.cancel_scope.cancel()
        assert left == 0
        assert sum(supervisor.statistics().refused.values()) >= 4


def test_partial_is_not_a_policy() -> None:
    with pytest.raises(ValueError, match="evict-greediest compares users"):
        Policies(overflow_user=Overflow.EVICT_GREEDIEST)
    with pytest.raises(ValueError, match="evict-youngest"):
        partial(Policies, overflow_user="evict-youngest")()


# -- taking over -----------------------------------------------------------------------------------------------


@pytest.mark.req("R28", "R39")
async def test_a_client_that_comes_back_takes_the_place_of_its_own_dead_socket(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=2)) as house:
        dead = await house.enter(session="phone", wire=FaultWire(kind=Peer.MUTE))
        other = await house.enter(session="laptop")
        for _ in range(100):
            back = await house.enter(session="phone", takes_over=True)
            assert house.ids() == [other.id, back.id]
        assert reason(dead) is CloseReason.TAKEN_OVER
        assert reason(other) is None
        assert house.told(events.EmergencyCleanup) == []
        await trio.sleep(1)
        assert house.supervisor.statistics().closed == {"taken_over": 100}


@pytest.mark.req("R29")
async def test_only_ones_own_session_is_taken_over_and_only_if_it_is_asked_for(autojump_clock) -> None:
    async with open_house() as house:
        await house.enter("ann", session="s")
        await house.enter("ann")
        await house.enter("bob", session="s", takes_over=True)
        await house.enter("ann", session="s")
        await house.enter("ann", takes_over=True)
        assert house.ids() == ["c1", "c2", "c3", "c4", "c5"]


@pytest.mark.req("R39")
async def test_who_waits_for_a_place_is_taken_over_too(autojump_clock) -> None:
    policies = Policies(overflow_user=Overflow.WAIT)
    async with open_house(limits=Limits(per_user=1), policies=policies) as house:
        await house.enter()
        refusals: list[str] = []

        async def come() -> None:
            try:
                await house.enter(session="s", takes_over=True)
            except Refused as refusal:
                refusals.append(str(refusal))

        for _ in range(2):
            house.callers.start_soon(come)
            await settle()
        assert refusals == ["taken over by a newer connection of its session"]
        assert house.supervisor.statistics().waiting == 1


@pytest.mark.req("R39")
async def test_taking_over_on_a_server() -> None:
    async with open_server() as server, connect(server) as first, connect(server) as second:
        await first.upgrade("/ws?user=ann&session=s&takeover=1")
        await first.message()
        await second.upgrade("/ws?user=ann&session=s&takeover=1")
        assert await first.closed_with() == (4505, "taken over by a newer connection of its session")
        assert len(server.supervisor.connections(user="ann")) == 1


@pytest.mark.req("R39")
async def test_an_attempt_that_was_given_up_does_not_take_over_from_a_later_one(autojump_clock) -> None:
    async with open_house() as house:
        last = await house.enter(session="phone", takes_over=1002)
        with pytest.raises(Superseded, match="taken over by a newer connection"):
            await house.enter(session="phone", takes_over=1001)
        assert last.end is None
        again = await house.enter(session="phone", takes_over=1002)
        assert (last.end.reason, again.end) == (CloseReason.TAKEN_OVER, None)
