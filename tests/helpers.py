"""A supervisor with fake wires, for virtual time."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import attrs
import trio

from supervisor import CloseReason, Connection, Identity, Supervisor, events, open_supervisor
from supervisor.testing import FaultWire


async def sleeper(conn: Connection) -> None:
    """A handler that does nothing until it is cancelled."""
    await trio.sleep_forever()


async def echo(conn: Connection) -> None:
    """A handler that reads."""
    async for message in conn:
        await conn.send(message)


def slow_to_leave(seconds: float) -> Callable[[Connection], Awaitable[None]]:
    """A handler that needs so long after its cancellation."""

    async def handler(conn: Connection) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(seconds)

    return handler


@attrs.define
class House:
    """A supervisor, a nursery for its callers, and everything it has said."""

    supervisor: Supervisor
    callers: trio.Nursery
    heard: list[events.Event] = attrs.field(factory=list)

    async def enter(
        self, user: str = "ann", handler=sleeper, wire: FaultWire | None = None, **identity: Any
    ) -> Connection:
        """Start one connection, and let its handler begin."""
        conn = await self.supervisor.start(wire or FaultWire(), Identity(user=user, **identity), handler)
        await trio.testing.wait_all_tasks_blocked()
        return conn

    async def fill(self, count: int, user: str = "ann", **kwargs: Any) -> list[Connection]:
        return [await self.enter(user, **kwargs) for _ in range(count)]

    def told(self, kind: type) -> list[Any]:
        return [event for event in self.heard if isinstance(event, kind)]

    def ids(self, user: str | None = None) -> list[str]:
        return [conn.id for conn in self.supervisor.connections(user=user)]


@contextlib.asynccontextmanager
async def open_house(**settings: Any) -> AsyncIterator[House]:
    """A house that is empty and consistent again when the block ends."""
    async with trio.open_nursery() as callers:
        async with open_supervisor(**settings) as supervisor:
            house = House(supervisor, callers)
            supervisor.subscribe(house.heard.append)
            yield house
            assert supervisor.audit() == ()
        figures = supervisor.statistics()
        assert (figures.connections, figures.users, figures.rooms, figures.seats, figures.stuck) == (0, 0, 0, 0, 0)
        assert supervisor.audit() == ()
        admitted = [event.connection for event in house.told(events.Admitted)]
        assert sorted(event.connection for event in house.told(events.Closed)) == sorted(admitted)


def reason(conn: Connection) -> CloseReason | None:
    return None if conn.end is None else conn.end.reason


async def settle() -> None:
    """Let everybody who can run, run; no time passes."""
    await trio.testing.wait_all_tasks_blocked()
