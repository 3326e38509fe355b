"""Memory that is about to run out: newcomers are told so, those who are in stay, and it passes."""

from __future__ import annotations

import contextlib
import itertools
import json
import math
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from supervisor import echo
from supervisor._server import pressure
from supervisor._server.pressure import Pressure
from tests.serving import Raw, connect, frame, open_server, upgrade_head

MB = 1_000_000


@pytest.mark.req("R33")
@pytest.mark.parametrize(("used", "high"), [(0, False), (89, False), (90, True), (200, True)])
async def test_nine_tenths_are_too_much(used: float, high: bool) -> None:
    assert Pressure((lambda: (0.0, math.inf), lambda: (used, 100))).high() is high
    assert not Pressure(()).high()


async def test_it_does_not_look_all_the_time(autojump_clock) -> None:
    looks = []
    gauge = Pressure((lambda: (looks.append(1) or 0.0, 1.0),))
    for _ in range(10):
        gauge.high()
    assert len(looks) == 1
    await trio.sleep(0.06)
    gauge.high()
    assert len(looks) == 2


async def test_it_looks_at_everybody_when_there_is_little_left(autojump_clock) -> None:
    figures = iter([0.85, 0.89, 0.91, 0.5, 0.95])
    gauge = Pressure((lambda: (next(figures), 1.0),))
    assert [gauge.high() for _ in range(5)] == [False, False, True, False, False]


@pytest.mark.parametrize(
    ("version", "line", "used"),
    [("second", "0::/app", 700), ("second", "0::/not-seen-from-here", 700), ("first", "4:cpu,memory:/app", 700)],
)
def test_a_control_group_says_what_it_allows(tmp_path, monkeypatch, version: str, line: str, used: int) -> None:
    names = {"second": ("memory.current", "memory.max"), "first": ("memory.usage_in_bytes", "memory.limit_in_bytes")}
    place = tmp_path if version == "second" else tmp_path / "memory"
    place = place if "not-seen" in line else place / "app"
    place.mkdir(parents=True, exist_ok=True)
    usage, maximum = names[version]
    (place / usage).write_text("1000\n")
    (place / maximum).write_text("2000\n")
    (place / "memory.stat").write_text("anon 600\ninactive_file 300\n")
    own = tmp_path / "cgroup"
    own.write_text(f"7:cpuset:/\n{line}\n")
    real = pressure.Path
    monkeypatch.setattr(pressure, "_CGROUP", tmp_path)
    monkeypatch.setattr(pressure, "Path", lambda name: own if name == "/proc/self/cgroup" else real(name))
    (_, gauge) = pressure._gauges()
    assert gauge() == (used, 2000)
    (place / maximum).write_text("max\n")
    assert gauge()[1] == math.inf
    (place / usage).unlink()
    (place / maximum).write_text("2000\n")
    assert gauge() == (0.0, math.inf)


@pytest.mark.req("R33")
async def test_a_newcomer_is_told_to_come_back() -> None:
    used = 0.0
    async with open_server(echo) as server:
        server.pressure = Pressure((lambda: (used, 1.0),))
        async with connect(server) as inside, connect(server) as late:
            await inside.upgrade()
            used = 0.95
            await trio.sleep(0.06)
            await late.send(upgrade_head("/ws?user=bob"))
            status, headers, body = await late.response()
            assert (status, headers["retry-after"], json.loads(body)["close_code"]) == (503, "1", 1013)
            await inside.send(frame(1, b"still here"))
            assert await inside.frame() == (1, b"still here")
        assert server.supervisor.statistics().turned_away == {"unavailable": 1}


HOARDER = """
import resource, sys, pathlib
from supervisor import cli, hub
from supervisor.cli.handlers import APPS
async def hoard(conn):
    kept = []
    async for message in conn:
        kept.append(message)
        await conn.send("kept")
APPS["hoard"] = hoard
pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
limit = pages * resource.getpagesize() + 120_000_000
resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
sys.argv = ["ws-supervisor", "serve", "--port", sys.argv[1], "--app", "hoard", "--per-user", "1"]
cli.main()
"""


@contextlib.asynccontextmanager
async def hoarder(port: int) -> AsyncIterator[trio.Process]:
    command = [sys.executable, "-c", textwrap.dedent(HOARDER), str(port)]
    # Or the first long line that the log's thread writes takes 64 MB of what there is, though of addresses only.
    run = partial(trio.run_process, env={**os.environ, "MALLOC_ARENA_MAX": "1"}, stderr=subprocess.PIPE, check=False)
    async with trio.open_nursery() as nursery:
        process = await nursery.start(run, command)
        said = b""
        while b"serving on" not in said:
            said += await process.stderr.receive_some()
        nursery.start_soon(drop, process.stderr)
        yield process
        assert process.poll() is None, "it has died"
        os.kill(process.pid, signal.SIGTERM)
        with trio.fail_after(10):
            await process.wait()


async def drop(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass


async def hoards(raw: Raw) -> bool:
    """Have it keep one more megabyte; False if it could not."""
    try:
        await raw.send(frame(2, bytes(MB)))
        return await raw.frame() == (1, b"kept")
    except (EOFError, trio.BrokenResourceError):
        return False


@pytest.mark.req("R33")
async def test_a_process_without_memory_lives_refuses_and_recovers(unused_port: int) -> None:
    async with hoarder(unused_port), contextlib.AsyncExitStack() as stack:
        guests = [await stack.enter_async_context(connect(unused_port)) for _ in range(10)]
        for number, raw in enumerate(guests):
            await raw.upgrade(f"/ws?user=guest-{number}")
        for raw in itertools.cycle(guests):
            assert await hoards(raw)  # those who are in get what there is
            async with connect(unused_port) as late:
                await late.send(upgrade_head("/ws?user=late"))
                status, _, body = await late.response()
            if status != 101:
                assert (status, json.loads(body)["close_code"]) == (503, 1013)
                break
        hoarding = list(guests)
        while hoarding:  # until nobody gets any more
            hoarding = [raw for raw in hoarding if await hoards(raw)]
        await stack.aclose()
        with trio.fail_after(5):
            while True:
                async with connect(unused_port) as late:
                    await late.send(upgrade_head("/ws?user=late"))
                    if (await late.response())[0] == 101 and await hoards(late):
                        return
                await trio.sleep(0.05)
