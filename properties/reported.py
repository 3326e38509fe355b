"""The manager of the reports, written anew: what everybody writes first, and what the checks must convict.

Four dictionaries, a sweeper, one way of making the key when a connection is made and another when it is cleaned up, a
limit that is looked at before something is awaited, and a background task whose death nobody notices.
"""

from __future__ import annotations

import contextlib
import itertools
from collections import defaultdict
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping
from typing import Any, ClassVar, TypeVar

import attrs
import trio

from supervisor import CloseReason, Frame, Limits, WireClosed
from supervisor.testing import FaultWire, Peer
from supervisor.testing.labs import MemoryClient
from supervisor.testing.schedule import run
from supervisor.testing.subject import Settings

T = TypeVar("T")
SWEEP_INTERVAL = 300.0
#: How long an emergency took before it gave up.
EMERGENCY = 300.0


class HardLimit(Exception):
    """Nobody of this user comes in any more."""


@attrs.define(eq=False)
class Manager:
    """Tracks sockets in dictionaries."""

    max_per_user: int
    max_total: int
    connections: dict[str, FaultWire] = attrs.field(factory=dict)
    user_connections: defaultdict[str, set[str]] = attrs.field(factory=lambda: defaultdict(set))
    room_connections: defaultdict[str, set[str]] = attrs.field(factory=lambda: defaultdict(set))
    run_connections: dict[str, str] = attrs.field(factory=dict)
    history: dict[str, list[Any]] = attrs.field(factory=dict)
    numbers: itertools.count[int] = attrs.field(factory=itertools.count)

    @staticmethod
    def key_for_creation(user: str, number: int) -> str:
        return f"{user}:thread_session_{number}"

    @staticmethod
    def key_for_cleanup(user: str, number: int) -> str:
        return f"{user}:thread_websocket_factory_{number}"

    async def serve(self, user: str, wire: FaultWire, let_in: Callable[[], None]) -> None:
        if len(self.user_connections[user]) >= self.max_per_user:
            await self.emergency_cleanup(user)
        await trio.lowlevel.checkpoint()  # asks the database who this is
        number = next(self.numbers)
        key = self.key_for_creation(user, number)
        self.connections[key] = wire
        self.user_connections[user].add(key)
        self.run_connections[f"run-{number}"] = key
        self.history[key] = []
        await wire.open(None, lambda *_: None)  # type: ignore[arg-type]
        let_in()
        try:
            await self.receive(key, wire)
        finally:
            self.clean_up(user, number)

    async def receive(self, key: str, wire: FaultWire) -> None:
        try:
            while True:
                message = await wire.receive()
                self.history[key].append(bytes(message) if isinstance(message, bytes) else message)
                self.room_connections["lobby"].add(key)
                await wire.write(Frame("ok"))
        except WireClosed:
            pass

    def clean_up(self, user: str, number: int) -> bool:
        key = self.key_for_cleanup(user, number)
        if key not in self.connections:
            return False  # somebody else has done it, surely
        del self.connections[key]
        self.user_connections[user].discard(key)
        return True

    async def emergency_cleanup(self, user: str) -> None:
        found = [number for number in range(1000) if self.clean_up(user, number)]
        if not found:
            await trio.sleep(EMERGENCY)
            count = len(self.user_connections[user])
            raise HardLimit(f"HARD LIMIT: User still over limit after cleanup ({count}/{self.max_per_user})")

    async def sweep(self) -> None:
        """Every five minutes, until the first surprise."""
        try:
            while True:
                await trio.sleep(SWEEP_INTERVAL)
                for key, wire in self.connections.items():
                    if wire.ended_for is not None:
                        del self.connections[key.replace("session", "websocket_factory")]
        except KeyError:
            pass


@attrs.define(eq=False)
class ReportedSubject:
    """The manager, seen from its doors."""

    limits: Limits
    manager: Manager
    callers: trio.Nursery

    async def connect(self, user: str, *, session: str | None = None, peer: Peer = Peer.HEALTHY) -> MemoryClient:
        client = MemoryClient(FaultWire(peer))
        self.callers.start_soon(self._serve, user, client)
        await client.known.wait()
        return client

    async def _serve(self, user: str, client: MemoryClient) -> None:
        def let_in() -> None:
            client.status = 101
            client.known.set()

        try:
            await self.manager.serve(user, client.wire, let_in)
            client.code = CloseReason.PEER_CLOSED.code
        except HardLimit as limit:
            client.status, client.code, client.text = 429, 1013, str(limit)
        except WireClosed:
            client.code = CloseReason.PEER_LOST.code
        finally:
            client.known.set()
            client.ended.set()

    async def count(self, user: str | None = None) -> int:
        await trio.lowlevel.checkpoint()
        manager = self.manager
        return len(manager.connections if user is None else manager.user_connections[user])

    async def census(self) -> Mapping[str, int]:
        await trio.lowlevel.checkpoint()
        manager = self.manager
        return {
            "user_connections": sum(map(len, manager.user_connections.values())),
            "connections": len(manager.connections),
            "room_connections": sum(map(len, manager.room_connections.values())),
            "run_connections": len(manager.run_connections),
        }

    async def disconnect(self, user: str, session: str | None = None) -> int:
        await trio.lowlevel.checkpoint()
        return sum(self.manager.clean_up(user, number) for number in range(200))


@attrs.frozen
class Reported:
    """Where such managers are made: on the same virtual time as ours."""

    door: ClassVar[str] = "memory"

    def run(self, seed: int, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        return run(seed, async_fn, *args, instruments=[])

    @contextlib.asynccontextmanager
    async def open(self, settings: Settings = Settings()) -> AsyncGenerator[ReportedSubject, None]:
        manager = Manager(settings.limits.per_user, settings.limits.total)
        async with trio.open_nursery() as callers:
            if settings.background:
                callers.start_soon(manager.sweep)
            yield ReportedSubject(settings.limits, manager, callers)
            callers.cancel_scope.cancel()
