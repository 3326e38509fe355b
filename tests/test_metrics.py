"""``/metrics``: as Prometheus reads it, and as things were."""

from __future__ import annotations

import subprocess
from shutil import which

import pytest
import trio
import trio.testing
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from supervisor import Connection, Limits, Options, Overflow, Policies, Server, SlowConsumer, hub
from supervisor._server import server as server_module
from tests.requirements import NO_PROMTOOL
from tests.serving import connect, open_server, settled, upgrade_head

OPENMETRICS = "application/openmetrics-text; version=1.0.0"


async def scrape(server: Server, path: str = "/metrics", **headers: str) -> tuple[int, str, str]:
    async with connect(server) as raw:
        lines = [f"GET {path} HTTP/1.1", "Host: localhost", *(f"{name}: {value}" for name, value in headers.items())]
        await raw.send("\r\n".join([*lines, "", ""]).encode())
        status, answered, body = await raw.response()
        return status, answered["content-type"], body.decode()


async def figures(server: Server) -> dict[str, float]:
    """Every sample, by its name and its labels."""
    _, _, text = await scrape(server)
    return {
        sample.name.removeprefix("ws_supervisor_")
        + "".join(f" {value}" for value in sample.labels.values()): sample.value
        for family in parse(text)
        for sample in family.samples
    }


@pytest.mark.req("R34")
async def test_everything_that_happens_is_counted() -> None:
    async def handler(conn: Connection) -> None:
        if conn.user == "fails":
            raise LookupError("as it must")
        await hub(conn)

    async with open_server(handler, limits=Limits(per_user=2, total=4)) as server:
        async with connect(server) as first, connect(server) as second, connect(server) as third:
            for raw in (first, second, third):
                await raw.upgrade()
            assert (await first.closed_with())[0] == 4505
            while server.supervisor.statistics().closed.get("evicted") != 1:
                await trio.sleep(0.005)
            now = await figures(server)
            assert (now["connections"], now["users"], now["users_at_limit"], now["seats"]) == (2, 1, 1, 2)
            assert now["connections_peak"] == 3
            assert (now["connections_limit user"], now["connections_limit total"]) == (2, 4)
            assert (now["connections_admitted_total"], now["admission_seconds_count"]) == (3, 3)
            assert (now["evictions_total evict-oldest"], now["connections_closed_total evicted"]) == (1, 1)
            assert now["cleanup_seconds_count evicted"] == now["cancel_overrun_seconds_count"] == 1
            await second.reset()
            await third.reset()
        await settled(server.supervisor)
        async with connect(server) as failing:
            await failing.upgrade("/ws?user=fails")
            assert (await failing.closed_with())[0] == 1011
        await settled(server.supervisor)
        now = await figures(server)
        assert now["failures_total handler"] == 1
        assert (now["connections"], now["orphans"], now["outbox_bytes"]) == (0, 0, 0)
        assert now["connections_closed_total failed"] == 1
        assert now["connections_closed_total peer_lost"] == 2
        assert now["audits_total"] == 1
        assert 0 <= now["audit_age_seconds"] < now["audit_interval_seconds"]


@pytest.mark.req("R34")
async def test_who_was_refused_and_why() -> None:
    policies = Policies(overflow_user=Overflow.REJECT)
    async with open_server(hub, limits=Limits(per_user=1), policies=policies) as server:
        async with connect(server) as first, connect(server) as second, connect(server) as third:
            await first.upgrade()
            await second.send(upgrade_head())
            assert (await second.response())[0] == 429
            await third.send(upgrade_head(Origin="http://evil.example"))
            assert (await third.response())[0] == 403
            now = await figures(server)
            assert now["connections_refused_total limit_reached"] == 1
            assert now["emergency_cleanups_total failed"] == 1
            assert now["requests_turned_away_total unauthorized"] == 1


@pytest.mark.req("R34", "R52")
async def test_what_is_queued_and_what_was_forced() -> None:
    async def handler(conn: Connection) -> None:
        while conn.supervisor.statistics().outbox_bytes < 200_000:
            conn.send_nowait(bytes(50_000))
        await trio.sleep_forever()

    policies = Policies(slow_consumer=SlowConsumer.DROP_NEWEST)
    async with open_server(handler, policies=policies) as server:
        async with connect(server, receive_buffer=4096) as raw:
            await raw.upgrade()
            await trio.testing.wait_all_tasks_blocked(0.05)
            assert (await figures(server))["outbox_bytes"] >= 100_000
            await server.supervisor.disconnect_user("ann")
        now = await figures(server)
        assert (now["outbox_bytes"], now["closes_forced_total kicked"]) == (0, 1)


@pytest.mark.req("R34")
async def test_a_thousand_users_are_as_many_time_series_as_one() -> None:
    async with open_server(hub, limits=Limits(per_user=2)) as server:

        async def visit(user: str) -> None:
            async with connect(server) as raw:
                await raw.upgrade(f"/ws?user={user}")
                await raw.say(op="join", room=f"room of {user}")
                await raw.reset()

        await visit("first")
        await settled(server.supervisor)
        before = (await figures(server)).keys()
        for number in range(100):
            await visit(f"user-{number}")
        await settled(server.supervisor)
        after = await figures(server)
        assert after.keys() == before
        assert after["connections_admitted_total"] == 101


async def test_the_format_is_the_one_that_is_asked_for() -> None:
    async with open_server(hub) as server:
        status, content_type, text = await scrape(server)
        assert (status, content_type.split(";")[0]) == (200, "text/plain")
        assert "# HELP ws_supervisor_connections Admitted, and not leaving." in text
        status, content_type, text = await scrape(server, Accept=OPENMETRICS)
        assert (status, content_type.split(";")[0]) == (200, "application/openmetrics-text")
        names = {family.name for family in parse_openmetrics(text)}
        assert {"ws_supervisor_connections", "ws_supervisor_loop_lag_seconds", "ws_supervisor_build"} <= names


async def test_it_tells_only_whom_the_api_would_tell() -> None:
    async with open_server(hub, options=Options(admin_token="secret")) as server:
        assert (await scrape(server))[0] == 401
        assert (await scrape(server, Authorization="Bearer secret"))[0] == 200


async def test_without_its_extra_there_is_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "open_metrics", lambda supervisor: None)
    async with open_server(hub) as server:
        status, _, body = await scrape(server)
        assert (status, "websocket-supervisor[metrics]" in body) == (404, True)


@pytest.mark.req("R34")
@pytest.mark.skipif(which("promtool") is None, reason=NO_PROMTOOL)
async def test_promtool_finds_nothing_wrong_with_them() -> None:
    async with open_server(hub) as server:
        _, _, text = await scrape(server)
        checked = await trio.run_process(
            ["promtool", "check", "metrics"], stdin=text.encode(), capture_stdout=True, stderr=subprocess.STDOUT
        )
        assert checked.stdout == b""
