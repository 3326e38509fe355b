"""The promises under load: real sockets, the clients in a process of their own, the exact baseline afterwards."""

from __future__ import annotations

import contextlib
import gc
import json
import resource
import subprocess
import sys
from collections.abc import AsyncIterator
from functools import partial

import attrs
import pytest
import trio

from supervisor import Connection, Limits, Options, Overflow, Policies, Server, Supervisor, events, hub, serve
from supervisor._words.profiles import PROFILES
from supervisor.testing import MemoryProfiler
from tests.serving import connect, file_descriptors, open_server, settled, tasks, upgrade_head
from tests.siege import CROWD, Delay, lives


@pytest.fixture(autouse=True)
def many_files():
    """As many file descriptors as the system allows; 1,000 sockets are more than the usual soft limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@attrs.define
class Crowd:
    process: trio.Process
    lines: bytes = b""

    async def answer(self) -> dict[int, int]:
        """The next line it says: how many of each status, or of each close code."""
        while b"\n" not in self.lines:
            data = await self.process.stdout.receive_some()
            assert data, "the crowd has died"
            self.lines += data
        line, _, self.lines = self.lines.partition(b"\n")
        return {int(key): count for key, count in json.loads(line).items()}

    async def go_home(self) -> dict[int, int]:
        """All of them vanish; how those had ended that ended before."""
        await self.process.stdin.aclose()
        codes = await self.answer()
        await self.process.wait()
        return codes


@contextlib.asynccontextmanager
async def crowd(server: Server, users: list[str], *, deaf: bool = False) -> AsyncIterator[Crowd]:
    command = [sys.executable, str(CROWD), str(server.port)]
    async with trio.open_nursery() as nursery:
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
        process = await nursery.start(partial(trio.run_process, command, **pipes))
        await process.stdin.send_all(json.dumps({"users": users, "deaf": deaf}).encode() + b"\n")
        async with process.stdout:
            yield Crowd(process)
        nursery.cancel_scope.cancel()


@contextlib.asynccontextmanager
async def at_the_baseline(handler, **settings) -> AsyncIterator[Server]:
    """A server that is as it was within half a second of the block's end: tasks, sockets, tokens, indexes."""
    with trio.fail_after(60):
        async with open_server(handler, **settings) as server:
            gc.collect()  # what earlier tests have left to the collector is not our baseline
            before = tasks(), file_descriptors()
            yield server
            with trio.move_on_after(0.5):
                await settled(server.supervisor)
                while (tasks(), file_descriptors()) != before:
                    await trio.sleep(0.005)
            assert (tasks(), file_descriptors()) == before
            assert server.supervisor.audit() == ()
            assert server.supervisor.statistics().seats == 0


@attrs.define
class Watch:
    """Looks at every admission how many there are, by every count there is."""

    inside: int = 0
    most_inside: int = 0
    most_claims: int = 0
    most_seats: int = 0
    admitted: int = 0

    async def handler(self, conn: Connection) -> None:
        self.inside += 1
        self.sample(conn.supervisor, conn.user)
        try:
            await trio.sleep_forever()
        finally:
            self.inside -= 1

    def sample(self, supervisor: Supervisor, user: str) -> None:
        limiter = supervisor.connections(user=user)[0].host.roster.seats.limiter
        self.most_inside = max(self.most_inside, self.inside)
        self.most_claims = max(self.most_claims, len(supervisor.connections(user=user)))
        self.most_seats = max(self.most_seats, int(limiter.borrowed_tokens), supervisor.statistics().seats)
        self.admitted += 1


@pytest.mark.req("R01", "R21", "A18")
@pytest.mark.parametrize("limit", [5, 20])
@pytest.mark.parametrize("overflow", [Overflow.EVICT_OLDEST, Overflow.REJECT])
async def test_a_thousand_connects_of_one_user_at_once(limit: int, overflow: Overflow) -> None:
    watch = Watch()
    settings = {"limits": Limits(per_user=limit), "policies": Policies(overflow_user=overflow)}
    async with at_the_baseline(watch.handler, **settings) as server:
        async with crowd(server, ["ann"] * 1000) as clients:
            statuses = await clients.answer()
            assert sum(statuses.values()) == 1000
            assert set(statuses) <= {101, 429}
            assert len(server.supervisor.connections(user="ann")) == limit
            codes = await clients.go_home()
        assert (watch.most_inside, watch.most_claims, watch.most_seats) == (limit, limit, limit)
        if overflow is Overflow.REJECT:
            assert (statuses[101], watch.admitted) == (limit, limit)
        else:
            assert codes.get(4505, 0) == statuses[101] - limit


@pytest.mark.req("R02", "R05", "R21")
@pytest.mark.parametrize("overflow", [Overflow.REJECT, Overflow.EVICT_OLDEST])
async def test_two_hundred_users_with_five_each_and_one_more(overflow: Overflow) -> None:
    watch = Watch()
    options = Options(allow_anonymous=True)
    async with at_the_baseline(watch.handler, options=options, policies=Policies(overflow_total=overflow)) as server:
        users = [f"user-{number % 200}" for number in range(1000)]
        async with crowd(server, users) as clients:
            assert await clients.answer() == {101: 1000}
            assert server.supervisor.statistics().connections == 1000
            assert all(len(server.supervisor.connections(user=f"user-{number}")) == 5 for number in range(200))
            async with connect(server) as late:
                await late.send(upgrade_head("/ws?user=late"))
                status, _, body = await late.response()
                if overflow is Overflow.REJECT:
                    assert status == 503
                    assert b"user 'late' exceeded maximum connections total limit (1000/1000)" in body
                else:
                    assert status == 101
                assert server.supervisor.statistics().connections == 1000
            codes = await clients.go_home()
        assert codes.get(4505, 0) == (overflow is Overflow.EVICT_OLDEST)
        assert watch.most_seats == watch.most_inside == 1000


@pytest.mark.req("R11", "R21")
async def test_a_thousand_full_windows_closed_at_once(record_property) -> None:
    """Each peer has stopped reading; all are closed in the same instant, and gone within the bound."""

    async def flood(conn: Connection) -> None:
        await everybody_is_here.wait()  # sooner, and the first to stall would be shed for the last to come
        while True:
            await conn.send(bytes(60_000))

    everybody_is_here = trio.Event()
    async with at_the_baseline(flood) as server:
        async with crowd(server, [f"user-{number % 200}" for number in range(1000)], deaf=True) as clients:
            assert await clients.answer() == {101: 1000}
            everybody_is_here.set()
            while not all(stalled(conn) for conn in server.supervisor.connections()):
                await trio.sleep(0.05)
            async with trio.open_nursery() as nursery:
                delay = Delay()
                nursery.start_soon(delay.measure)
                await trio.sleep(0.05)
                records = await server.supervisor.disconnect_all()
                nursery.cancel_scope.cancel()
            assert len(records) == 1000
            longest = max(record.cleanup for record in records)
            record_property("longest cleanup", longest)
            record_property("scheduling delay", delay.longest)
            assert longest <= 0.5 + delay.longest, (longest, delay.longest)
            assert server.supervisor.statistics().set_aside == 0
            await clients.go_home()


@pytest.mark.req("A45", "R11")
async def test_shutting_down_with_a_hundred_deaf_and_a_hundred_mute_among_a_thousand(record_property) -> None:
    async def handler(conn: Connection) -> None:
        while conn.user.startswith("deaf"):
            await conn.send(bytes(60_000))
        await trio.sleep_forever()

    def users(kind: str, count: int) -> list[str]:
        return [f"{kind}-{number % 200}" for number in range(count)]

    async with trio.open_nursery() as nursery:
        serving = partial(serve, handler, Options(port=0), signals=False)
        server: Server = await nursery.start(serving)
        closings: list[events.Closed] = []
        server.supervisor.subscribe(lambda event: closings.append(event) if isinstance(event, events.Closed) else None)
        async with (
            crowd(server, users("well", 800)) as well,
            crowd(server, users("mute", 100), deaf=True) as mute,
            crowd(server, users("deaf", 100), deaf=True) as deaf,
        ):
            for clients, count in ((well, 800), (mute, 100), (deaf, 100)):
                assert await clients.answer() == {101: count}
            while not all(stalled(conn) for conn in server.supervisor.connections() if conn.user.startswith("deaf")):
                await trio.sleep(0.05)
            async with trio.open_nursery() as measuring:
                delay = Delay()
                measuring.start_soon(delay.measure)
                started = trio.current_time()
                server.stop()
                while len(closings) < 1000:
                    await trio.sleep(0.005)
                took = trio.current_time() - started
                measuring.cancel_scope.cancel()
            record_property("a thousand closed in", took)
            record_property("scheduling delay", delay.longest)
            assert took <= 1.0 + delay.longest
            assert max(event.cleanup for event in closings) <= 0.5 + delay.longest
            assert server.supervisor.statistics().set_aside == 0
            assert await well.go_home() == {1012: 800}


def stalled(conn: Connection) -> bool:
    since = conn.wire.stalled_since
    return since is not None and trio.current_time() - since > 0.2


@pytest.mark.req("R12", "R43")
async def test_twenty_zombies_and_the_twenty_first(record_property) -> None:
    """Handlers that shield themselves hold their seats no longer than it takes to need them."""

    async def zombie(conn: Connection) -> None:
        with trio.CancelScope(shield=True, relative_deadline=10):
            await release.wait()

    release = trio.Event()
    async with at_the_baseline(zombie, limits=Limits(per_user=20)) as server:
        heard: list[events.Event] = []
        server.supervisor.subscribe(heard.append)
        async with crowd(server, ["ann"] * 20) as clients:
            assert await clients.answer() == {101: 20}
            async with connect(server) as newcomer:
                before = trio.current_time()
                await newcomer.upgrade("/ws?user=ann")
                record_property("admission", trio.current_time() - before)
                assert trio.current_time() - before <= 0.2  # 100 ms, and two round trips on a busy machine
                assert len(server.supervisor.connections(user="ann")) == 20
                records = await server.supervisor.disconnect_user("ann")
                assert max(record.cleanup for record in records) <= 0.6
                while server.supervisor.statistics().seats:
                    await trio.sleep(0.005)
            places = [event.stuck_at for event in heard if isinstance(event, events.Closed) and event.stuck_at]
            assert len(places) >= 20  # the newcomer was sent away before its handler began, or after
            assert {place.rpartition(":")[0] for place in places} == {__file__}
            release.set()
            await clients.go_home()


@pytest.mark.req("R22")
async def test_a_hundred_cycles(record_property) -> None:
    async with at_the_baseline(hub) as server:
        started = trio.current_time()
        answered = await lives(server, 100, ["ann"])
        record_property("seconds for 100 cycles", trio.current_time() - started)
        assert trio.current_time() - started <= 30
        assert answered["statuses"] == {"101": 100}


@pytest.mark.req("R21")
async def test_five_hundred_rapid_cycles() -> None:
    async with at_the_baseline(hub) as server:
        users = [f"user-{number}" for number in range(7)]
        answered = await lives(server, 500, users, "leave vanish reset nonsense", at_once=10)
        assert answered["statuses"] == {"101": 500}


@pytest.mark.req("R24")
async def test_fifty_users_come_join_fail_and_leave_at_once() -> None:
    async with at_the_baseline(hub) as server:
        users = [f"user-{number}" for number in range(50)]
        answered = await lives(server, 500, users, "leave vanish reset nonsense", at_once=50)
        assert answered["statuses"] == {"101": 500}
        await settled(server.supervisor)
        assert server.supervisor.statistics().failures == {}


@pytest.mark.slow
@pytest.mark.req("R21")
async def test_fifteen_hundred_over_time_do_not_grow_memory(record_property) -> None:
    async with at_the_baseline(hub) as server:
        profiler = MemoryProfiler()
        users = [f"user-{number}" for number in range(50)]
        profiler.start()
        for _ in range(16):
            await lives(server, 100, users, "leave vanish reset", at_once=20)
            await settled(server.supervisor)
            profiler.sample()
        growth = profiler.detect(PROFILES["ci"].memory_growth_mb)
        record_property("growth in MB", growth.megabytes)
        record_property("slope in kB per 100", (growth.slope_low / 1024, growth.slope_high / 1024))
        assert not growth.leaking, growth.because
        assert all(sample.cycles == 0 for sample in profiler.samples[2:])


@pytest.mark.slow
@pytest.mark.req("R20")
async def test_after_exhaustion_it_serves_as_before(record_property) -> None:
    """Beside a server that nothing has happened to, because the machine is not always equally fast."""
    limits = Limits(per_user=20, total=200)
    async with at_the_baseline(hub, limits=limits) as server, open_server(hub, limits=limits) as control:

        async def p99() -> float:
            """The best of several rounds, over that of the control, in turns."""
            rounds: dict[int, list[float]] = {server.port: [], control.port: []}
            for turn in range(16):
                chosen = (server, control)[turn % 2]
                rounds[chosen.port].append((await lives(chosen, 200, ["ann", "bob"]))["p99"])
            return min(rounds[server.port]) / min(rounds[control.port])

        before = await p99()
        async with crowd(server, [f"user-{number % 10}" for number in range(300)], deaf=True) as clients:
            assert (await clients.answer())[101] >= 200
            assert server.supervisor.statistics().connections == 200
            await server.supervisor.disconnect_all()
            await clients.go_home()
        await settled(server.supervisor)
        after = await p99()
        record_property("p99 after exhaustion, over before", after / before)
        assert after <= 1.2 * before


def note_admission(supervisor: Supervisor, took: list[float], event: events.Event) -> None:
    if isinstance(event, events.Admitted):
        took.append(event.at - supervisor.connection(event.connection).opened_at)


@pytest.mark.req("R14")
async def test_admission_goes_on_while_emergency_cleanup_runs(record_property) -> None:
    """Ten users whose every connection is long idle: each newcomer meets an emergency, and none is kept waiting."""
    settings = {"limits": Limits(per_user=20), "policies": Policies(shed_idle_after=0.1, overflow_user=Overflow.REJECT)}
    async with at_the_baseline(hub, **settings) as server:
        users = [f"user-{number}" for number in range(10)]
        async with crowd(server, users * 20, deaf=True) as clients:
            assert (await clients.answer())[101] == 200
            await trio.sleep(0.2)
            took: list[float] = []
            server.supervisor.subscribe(partial(note_admission, server.supervisor, took))
            answered = await lives(server, 200, users, "vanish", at_once=10)
            took.sort()
            record_property("p99 of admission in an emergency", took[-3])
            record_property("p99 as the clients saw it, who share the machine", answered["p99"])
            assert answered["statuses"] == {"101": 200}
            assert took[-3] <= 0.1
            figures = server.supervisor.statistics()
            assert figures.emergencies >= 10
            assert figures.shed >= 60
            assert figures.refused == {}
            await clients.go_home()


@pytest.mark.req("R15", "R16")
async def test_cleanups_that_fail_and_hang_at_once_for_many_users(record_property) -> None:
    """Twenty users at the same time; of each, one hook raises, one hangs, and no peer reads."""

    async def fails() -> None:
        raise KeyError("a hook that fails")

    async def handler(conn: Connection) -> None:
        hook = {0: (fails,), 1: (trio.sleep_forever,), 2: (trio.sleep, 0.1)}.get(int(conn.id[1:]) % 5)
        if hook is not None:
            conn.on_close(*hook)
        await trio.sleep_forever()

    async with at_the_baseline(handler) as server:
        users = [f"user-{number}" for number in range(20)]
        async with crowd(server, users * 5, deaf=True) as clients:
            assert await clients.answer() == {101: 100}
            records: list[events.Closed] = []

            async def clean_up(user: str) -> None:
                records.extend(await server.supervisor.disconnect_user(user))

            delay = Delay()
            async with trio.open_nursery() as watching:
                watching.start_soon(delay.measure)
                async with trio.open_nursery() as nursery:
                    for user in users:
                        nursery.start_soon(clean_up, user)
                watching.cancel_scope.cancel()
            longest = max(record.cleanup for record in records)
            record_property("longest cleanup", longest)
            assert (len(records), server.supervisor.statistics().failures) == (100, {"hook": 20})
            record_property("scheduling delay", delay.longest)
            assert longest <= 0.6 + delay.longest
            await clients.go_home()
