"""The core by itself, in memory: what one step costs with so many connections there. It must not depend on how many."""

from __future__ import annotations

import contextlib
import gc
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager

import attrs
import trio
import trio.testing

from supervisor import Connection, Identity, Limits, Overflow, Policies, Refused, Supervisor, Timeouts, open_supervisor
from supervisor.testing import FaultWire

ARRIVALS = 2_000


async def sleeper(conn: Connection) -> None:
    await trio.sleep_forever()


@attrs.define
class Full:
    """A supervisor that is full."""

    supervisor: Supervisor
    number: int = 0

    async def arrive(self, user: str) -> Connection:
        return await self.supervisor.start(FaultWire(), Identity(user=user), sleeper)


@asynccontextmanager
async def full(connections: int, per_user: int = 5, **settings: object) -> AsyncIterator[Full]:
    limits = Limits(per_user=per_user, total=connections, idle_ttl=1e6)
    timeouts = Timeouts(ping_interval=1e6)
    async with open_supervisor(limits=limits, timeouts=timeouts, **settings) as supervisor:
        house = Full(supervisor)
        for number in range(connections):
            await house.arrive(f"u{number // per_user}")
        gc.collect()
        gc.freeze()
        gc.disable()
        try:
            yield house
        finally:
            gc.enable()


async def _seconds_each(count: int, async_fn: Callable[[int], Awaitable[object]]) -> float:
    started = time.process_time()
    for number in range(count):
        await async_fn(number)
    return (time.process_time() - started) / count


async def admission_with_eviction(connections: int) -> float:
    """CPU seconds for each arrival that takes the place of its user's oldest; everything it causes included."""
    async with full(connections, policies=Policies(shed_at=1.0, shed_to=1.0)) as house:
        users = max(1, connections // 5)
        return await _seconds_each(ARRIVALS, lambda number: house.arrive(f"u{number * 7919 % users}"))


async def eviction_from_the_greediest(connections: int) -> float:
    """The same at the total limit, where the user who holds most gives one."""
    policies = Policies(overflow_total=Overflow.EVICT_GREEDIEST, shed_at=1.0, shed_to=1.0)
    async with full(connections, policies=policies) as house:
        return await _seconds_each(ARRIVALS, lambda number: house.arrive(f"new{number}"))


async def refresh(connections: int) -> float:
    """CPU seconds to note one connection's activity."""
    async with full(connections) as house:
        conns = house.supervisor.connections()
        touch = house.supervisor._ledger.touch
        started = time.process_time()
        for number in range(100_000):
            touch(conns[number * 7919 % connections])
        return (time.process_time() - started) / 100_000


async def mass_expiry(connections: int) -> float:
    """CPU seconds for each of so many connections that end in the same moment."""
    async with full(connections) as house:
        started = time.process_time()
        await house.supervisor.expire_idle(0)
        return (time.process_time() - started) / connections


async def drain(connections: int) -> float:
    """CPU seconds for each of so many connections that are told to go elsewhere, all at once."""
    async with full(connections) as house:
        started = time.process_time()
        await house.supervisor.drain()
        return (time.process_time() - started) / connections


async def storm_of_one_user(connections: int) -> float:
    """CPU seconds for each of a thousand simultaneous arrivals of one user who may have five."""
    async with full(connections, policies=Policies(shed_at=1.0, shed_to=1.0)) as house:

        async def arrive() -> None:
            with contextlib.suppress(Refused):  # a newer one was faster
                await house.arrive("u0")

        started = time.process_time()
        async with trio.open_nursery() as arrivals:
            for _ in range(1000):
                arrivals.start_soon(arrive)
        await trio.testing.wait_all_tasks_blocked()
        return (time.process_time() - started) / 1000


BOOKS = (admission_with_eviction, eviction_from_the_greediest, storm_of_one_user, refresh, mass_expiry, drain)
