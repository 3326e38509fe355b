"""What is left behind is found, and named."""

from __future__ import annotations

import gc
import json
import socket
import tracemalloc

import attrs
import pytest
import trio

from supervisor import Identity, Timeouts, open_supervisor
from supervisor.testing import Baseline, Fault, FaultWire, LeakTracker, garbage
from supervisor.testing.holders import who_holds
from supervisor.testing.leaks import Evidence, summary
from tests.helpers import sleeper

KEPT: dict[str, object] = {}


@attrs.define(eq=False)
class Thing:
    other: object = None


@pytest.mark.req("R23")
async def test_tasks_and_files_are_left_behind_and_found(nursery) -> None:
    tracemalloc.start(15)
    baseline = Baseline.take()
    assert baseline.left_behind() == ()
    nursery.start_soon(trio.sleep_forever)
    with socket.socket():
        task, fd = baseline.left_behind()
    tracemalloc.stop()
    assert (task.kind, fd.kind) == ("task", "file descriptor")
    assert "trio.sleep_forever is still running" in task.text
    assert task.place.startswith(f"{__file__}:")
    assert fd.place.startswith(f"{__file__}:")
    nursery.cancel_scope.cancel()


@pytest.mark.req("R23")
async def test_a_tracker_times_and_convicts(autojump_clock) -> None:
    async def stubborn(conn) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    tracker = LeakTracker()
    async with open_supervisor(timeouts=Timeouts(close=2, handler_exit=2)) as supervisor:
        supervisor.subscribe(tracker)
        for handler, wire in ((sleeper, FaultWire()), (sleeper, FaultWire("mute")), (stubborn, FaultWire())):
            conn = await supervisor.start(wire, Identity(user="ann"), handler)
            await trio.testing.wait_all_tasks_blocked()
            conn.close()
            await conn.wait_gone()
        left = tracker.check(supervisor)
    assert [item.kind for item in tracker.violations] == ["cleanup", "stuck", "entry"]
    assert "took 2.000 s to clean up, bound 0.5 s" in str(tracker.violations[0])
    assert tracker.violations[1].place.endswith(f"test_leaks.py:{stubborn.__code__.co_firstlineno + 2}")
    assert [item.kind for item in left] == ["entry"]
    assert tracker.cleanup_rate == pytest.approx(1 / 3)
    report = json.loads(json.dumps(tracker.report()))
    assert report["cleanup_seconds"] == {"closed": {"count": 3, "total": 4.0, "longest": 2.0}}
    assert report["evidence"][0]["at"] > 1.7e9


@pytest.mark.req("R23")
async def test_failures_are_evidence_but_no_violation(autojump_clock) -> None:
    async def fails(conn) -> None:
        raise ValueError("handler raises")

    tracker = LeakTracker()
    async with open_supervisor() as supervisor:
        supervisor.subscribe(tracker)
        await supervisor.supervise(FaultWire(faults=[Fault("close", "raise")]), Identity(user="ann"), fails)
    handler, close = tracker.evidence
    assert handler.place == f"{__file__}:{fails.__code__.co_firstlineno + 1}"
    assert "close raises" in close.text
    assert (tracker.violations, tracker.cleanup_rate) == ((), 1.0)


@pytest.mark.req("R23")
def test_garbage_is_told_once_and_only_what_is_ours() -> None:
    garbage()
    thing = Thing()
    thing.other = Thing(thing)
    del thing
    mere: list[object] = []
    mere.append(mere)
    del mere
    (found,) = garbage()
    assert found.text == "2 × Thing only the collector can free"
    assert garbage() == ()
    assert not gc.garbage


@pytest.mark.req("R23")
def test_who_holds_a_thing_is_named() -> None:
    thing = Thing()
    assert not any("KEPT" in name for name in who_holds(thing))
    KEPT["thing"] = Thing(thing)
    assert f"{__name__}.KEPT" in who_holds(thing)
    KEPT.clear()


def test_alike_things_are_told_once() -> None:
    items = [Evidence(kind="task", text=f"t{number}", place="a.py:1") for number in range(3)]
    others = [Evidence(kind="task", text="x", place=f"b.py:{number}") for number in range(6)]
    told = summary([*items, *others])
    assert told.startswith("3 times task: t0 (made at a.py:1); task: x (made at b.py:0)")
    assert told.endswith("; and 2 others")
