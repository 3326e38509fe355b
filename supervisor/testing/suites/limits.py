"""Limits are exact, whoever comes, and however many at once."""

from __future__ import annotations

import trio

from ..._words.limits import Limits, Overflow, Policies
from ..checks import OURS, Budget, Level, check
from ..subject import Lab, Settings, Subject, expect
from ..wire import Peer
from ._crowd import BOUND, DELAY, all_at_once, closes, ends_by_itself, everybody_leaves, inside


async def _storm(subject: Subject, user: str) -> None:
    limit = subject.limits.per_user
    clients = await all_at_once(subject, [user] * (2 * limit))
    count = await subject.count(user)
    expect(count == limit, f"Expected {limit} connections, got {count}")
    await everybody_leaves(inside(clients))


@check("R01")
async def a_storm_never_exceeds_the_limit_of_a_user(lab: Lab, budget: Budget) -> None:
    async with lab.open() as subject:
        await _storm(subject, "verify-storm")


@check("R01", doors=OURS)
async def nor_a_limit_of_twenty(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(per_user=20))) as subject:
        await _storm(subject, "ann")


@check("R03", level=Level.UNIT)
async def the_oldest_leaves_for_a_newcomer(lab: Lab, budget: Budget) -> None:
    async with lab.open() as subject:
        limit = subject.limits.per_user
        clients = [await subject.connect("verify-oldest") for _ in range(limit + 1)]
        expect(not clients[-1].refused, f"the newcomer was refused: {clients[-1].text}")
        code = await closes(clients[0])
        expect(code == 4505, f"the oldest ended with {code}, expected 4505")
        count = await subject.count("verify-oldest")
        expect(count == limit, f"Expected {limit} connections, got {count}")
        await everybody_leaves(clients[1:])


@check("R02", doors=OURS)
async def a_full_server_refuses(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(per_user=5, total=10))) as subject:
        clients = await all_at_once(subject, ["ann", "bob"] * 5)
        late = await subject.connect("late")
        count = await subject.count()
        expect(count == 10, f"Expected 10 connections, got {count}")
        expect(late.status == 503, f"the eleventh was answered {late.status}, expected 503")
        expect("exceeded maximum connections total limit (10/10)" in late.text, f"it was told {late.text!r}")
        await everybody_leaves(inside(clients))


@check("R04", doors=OURS)
async def as_many_may_enter_as_have_left(lab: Lab, budget: Budget) -> None:
    async with lab.open(
        Settings(limits=Limits(per_user=5), policies=Policies(overflow_user=Overflow.REJECT))
    ) as subject:
        clients = [await subject.connect("ann") for _ in range(5)]
        for leaving in (1, 3, 5):
            await everybody_leaves(clients[:leaving])
            newcomers = inside(await all_at_once(subject, ["ann"] * 7))
            expect(len(newcomers) == leaving, f"{leaving} had left, {len(newcomers)} could enter")
            clients = clients[leaving:] + newcomers
        await everybody_leaves(clients)


@check("R05")
async def users_do_not_share_a_limit(lab: Lab, budget: Budget) -> None:
    async with lab.open() as subject:
        users = [f"verify-{number}" for number in range(10)]
        share = min(subject.limits.per_user, max(1, (subject.limits.total - await subject.count()) // 10))
        clients = await all_at_once(subject, users * share)
        for user in users:
            count = await subject.count(user)
            expect(count == share, f"Expected {share} connections of {user}, got {count}")
        await everybody_leaves(inside(clients))


@check("R13", doors=("memory",))
async def the_long_idle_make_room_before_anybody_is_refused(lab: Lab, budget: Budget) -> None:
    policies = Policies(overflow_user=Overflow.REJECT, sent_is_activity=False)
    async with lab.open(Settings(limits=Limits(per_user=20, idle_ttl=300), policies=policies)) as subject:
        clients = [await subject.connect("ann") for _ in range(20)]
        await trio.sleep(200)
        newcomer = await subject.connect("ann")
        expect(not newcomer.refused, f"refused, though 20 were long idle: {newcomer.text}")
        count = await subject.count("ann")
        expect(count <= 15, f"Expected at most 15 connections after an emergency, got {count}")
        await trio.sleep(BOUND)
        codes = {client.code for client in clients if client.code is not None}
        ends_by_itself(codes)
        expect(codes == {4006}, f"they ended with {codes}, expected 4006")


@check("R43", "R12", doors=OURS)
async def a_user_of_zombies_gets_in_at_once(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(per_user=20))) as subject:
        for _ in range(20):
            await subject.connect("ann", peer=Peer.NEVER_READS)
        before = trio.current_time()
        newcomer = await subject.connect("ann")
        took = trio.current_time() - before
        expect(not newcomer.refused, f"locked out by their own dead sockets: {newcomer.text}")
        expect(took <= 0.1 + (DELAY if lab.door != "memory" else 1e-6), f"the 21st had to wait for {took:.3f} s")
        await newcomer.leave()
