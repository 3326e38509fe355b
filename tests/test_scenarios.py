"""What was seen in production, on real sockets: each by its name, with the outcome that was promised."""

from __future__ import annotations

import contextlib
import itertools
import math
import sqlite3
import statistics
import threading
from collections.abc import AsyncIterator, Iterator
from functools import partial
from pathlib import Path

import attrs
import pytest
import trio
from websockets.exceptions import ConnectionClosed as PeerClosed
from websockets.sync.client import connect as peer_connect

from supervisor import Connection, Limits, Overflow, Policies, Server, Supervisor, Timeouts, echo, hub
from supervisor._words.profiles import PROFILES
from tests.serving import Raw, connect, frame, open_server, settled
from tests.siege import Blackhole

#: No background task comes to help: the audit would look again in this many seconds.
NEVER = attrs.evolve(PROFILES["production"], audit_interval=math.inf)


async def gone_within(supervisor: Supervisor, seconds: float) -> None:
    with trio.fail_after(seconds):
        await settled(supervisor)
    assert supervisor.audit() == ()
    assert supervisor.statistics().seats == 0


@pytest.mark.req("R26")
@pytest.mark.parametrize("limit", [5, 20])
async def test_a_browser_with_eight_tabs(limit: int) -> None:
    """In threads of their own, by a client that is not ours; then the browser is switched off."""

    def tab(url: str, said: list[int | None], place: int, closing: threading.Event) -> None:
        with peer_connect(url) as peer:
            said[place] = None
            try:
                while not closing.is_set():
                    with contextlib.suppress(TimeoutError):
                        peer.recv(0.05)
            except PeerClosed as closed:
                said[place] = closed.rcvd.code
            else:
                peer.socket.close()

    codes: list[int | None] = [0] * 8
    closing = threading.Event()
    async with open_server(hub, limits=Limits(per_user=limit)) as server:
        async with trio.open_nursery() as nursery:
            url = f"ws://127.0.0.1:{server.port}/ws?user=ann"
            for place in range(8):
                nursery.start_soon(partial(trio.to_thread.run_sync, tab, url, codes, place, closing))
                while server.supervisor.statistics().admitted <= place:
                    await trio.sleep(0.005)
            evicted = max(0, 8 - limit)
            with trio.move_on_after(10):
                while codes != [4505] * evicted + [None] * (8 - evicted):
                    await trio.sleep(0.005)
            left = len(server.supervisor.connections(user="ann"))
            closing.set()  # before anything is asserted: nobody can cancel a thread
            assert codes == [4505] * evicted + [None] * (8 - evicted)
            assert left == min(8, limit)
        await gone_within(server.supervisor, 0.5)


@pytest.mark.req("R27")
async def test_a_cold_start_burst_before_any_background_task() -> None:
    limits = Limits(per_user=20)
    async with open_server(hub, limits=limits, profile=NEVER) as server, contextlib.AsyncExitStack() as stack:
        started = trio.current_time()
        for _ in range(25):
            raw = await stack.enter_async_context(connect(server))
            await raw.upgrade()
        assert trio.current_time() - started < 2
        assert len(server.supervisor.connections(user="ann")) == 20
        figures = server.supervisor.statistics()
        assert (figures.admitted, figures.refused, figures.hard_limits) == (25, {}, 0)
        await stack.aclose()
        await gone_within(server.supervisor, 0.5)


@pytest.mark.req("R28")
async def test_a_phone_whose_old_sockets_are_half_open() -> None:
    """Fifteen times in three seconds the cable is pulled, and the same session comes back over another network."""
    async with open_server(hub) as server, trio.open_nursery() as nursery, contextlib.AsyncExitStack() as stack:
        started = trio.current_time()
        for number in range(15):
            network = Blackhole(server.port)
            await nursery.start(network.serve)
            raw = await stack.enter_async_context(connect(network.port))
            await raw.upgrade("/ws?user=ann&session=phone")
            welcome = await raw.message()
            assert (welcome["user"], welcome["session"]) == ("ann", "phone")
            network.open = False
            assert len(server.supervisor.connections(user="ann")) == min(number + 1, 5)
            await trio.sleep(0.15)
        assert trio.current_time() - started <= 4
        assert len(server.supervisor.connections(user="ann", session="phone")) == 5
        assert server.supervisor.statistics().refused == {}
        await server.supervisor.disconnect_user("ann", session="phone")
        await gone_within(server.supervisor, 0.5)
        nursery.cancel_scope.cancel()


@pytest.mark.req("R29")
@pytest.mark.parametrize("by", ["user", "session", "connection"])
async def test_a_hundred_whose_session_and_socket_were_named_differently(by: str) -> None:
    async with open_server(hub, limits=Limits(per_user=20)) as server, contextlib.AsyncExitStack() as stack:
        keys = []
        for number in range(100):
            user, kind = f"user-{number % 10}", "session" if number % 2 else "websocket_factory"
            raw = await stack.enter_async_context(connect(server))
            await raw.upgrade(f"/ws?user={user}&session={user}:thread_{kind}_{number}")
            keys.append((user, f"{user}:thread_{kind}_{number}", (await raw.message())["connection"]))
        supervisor, found = server.supervisor, []

        async def disconnect(user: str, session: str, connection: str) -> None:
            match by:
                case "user":
                    records = await supervisor.disconnect_user(user)
                case "session":
                    records = await supervisor.disconnect_user(user, session=session)
                case _:
                    records = (await supervisor.disconnect(connection),)
            found.extend(record.connection for record in records)

        async with trio.open_nursery() as nursery:
            for key in keys[:10] if by == "user" else keys:
                nursery.start_soon(disconnect, *key)
        assert sorted(found) == sorted(connection for _, _, connection in keys)
        await gone_within(supervisor, 0.5)


@pytest.mark.req("R30")
@pytest.mark.parametrize(
    ("pause", "seconds"),
    [(0.01, 2), pytest.param(0.5, 10, marks=pytest.mark.slow), pytest.param(0.01, 10, marks=pytest.mark.slow)],
)
async def test_arrivals_that_outpace_any_periodic_cleanup(pause: float, seconds: float) -> None:
    """Nobody leaves by themselves; whoever comes gets in, and there are never more than twenty."""
    limits = Limits(per_user=20)
    async with open_server(hub, limits=limits, profile=NEVER) as server, contextlib.AsyncExitStack() as stack:
        for number in range(int(seconds / pause)):
            raw = await stack.enter_async_context(connect(server))
            await raw.upgrade()
            assert len(server.supervisor.connections(user="ann")) == min(20, number + 1)
            assert server.supervisor.statistics().seats <= 20
            await trio.sleep(pause)
        assert server.supervisor.statistics().refused == {}
        await stack.aclose()
        await gone_within(server.supervisor, 0.6)


async def floods_whoever_is_noisy(conn: Connection) -> None:
    while conn.user == "noisy":
        await conn.send(bytes(50_000))
    await echo(conn)


@attrs.define
class Echoes:
    """How long each of a few people waits for each of a few answers."""

    guests: list[Raw]

    async def p99(self, rounds: int = 1000, warm_up: int = 1000) -> float:
        """A processor that has been idle for a moment is slower for some hundred rounds, whoever is beside."""
        waits = []
        for raw in itertools.islice(itertools.cycle(self.guests), warm_up + rounds):
            started = trio.current_time()
            await raw.send(frame(1, b"x"))
            assert await raw.frame() == (1, b"x")
            waits.append(trio.current_time() - started)
        return sorted(waits[warm_up:])[int(rounds * 0.99)]


@contextlib.asynccontextmanager
async def twenty_zombies(server: Server) -> AsyncIterator[None]:
    before = server.supervisor.statistics().connections
    async with contextlib.AsyncExitStack() as stack:
        for _ in range(20):
            raw = await stack.enter_async_context(connect(server, receive_buffer=4096))
            await raw.upgrade("/ws?user=noisy")
        while not all(conn.wire.stalled_since for conn in server.supervisor.connections(user="noisy")):
            await trio.sleep(0.005)
        yield
    while server.supervisor.statistics().connections != before:
        await trio.sleep(0.005)


@pytest.mark.slow
@pytest.mark.req("R31")
async def test_a_noisy_user_with_twenty_zombies_beside_two_others(record_property) -> None:
    """In turns, without and beside; each is compared with its neighbours, because others use this machine too."""
    policies = Policies(shed_at=1.0, shed_to=1.0)
    timeouts = Timeouts(ping_interval=60, write_progress=60)
    async with open_server(
        floods_whoever_is_noisy, limits=Limits(per_user=20), timeouts=timeouts, policies=policies
    ) as server:
        async with contextlib.AsyncExitStack() as stack:
            guests = []
            for user, count in (("busy", 18), ("calm", 5)):
                for _ in range(count):
                    guests.append(await stack.enter_async_context(connect(server)))
                    await guests[-1].upgrade(f"/ws?user={user}")
            echoes, beside = Echoes(guests), []
            without = [await echoes.p99()]
            for _ in range(80):
                async with twenty_zombies(server):
                    async with connect(server) as arriving:  # the twenty-first, for which the oldest leaves
                        started = trio.current_time()
                        await arriving.upgrade("/ws?user=noisy")
                        assert trio.current_time() - started <= 0.1 + 0.1
                    while server.supervisor.statistics().closing:
                        await trio.sleep(0.005)
                    beside.append(await echoes.p99())
                without.append(await echoes.p99())
            neighbours = map(statistics.fmean, itertools.pairwise(without))
            ratio = statistics.median(one / other for one, other in zip(beside, neighbours, strict=True))
            record_property("p99 beside twenty zombies over p99 without", ratio)
            assert ratio <= 1.1
            lost = [conn for conn in server.supervisor.connections() if conn.user == "noisy"]
            assert lost == []
            assert len(server.supervisor.connections(user="busy")) == 18
            assert len(server.supervisor.connections(user="calm")) == 5
        await gone_within(server.supervisor, 0.6)


@contextlib.contextmanager
def transaction(database: Path) -> Iterator[sqlite3.Connection]:
    """Committed, or rolled back; and always returned."""
    connected = sqlite3.connect(database, check_same_thread=False, isolation_level=None)
    try:
        connected.execute("BEGIN IMMEDIATE")
        yield connected
        connected.execute("COMMIT")
    except BaseException:
        connected.execute("ROLLBACK")
        raise
    finally:
        connected.close()


@pytest.mark.req("R50")
@pytest.mark.parametrize("ended", ["evicted", "shed", "peer gone"])
async def test_a_handler_with_an_open_transaction_is_rolled_back(tmp_path: Path, ended: str) -> None:
    database = tmp_path / "db"
    with contextlib.closing(sqlite3.connect(database)) as setup:
        setup.execute("CREATE TABLE messages (text)")
        setup.commit()
    writing = trio.Event()

    async def handler(conn: Connection) -> None:
        if writing.is_set():
            return await echo(conn)
        with transaction(database) as connected:
            await trio.to_thread.run_sync(connected.execute, "INSERT INTO messages VALUES ('half')")
            writing.set()
            await conn.receive()  # which never comes

    policies = Policies(overflow_user=Overflow.EVICT_OLDEST, shed_idle_after=0.01)
    async with open_server(handler, limits=Limits(per_user=1), policies=policies) as server:
        async with connect(server) as raw, connect(server) as newer:
            await raw.upgrade()
            await writing.wait()
            (conn,) = server.supervisor.connections(user="ann")
            started = trio.current_time()
            match ended:
                case "evicted":
                    await newer.upgrade()
                case "shed":
                    await trio.sleep(0.02)
                    started = trio.current_time()
                    await server.supervisor.shed()
                case _:
                    await raw.reset()
            await conn.wait_gone()
            assert trio.current_time() - started <= 0.5 + 0.1
            assert conn.closed.stuck_at is None
            with transaction(database) as connected:  # nobody holds the lock, and nothing was written
                assert connected.execute("SELECT count(*) FROM messages").fetchone() == (0,)
        await gone_within(server.supervisor, 0.5)


@pytest.mark.req("R50", "R12")
async def test_a_database_that_hangs_is_a_stuck_handler(tmp_path: Path) -> None:
    database, answered, opened = tmp_path / "db", threading.Event(), math.inf

    def slow() -> None:
        answered.wait(5)

    async def handler(conn: Connection) -> None:
        if conn.opened_at > opened:
            return await echo(conn)
        with transaction(database):
            await trio.to_thread.run_sync(slow)

    async with open_server(handler, limits=Limits(per_user=1)) as server, connect(server) as raw:
        await raw.upgrade()
        await trio.sleep(0.05)
        (conn,) = server.supervisor.connections(user="ann")
        opened = conn.opened_at
        record = await server.supervisor.disconnect(conn.id)
        assert record.cleanup <= 0.5 + 0.1
        assert record.stuck_at is not None
        async with connect(server) as newer:
            await newer.upgrade()  # the seat is free
            answered.set()
            while server.supervisor.statistics().stuck:
                await trio.sleep(0.005)
