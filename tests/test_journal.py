"""The log: fixed names, who it is about in every line, nothing forged, floods counted."""

from __future__ import annotations

import logging

import attrs
import pytest
import trio

from supervisor import CloseReason, HardLimitReached, Identity, LimitReached, Limits, Overflow, Policies, events
from supervisor._decisions.floods import Floods
from supervisor._mechanisms.journal import spell
from supervisor._words.record import name_of, record
from supervisor.testing import FaultWire
from tests.helpers import House, open_house, sleeper, slow_to_leave

WHO = {"user": "ann", "session": "tab-1", "run": "r7", "request": "q9"}


def lines(caplog: pytest.LogCaptureFixture) -> list[logging.LogRecord]:
    return [line for line in caplog.records if line.name == "supervisor"]


def events_of_a_connection() -> list[type[events.Event]]:
    kinds = [kind for kind in vars(events).values() if isinstance(kind, type) and issubclass(kind, events.Event)]
    return [kind for kind in kinds if "identity" in attrs.fields_dict(kind)]


async def everything_happens(house: House) -> None:
    """Every event there is of one connection, by one user with every name there is."""

    async def fails(conn) -> None:
        raise RuntimeError("handler raises")

    await house.enter(handler=slow_to_leave(9), **{name: WHO[name] for name in ("session", "run", "request")})
    await house.supervisor.disconnect_user("ann")
    with pytest.raises(HardLimitReached):
        await house.enter(**{name: WHO[name] for name in ("session", "run", "request")})
    await trio.sleep(10)
    await house.enter(handler=fails, **{name: WHO[name] for name in ("session", "run", "request")})
    await house.supervisor.set_limits(enforce=False)
    for _ in range(2):
        await house.enter(**{name: WHO[name] for name in ("session", "run", "request")})


@pytest.mark.req("R35")
async def test_every_line_says_whom_it_is_about(autojump_clock, caplog) -> None:
    caplog.set_level(logging.DEBUG, "supervisor")
    async with open_house(limits=Limits(per_user=1, stuck=0)) as house:
        await everything_happens(house)
    about_somebody = [line for line in lines(caplog) if line.event.get("connection")]
    names = {line.event["event"] for line in about_somebody}
    assert names == {
        "admitted",
        "leaving",
        "handler_stuck",
        "refused",
        "handler_returned",
        "failed",
        "closed",
        "spared",
    }
    for line in about_somebody:
        assert {name: line.event[name] for name in WHO} == WHO
        assert line.getMessage().startswith(line.event["event"])
        assert f"connection={line.event['connection']} user=ann session=tab-1 run=r7 request=q9" in line.getMessage()


@pytest.mark.req("R35")
async def test_what_happens_to_the_house_has_lines_too(autojump_clock, caplog) -> None:
    caplog.set_level(logging.DEBUG, "supervisor")
    async with open_house(limits=Limits(per_user=5, idle_ttl=10)) as house:
        await house.fill(4)
        await trio.sleep(6)
        await house.enter()
        await house.supervisor.set_limits(per_user=3)
        await house.supervisor.drain()
    names = [line.event["event"] for line in lines(caplog)]
    assert {"audited", "emergency_cleanup", "limits_changed", "drain_started", "drain_finished"} <= set(names)
    (emergency,) = (line for line in lines(caplog) if line.event["event"] == "emergency_cleanup")
    assert (emergency.levelname, emergency.event["before"], len(emergency.event["shed"])) == ("WARNING", 4, 2)


@pytest.mark.req("R19", "R35")
async def test_a_failure_is_logged_with_its_traceback(autojump_clock, caplog) -> None:
    async def fails(conn) -> None:
        raise RuntimeError("handler raises")

    async with open_house() as house:
        await house.enter(handler=fails)
    (line,) = (line for line in lines(caplog) if line.event["event"] == "failed")
    assert line.getMessage() == "failed what=handler error='RuntimeError: handler raises' connection=c1 user=ann"
    assert "handler raises" in caplog.text
    assert "Traceback" in caplog.text


@pytest.mark.req("R35")
def test_what_others_choose_cannot_forge_a_line_or_a_field() -> None:
    identity = Identity(user="ann\nERROR user=bob", session="a session=b", run="None", request="\x1b[31m")
    admitted = events.Admitted(at=0.0, connection="c1", identity=identity, waited=0.25)
    assert spell(record(admitted)) == (
        r"admitted connection=c1 user='ann\nERROR user=bob' session='a session=b' run='None' request='\x1b[31m'"
        " waited=0.250"
    )


@pytest.mark.req("R35")
def test_what_is_long_is_cut() -> None:
    failed = events.Failed(at=0.0, what="handler", exception=RuntimeError("x" * 10_000))
    assert len(record(failed)["error"]) == 301
    shed = events.EmergencyCleanup(at=0.0, limit="total", before=900, shed=tuple(f"c{n}" for n in range(900)))
    assert len(record(shed)["shed"]) == 50


def test_names_are_fixed() -> None:
    assert {name_of(kind.__new__(kind)) for kind in vars(events).values() if _is_told(kind)} == {
        "admitted",
        "audited",
        "drain_finished",
        "drain_started",
        "emergency_cleanup",
        "failed",
        "handler_returned",
        "leaving",
        "limits_changed",
        "messages_lost",
        "node_connected",
        "node_disconnected",
        "node_lost",
        "ordered",
        "refused",
        "run_ended",
        "run_started",
        "run_stuck",
        "spared",
        "turned_away",
    }


def _is_told(kind: object) -> bool:
    return isinstance(kind, type) and issubclass(kind, events.Event) and kind not in (events.Event, events.Closed)


# -- floods ----------------------------------------------------------------------------------------------------


def test_of_too_many_the_rest_is_counted() -> None:
    floods = Floods(most=2, window=10.0)
    assert floods.ebb(100.0) == {}
    assert [floods.passes("a") for _ in range(5)] == [True, True, False, False, False]
    assert floods.passes("b")
    assert floods.ebb(109.9) == {}
    assert floods.ebb(110.0) == {"a": 3}
    assert floods.ebb(110.0) == {}
    assert floods.passes("a")


@pytest.mark.req("R35", "R19")
async def test_a_flood_of_refusals_is_a_hundred_lines_and_a_number(autojump_clock, caplog) -> None:
    policies = Policies(overflow_user=Overflow.REJECT)
    async with open_house(limits=Limits(per_user=1), policies=policies) as house:
        await house.enter()
        for _ in range(1000):
            with pytest.raises(LimitReached):
                await house.supervisor.start(FaultWire(), Identity(user="ann"), sleeper)
        assert len([line for line in lines(caplog) if line.event["event"] == "refused"]) == 100
        await trio.sleep(10)
        await house.supervisor.disconnect_user("ann")
    (summary,) = (line for line in lines(caplog) if line.event["event"] == "suppressed")
    assert summary.getMessage() == "suppressed kind='refused limit_reached' lines=900 seconds=10.000"
    assert house.supervisor.statistics().refused == {"limit_reached": 1000}


@pytest.mark.req("R35")
async def test_admissions_and_ends_are_never_left_out(autojump_clock, caplog) -> None:
    caplog.set_level(logging.INFO, "supervisor")
    async with open_house(limits=Limits(total=500)) as house:
        for number in range(300):
            await house.enter(f"user-{number}")
        await house.supervisor.disconnect_all(CloseReason.KICKED)
    names = [line.event["event"] for line in lines(caplog)]
    assert (names.count("admitted"), names.count("closed")) == (300, 300)


@pytest.mark.req("R35", "R19")
async def test_failures_that_say_something_else_each_time_are_a_flood_too(autojump_clock, caplog) -> None:
    async with open_house() as house:
        for number in range(300):
            house.supervisor.report("request", ValueError(f"what a peer has sent: {number}"))
    assert len([line for line in lines(caplog) if line.event["event"] == "failed"]) == 100


@pytest.mark.req("R35")
async def test_runs_are_a_flood_too(autojump_clock, caplog) -> None:
    caplog.set_level(logging.INFO, "supervisor")

    async def ends(run: object) -> None:
        await trio.lowlevel.checkpoint()

    async with open_house() as house:
        await house.enter()
        for _ in range(300):
            await house.supervisor.start_run("ann", ends).wait()
    assert len([line for line in lines(caplog) if line.event["event"] == "run_started"]) == 100
