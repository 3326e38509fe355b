"""Load from clients, and the soak: against a real server; and what they find."""

from __future__ import annotations

import math
from functools import partial

import attrs
import pytest
import trio

from supervisor import Connection, Limits, Overflow, Policies, Server, echo
from supervisor.cli.chart import chart, check_plot, draw
from supervisor.cli.soak import _parse, _told
from supervisor.testing.load import KINDS, Load, Outcome, run
from supervisor.testing.soak import Reading, Soak, cycle, parse, rest
from tests.serving import open_server, request


def load_on(server: Server, **settings: object) -> Load:
    return Load(url=f"ws://127.0.0.1:{server.port}/ws", seconds=0.7, **{"connections": 12, "users": 12, **settings})


@pytest.mark.parametrize("kind", KINDS)
async def test_every_kind_of_load_measures_something_and_nothing_fails(kind: str) -> None:
    async with open_server() as server:
        outcome = await run(kind, load_on(server), Outcome(kind))
        assert not outcome.failures
        assert len(outcome.waits) >= 5
        assert 0 < outcome.percentile(50) <= outcome.percentile(99) <= max(outcome.waits)
        assert f"{kind}: {len(outcome.waits)} in" in next(outcome.lines())


async def test_an_echo_is_answered_too() -> None:
    async with open_server(echo) as server:
        outcome = await run("echo", load_on(server, size=1000), Outcome("echo"))
        assert outcome.waits
        assert not outcome.failures


async def test_who_is_not_let_in_and_who_must_leave_are_told_apart() -> None:
    policies = Policies(overflow_user=Overflow.REJECT)
    async with open_server(limits=Limits(per_user=2), policies=policies) as server:
        outcome = await run("storm", load_on(server, users=1), Outcome("storm"))
        assert (outcome.opened, outcome.refused) == (2, {429: 10})
    async with open_server(limits=Limits(per_user=2)) as server:
        outcome = await run("storm", load_on(server, users=1), Outcome("storm"))
        assert outcome.closed[4505] + outcome.refused[429] == 10
        assert "4505" in "\n".join(outcome.lines()) or outcome.refused


async def test_nobody_there_is_a_failure() -> None:
    outcome = await run("churn", Load(url="ws://127.0.0.1:9/ws", connections=1, seconds=0.3), Outcome("churn"))
    assert sum(outcome.failures.values()) >= 1
    assert "OSError" in next(iter(outcome.failures))
    assert math.isnan(outcome.percentile(99))


async def test_who_still_waits_at_the_end_counts() -> None:
    """A server that freezes must not pass because nobody was answered any more."""

    async def freezes(conn: Connection) -> None:
        for _ in range(3):
            await conn.send(await conn.receive())
        await trio.sleep_forever()

    async with open_server(freezes) as server:
        outcome = await run("echo", load_on(server), Outcome("echo"))
        assert outcome.percentile(99) > 0.5
        assert outcome.percentile(10) < 0.3


async def test_broadcasts_go_on_without_those_who_have_left_and_need_two() -> None:
    async with open_server(limits=Limits(per_user=1)) as server:
        outcome = Outcome("broadcast")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(run, "broadcast", load_on(server), outcome)
            with trio.fail_after(5):
                while len(outcome.waits) < 100:
                    await trio.sleep(0.01)
            await server.supervisor.disconnect(server.supervisor.connections()[-1].id)
            before = len(outcome.waits)
        assert len(outcome.waits) > before + 50
        assert outcome.closed == {4503: 1}
        assert not outcome.failures
        alone = await run("broadcast", load_on(server, connections=1), Outcome("broadcast"))
        assert alone.failures == {"fewer than two could join": 1}
        crowded = await run("broadcast", load_on(server, users=1), Outcome("broadcast"))
        assert crowded.failures


# -- soak ------------------------------------------------------------------------------------------------------


async def read(server: Server) -> str:
    from tests.serving import connect

    async with connect(server) as raw:
        await raw.send(b"GET /metrics HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        return (await raw.response())[2].decode()


@pytest.mark.req("R09")
async def test_a_soak_acquits_what_does_not_leak() -> None:
    async with open_server() as server:
        soak = await soaked(server, 6)
        assert [reading.connections for reading in soak.readings] == [0] * 6
        assert soak.readings[-1].tasks <= soak.readings[0].tasks
        assert list(soak.findings(1000)) == []
        assert "memory, MB" in "\n".join(_told(soak))
        assert (await request(server, "GET", "/api/statistics"))[1]["admitted"] == 60


@pytest.mark.req("R09", "R44")
async def test_a_soak_convicts_tasks_and_descriptors_that_stay() -> None:
    async with trio.open_nursery() as elsewhere:

        async def leaks(conn: Connection) -> None:
            elsewhere.start_soon(trio.sleep_forever)
            async for message in conn:
                await conn.send(message)

        async with open_server(leaks) as server:
            soak = await soaked(server, 4)
        assert [finding for finding in soak.findings(1000) if "tasks at the end" in finding]
        elsewhere.cancel_scope.cancel()


async def soaked(server: Server, cycles: int) -> Soak:
    """As the command does it; but what it reads is read here, not in a thread."""
    soak, load = Soak(), load_on(server, connections=10)
    token = trio.lowlevel.current_trio_token()
    look = partial(trio.from_thread.run, read, server, trio_token=token)
    for _ in range(cycles):
        await cycle(load, soak)
        soak.readings.append(await rest(look, 0.0, soak.readings[0] if soak.readings else None))
    return soak


def test_growing_memory_is_found_by_its_slope() -> None:
    def readings(rss: list[float]) -> list[Reading]:
        return [Reading(at=n, rss=it, tasks=9, fds=13, connections=0, orphans=0) for n, it in enumerate(rss)]

    answered = Outcome("soak", waits=[0.1])
    grows = Soak(readings([40e6 + number * 200e3 for number in range(40)]), answered)
    assert [finding for finding in grows.findings(1000) if "with every sample" in finding]
    level = Soak(readings([40e6 + number % 3 * 100e3 for number in range(40)]), answered)
    assert list(level.findings(1000)) == []


async def test_a_soak_of_something_else_is_no_acquittal() -> None:
    async with open_server() as server:
        soak, load = Soak(), load_on(server, connections=3)
        await cycle(attrs.evolve(load, url=load.url.replace("/ws", "/nope")), soak)
        reading = Reading(at=0, rss=1, tasks=1, fds=1, connections=0, orphans=0)
        soak.readings = [reading] * 10
        assert list(soak.findings(1000)) == ["3 were not let in (404)", "nobody was answered"]
        with pytest.raises(ValueError, match="/metrics does not say process_resident_memory_bytes"):
            await rest(lambda: "up 1", 0.0)


@pytest.mark.parametrize("place", ["soak.gif", "nowhere/soak.svg"])
def test_a_plot_that_cannot_be_drawn_is_refused_at_once(tmp_path, place: str) -> None:
    with pytest.raises(ValueError, match="--plot"):
        check_plot(tmp_path / place)


def test_an_exposition_is_read() -> None:
    assert parse('# HELP a b\na 1.5\nb{c="d"} 2\nws_supervisor_orphans 0.0\n') == {"a": 1.5, "ws_supervisor_orphans": 0}


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30min", 1800), ("24h", 86_400), ("1.5h", 5400)])
def test_durations(text: str, seconds: float) -> None:
    assert _parse(text) == seconds


@pytest.mark.parametrize("text", ["", "5", "h", "-1h", "1d", "1 h"])
def test_what_is_no_duration(text: str) -> None:
    with pytest.raises(ValueError, match="a duration is spelled like"):
        _parse(text)


# -- pictures --------------------------------------------------------------------------------------------------


def test_a_chart_has_the_greatest_at_the_top() -> None:
    assert chart([0, 2, 4], height=2) == ["4.0 │ ▁█", "0.0 │▁██"]
    assert chart([]) == []
    assert {len(line) for line in chart(list(range(1000)), width=72)} == {len("999.0 │") + 72}


@pytest.mark.parametrize("suffix", ["svg", "png"])
def test_a_plot_is_a_picture(tmp_path, suffix: str) -> None:
    pytest.importorskip("matplotlib")
    place = tmp_path / f"soak.{suffix}"
    draw({"memory": [1, 2, 3], "tasks": [1, 1, 1]}, [0, 1, 2], place)
    assert place.read_bytes().startswith({"svg": b"<?xml", "png": b"\x89PNG"}[suffix])
