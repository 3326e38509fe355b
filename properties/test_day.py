"""A day of traffic with faults, in a minute: it ends as it began, and so does each of its hours."""

from __future__ import annotations

import math
import random

import attrs
import pytest
import trio

from supervisor import CloseReason, Connection, Identity, Limits, NotFound, Refused, Supervisor, events, open_supervisor
from supervisor.testing import Baseline, FaultWire, LeakTracker, MemoryProfiler, Peer, garbage
from supervisor.testing.model import left_behind
from supervisor.testing.schedule import run
from supervisor.testing.world import FAULTS, PEERS, Handlers, World

HOUR = 3600.0
#: What handlers do in the course of a day; those that only end with their connection, and those that do not.
KINDS = ("sleeps", "reads", "sends", "joins", "raises", "takes_its_time", "has_hooks", "returns", "swallows")
#: Arrivals a minute, by the hour: quiet nights, busy days.
TIDE = [2, 1, 1, 1, 1, 2, 4, 8, 12, 14, 14, 12, 10, 12, 14, 14, 12, 10, 10, 8, 6, 4, 3, 2]


class Unaccounted(World):
    """Deals cards; nobody keeps an account today."""

    def spoke(self, conn: Connection) -> None:
        pass


@attrs.define
class Day:
    """Twenty-four hours of one house."""

    rng: random.Random
    supervisor: Supervisor
    callers: trio.Nursery
    arrivals: int = 0

    async def hour(self, arrivals_a_minute: int) -> None:
        """Fifty minutes of traffic, then ten in which everybody's time runs out."""
        for _ in range(50):
            for _ in range(arrivals_a_minute):
                self.callers.start_soon(self.visit)
            self.callers.start_soon(self.tidy_up)
            await trio.sleep(60)
        await trio.sleep(600)

    async def visit(self) -> None:
        await trio.sleep(self.rng.uniform(0, 60))
        self.arrivals += 1
        wire = FaultWire(self.rng.choice(PEERS), self.rng.choice(FAULTS))
        handlers = Handlers(Unaccounted(self.rng))
        kind = self.rng.choice(KINDS)
        user = f"user-{self.rng.randrange(30)}"
        with trio.move_on_after(self.rng.choice([math.inf, math.inf, 200])):
            try:
                await self.supervisor.supervise(
                    wire, Identity(user=user), lambda conn: getattr(handlers, kind)(conn, wire)
                )
            except Refused:
                pass

    async def tidy_up(self) -> None:
        """An operator, now and then."""
        what = self.rng.random()
        if what < 0.02:
            try:
                await self.supervisor.disconnect_user(f"user-{self.rng.randrange(30)}", reason=CloseReason.REVOKED)
            except NotFound:
                pass
        elif what < 0.04:
            await self.supervisor.shed()
        elif what < 0.06:
            await self.supervisor.expire_idle(120)
        elif what < 0.07:
            await self.supervisor.disconnect_all()


@pytest.mark.slow
@pytest.mark.req("R09", "R21")
def test_a_day_ends_as_it_began(record_property) -> None:
    async def live_through_it() -> None:
        async with trio.open_nursery() as callers, open_supervisor(limits=Limits(per_user=5, total=60)) as supervisor:
            tracker, heard = LeakTracker(), {"admitted": 0, "closed": 0}

            def count(event: events.Event) -> None:
                heard["admitted"] += isinstance(event, events.Admitted)
                heard["closed"] += isinstance(event, events.Closed)

            supervisor.subscribe(tracker)
            supervisor.subscribe(count)
            day = Day(random.Random(0), supervisor, callers)
            await day.hour(4)  # whatever is made once is made now
            garbage()
            tracker.evidence.clear()
            profiler, baseline = MemoryProfiler(), Baseline.take()
            profiler.start()
            for tide in TIDE:
                await day.hour(tide)
                assert list(left_behind(supervisor)) == []
                assert baseline.left_behind(supervisor) == ()
                tracker.evidence = [item for item in tracker.evidence if item.kind == "cleanup"]
                profiler.sample()
            assert heard["admitted"] == heard["closed"] > 5000
            assert tracker.evidence == []
            growth = profiler.detect(growth_mb=5)
            record_property("connections", heard["closed"])
            record_property("slope in kB an hour", growth.slope / 1024)
            assert not growth.leaking, growth.because
            objects = [sample.objects for sample in profiler.samples]
            assert max(objects[1:]) - min(objects[1:]) < 1000  # of some hundred thousand
            assert trio.current_time() >= 25 * HOUR
            assert supervisor.statistics().stuck == 0

    run(0, live_through_it, instruments=[])


def test_peers_of_every_kind_come() -> None:
    assert set(PEERS) == set(Peer)
