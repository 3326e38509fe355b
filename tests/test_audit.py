"""The audit convicts what is wrong, and its health says whether it lives."""

from __future__ import annotations

import math

import pytest
import trio

from supervisor import CloseReason, Identity, Limits, Policies, Timeouts, choose_profile, events
from supervisor._decisions.ledger import Ledger
from supervisor._decisions.memberships import Group
from supervisor._decisions.roster import Roster
from supervisor._decisions.stay import Stage, Stay
from supervisor._mechanisms import audit as audit_module
from supervisor.testing import FaultWire
from tests.helpers import open_house

KICKED = CloseReason.KICKED
FORGERIES = {
    "gone, and still in the index": lambda ledger, conn: (
        ledger.leave(conn, KICKED),
        ledger.total.refile(conn, Stage.GONE),
    ),
    "missing in the index": lambda ledger, conn: ledger.connections.pop(conn.id),
    "orphan in a room": lambda ledger, conn: ledger.memberships.groups.update({Group("room", "r"): {conn: None}}),
    "empty room": lambda ledger, conn: ledger.memberships.groups.update({Group("room", "r"): {}}),
    "membership unknown": lambda ledger, conn: conn.groups.update({Group("room", "r"): None}),
    "token lost": lambda ledger, conn: ledger.total.seats.limiter.release_on_behalf_of(conn),
    "token stolen": lambda ledger, conn: ledger.total.seats.limiter.acquire_on_behalf_of_nowait("thief"),
    "filed twice": lambda ledger, conn: ledger.total.files[Stage.LEAVING].update({conn: None}),
    "not filed": lambda ledger, conn: conn.host.roster.files[Stage.CLAIM].pop(conn),
    "activity forgotten": lambda ledger, conn: ledger.total.by_activity.pop(conn),
    "false suspect": lambda ledger, conn: ledger.total.suspects.update({"nobody": None}),
    "false heir": lambda ledger, conn: conn.host.roster.seats.heirs.update({conn: None}),
    "another name": lambda ledger, conn: setattr(conn.host, "name", "bob"),
    "endless deadline": lambda ledger, conn: setattr(conn.scope, "deadline", math.inf),
    "no deadline": lambda ledger, conn: setattr(conn, "scope", None),
    "no task": lambda ledger, conn: setattr(conn, "task", None),
    "overslept": lambda ledger, conn: setattr(conn.host.alarm, "deadline", math.inf),
}


async def serving_stay(nursery: trio.Nursery, *, user: str) -> tuple[Ledger, Stay]:
    """A ledger with one serving connection and no keeper, so that nothing minds what is forged."""
    ledger = Ledger(Limits(), Timeouts(), Policies(), lambda user: None, Roster.of(10))
    stay = Stay(wire=FaultWire(), **ledger.credentials(Identity(user=user), trio.sleep_forever))
    ledger.admit(stay)
    stay.host.nursery, stay.host.alarm = nursery, trio.CancelScope(deadline=trio.current_time() + 1)
    nursery.start_soon(trio.sleep_forever)
    await trio.testing.wait_all_tasks_blocked()
    (task,) = nursery.child_tasks
    ledger.begin(stay, task, trio.CancelScope(), nursery)
    return ledger, stay


@pytest.mark.req("R10", "R18", "R42")
@pytest.mark.parametrize("forgery", FORGERIES)
async def test_every_forgery_is_convicted(autojump_clock, forgery: str) -> None:
    async with trio.open_nursery() as nursery:
        ledger, stay = await serving_stay(nursery, user="ann")
        assert audit_module.audit(ledger) == ()
        FORGERIES[forgery](ledger, stay)
        assert audit_module.audit(ledger) != ()
        nursery.cancel_scope.cancel()


@pytest.mark.req("R42")
async def test_over_the_limit_is_convicted(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=3)) as house:
        conns = await house.fill(3)
        seats = conns[0].host.roster.seats
        seats.maximum = 2
        assert house.supervisor.audit() == ("user 'ann': 3 claims, limit 2",)
        seats.maximum = 3
        seats.limiter.total_tokens = 4
        assert house.supervisor.audit() == ("user 'ann': 4 tokens, 3 of them out, limit 3",)
        seats.limiter.total_tokens = 3


@pytest.mark.req("R08", "R19")
async def test_the_periodic_audit_lives_and_says_so(autojump_clock) -> None:
    async with open_house(profile=choose_profile("test")) as house:
        health = house.supervisor.audit_health
        assert health.runs == 1  # before the first connection
        await trio.sleep(301)
        assert health.runs == 11
        assert not health.overdue(trio.current_time())
        assert health.overdue(trio.current_time() + 100)
        assert {event.orphans for event in house.told(events.Audited)} == {()}


@pytest.mark.req("R19")
async def test_an_audit_that_crashes_is_reported_and_comes_again(autojump_clock, monkeypatch) -> None:
    def crash(ledger: object) -> tuple[str, ...]:
        raise RuntimeError("audit raises")

    async with open_house(profile=choose_profile("test")) as house:
        monkeypatch.setattr(audit_module, "audit", crash)
        await trio.sleep(31)
        assert house.supervisor.audit_health.failures == 1
        assert house.supervisor.statistics().failures == {"audit": 1}
        monkeypatch.undo()
        await trio.sleep(31)
        assert house.supervisor.audit_health.runs == 2


@pytest.mark.req("R10", "R17")
async def test_nothing_needs_the_background_task(autojump_clock) -> None:
    """With the audit dead, everything is cleaned up all the same."""
    async with open_house(limits=Limits(idle_ttl=10)) as house:
        house.supervisor.audit_health.interval = math.inf
        await house.enter(wire=FaultWire("mute"))
        await trio.sleep(11)
        assert house.ids() == []
