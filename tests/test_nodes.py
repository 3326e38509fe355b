"""Nodes as processes of their own, on real sockets, that share a real Valkey: killed, stopped, drained, and asked."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from functools import partial
from typing import Any

import psutil
import pytest
import trio

from supervisor import ClusterOptions, Options, Timeouts
from supervisor._words.profiles import choose_profile
from supervisor.client import Gap, Message, OutcomeUnknown, RequestFailed, open_client
from tests.cutting import converse, judge
from tests.serving import Process, connect, open_server
from tests.test_client import deal
from tests.test_cluster import left, until
from tests.test_runs import GOLDEN
from tests.valkey import Valkey
from tests.valkey import valkey as valkey  # a fixture

LEASE = 1.0
#: What a node needs to be one of those of this file.
SHORT = ("--node-lease", str(LEASE))


@contextlib.contextmanager
def node(valkey: Valkey, *args: str, port: int = 0) -> Iterator[Process]:
    with Process("--redis-url", valkey.url, *SHORT, *args, port=port) as process:
        yield process


def ask(port: int, path: str, body: Any = None) -> Any:
    data = None if body is None else json.dumps(body).encode()
    try:
        with urllib.request.urlopen(urllib.request.Request(f"http://127.0.0.1:{port}{path}", data)) as answer:
            return json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            raise LookupError(f"{error.code} {error.read().decode()}") from None


async def figures(port: int) -> Any:
    return await trio.to_thread.run_sync(ask, port, "/api/statistics")


def members(valkey: Valkey, user: str) -> int:
    return int(valkey.ask("ZCARD", f"ws-supervisor:u:{user}"))


@pytest.mark.req("R25", "R41", "A59")
async def test_a_node_that_is_killed_leaves_nothing_and_its_seats_are_free_within_its_lease(valkey: Valkey) -> None:
    policy = ("--per-user", "3", "--overflow-user", "reject")
    with node(valkey, *policy) as one, node(valkey, *policy) as other:
        async with contextlib.AsyncExitStack() as stack:
            for _ in range(3):
                raw = await stack.enter_async_context(connect(one.port))
                await raw.upgrade()
                await raw.message()
                await raw.say(op="join", room="r")
            seen = await stack.enter_async_context(connect(other.port))
            await seen.upgrade("/ws?user=bob")
            await seen.message()
            await seen.say(op="join", room="r")
            assert (await seen.message())["members"] == 4
            survivor = psutil.Process(other.process.pid)
            before = survivor.memory_info().rss
            one.process.kill()
            killed_at = time.monotonic()
            while True:
                async with connect(other.port) as raw:
                    with contextlib.suppress(AssertionError):
                        await raw.upgrade()
                        break
                await trio.sleep(0.02)
            assert time.monotonic() - killed_at < LEASE + 0.1
            notice = await seen.message()
            assert (notice["type"], len(notice["left"]), notice["joined"]) == ("presence", 3, [])
            await until(lambda: members(valkey, "ann") <= 1)
            profile = choose_profile("ci")
            assert survivor.memory_info().rss - before < profile.memory_growth_mb * 1e6
        other.end(signal.SIGTERM)
    assert left(valkey) == set()


@pytest.mark.req("A59", "R41")
async def test_a_node_that_was_stopped_counts_again_only_after_it_has_given_up_what_is_too_much(valkey: Valkey) -> None:
    with node(valkey, "--per-user", "2") as one, node(valkey, "--per-user", "2") as other:
        async with contextlib.AsyncExitStack() as stack:

            async def enter(port: int) -> None:
                raw = await stack.enter_async_context(connect(port))
                await raw.upgrade()

            for _ in range(2):
                await enter(one.port)
            one.process.send_signal(signal.SIGSTOP)
            await until(lambda: valkey.ask("ZCARD", "ws-supervisor:nodes") == 1)
            for _ in range(2):
                await enter(other.port)
            assert members(valkey, "ann") == 2
            one.process.send_signal(signal.SIGCONT)
            with trio.fail_after(LEASE + 2):
                while (await figures(one.port)).get("connections") != 2:
                    await trio.sleep(0.02)
            assert members(valkey, "ann") == 2
            assert (await figures(one.port))["by_node"].keys() == (await figures(other.port))["by_node"].keys()
            one.end(signal.SIGTERM)
            other.end(signal.SIGTERM)
    assert left(valkey) == set()


@pytest.mark.req("R17", "R41", "A51")
async def test_what_is_asked_of_one_node_is_answered_by_all(valkey: Valkey) -> None:
    with node(valkey) as one, node(valkey) as other:
        async with connect(one.port) as ann, connect(other.port) as again, connect(other.port) as bob:
            for raw, user in ((ann, "ann"), (again, "ann"), (bob, "bob")):
                await raw.upgrade(f"/ws?user={user}")
                await raw.message()
            said = await figures(one.port)
            assert (said["connections"], said["users"], len(said["by_node"])) == (3, 2, 2)
            call = partial(trio.to_thread.run_sync, ask)
            theirs = await call(one.port, "/api/connections?user=ann")
            assert (theirs["total"], len({card["connection"] for card in theirs["connections"]})) == (2, 2)
            assert (await call(one.port, "/api/audit"))["orphans"] == []
            [card] = (await call(one.port, "/api/connections?user=bob"))["connections"]
            story = (await call(one.port, "/api/why?connection=" + card["connection"]))["story"]
            assert [event["event"] for event in story] == ["admitted"]
            closed = await call(one.port, "/api/disconnect", {"connection": card["connection"]})
            assert closed["closed"] == 1
            assert await bob.closed_with() == (4503, "kicked")
            assert (await call(other.port, "/api/revoke", {"user": "ann"}))["closed"] == 2
            assert (await ann.closed_with())[0] == (await again.closed_with())[0] == 4506
            with pytest.raises(LookupError, match=r"404 .*not_found"):
                await call(one.port, "/api/disconnect", {"user": "nobody"})
            assert (await call(one.port, "/api/limits", {"per_user": 7}))["limits"]["per_user"] == 7
            assert (await call(other.port, "/api/limits"))["limits"]["per_user"] == 7


@pytest.mark.req("R41", "R39")
async def test_a_node_is_drained_and_the_others_go_on(valkey: Valkey, unused_port: int) -> None:
    """A client that comes back to another node has missed nothing."""
    with node(valkey, port=unused_port) as one, node(valkey) as other:
        url = f"ws://127.0.0.1:{unused_port}/ws?user=ann"
        async with (
            open_client(url, longest_pause=0.05) as ann,
            open_client(f"ws://127.0.0.1:{other.port}/ws?user=bob") as bob,
        ):
            await ann.join("r")
            await bob.join("r")
            first = await bob.publish("r", 0)
            await next_of(ann, Message)
            await trio.to_thread.run_sync(one.end, signal.SIGTERM)
            for number in range(1, 4):
                await bob.publish("r", number)
            with node(valkey, port=unused_port):
                with trio.fail_after(15):
                    heard = [await next_of(ann, Message, Gap) for _ in range(3)]
                assert [(it.data, it.seq) for it in heard] == [(n, first + n) for n in range(1, 4)]
                await bob.send("ann", "welcome back")
                assert (await next_of(ann, Message)).data == "welcome back"


async def next_of(client: Any, *kinds: type) -> Any:
    while not isinstance(it := await anext(client), kinds):
        pass
    return it


@pytest.mark.req("A61", "R39")
async def test_when_the_engine_has_forgotten_everything_clients_are_told(valkey: Valkey) -> None:
    cluster = ClusterOptions(url=valkey.url, lease=LEASE, patience=0.5)
    async with open_server(options=Options(cluster=cluster)) as server:
        url = f"ws://127.0.0.1:{server.port}/ws?user="
        async with open_client(url + "ann") as ann, open_client(url + "bob") as bob:
            await ann.join("r")
            await bob.join("r")
            for number in range(5):
                await bob.publish("r", number)
            for _ in range(5):
                await next_of(ann, Message)
            valkey.kill()
            await until(lambda: server.cluster.line.engine is None)
            valkey.start()
            with trio.fail_after(10):
                gaps = {(await next_of(ann, Gap)).room for _ in range(2)}
                assert gaps == {"r", None}
                await bob.publish("r", "new")
                assert (await next_of(ann, Message)).data == "new"
            assert server.supervisor.statistics().closed == {}  # nobody had to leave for it


@pytest.mark.req("R39", "R41")
@pytest.mark.parametrize("cuts", [20, pytest.param(1000, marks=pytest.mark.slow)])
async def test_random_cuts_between_nodes_lose_nothing(valkey: Valkey, cuts: int, record_property: Any) -> None:
    """Every connection comes to another node; now and then the nodes lose theirs to the engine."""
    cluster = ClusterOptions(url=valkey.url, lease=5)
    ample = {"history_messages": 10_000, "history_bytes": 10**7}
    with trio.fail_after(30 + cuts / 2):
        async with trio.open_nursery() as nursery:

            async def cut_the_nodes() -> None:
                while True:
                    await trio.sleep(0.3)
                    valkey.ask("CLIENT", "KILL", "TYPE", "pubsub")

            nursery.start_soon(cut_the_nodes)
            proxy, talkers, record = await converse(deal(cuts, seed=cuts), [cluster] * 3, **ample)
            nursery.cancel_scope.cancel()
    judge(talkers, record)
    assert proxy.done.total() == cuts
    assert [talker.gaps for talker in talkers] == [[], [], []]
    record_property("cuts between nodes", cuts)
    record_property("messages", len(record))
    record_property("outcomes unknown", sum(number is None for talker in talkers for _, number in talker.said))


@pytest.mark.req("A57")
async def test_a_server_that_starts_before_the_engine_does(valkey: Valkey) -> None:
    valkey.kill()
    cluster = ClusterOptions(url=valkey.url, lease=LEASE, patience=0.3)
    async with open_server(options=Options(cluster=cluster)) as server, connect(server) as raw:
        await raw.upgrade()
        epoch = (await raw.message())["epoch"]
        await raw.say(op="join", room="r", ref=1)
        assert (await raw.message())["ref"] == 1
        await raw.say(op="publish", room="r", data=1, ref=2)
        assert (await raw.message())["code"] == "unavailable"
        valkey.start()
        with trio.fail_after(10):
            welcome = await raw.message()
        assert (welcome["type"], welcome["epoch"] != epoch) == ("welcome", True)
        await raw.say(op="publish", room="r", data=2, ref=3)
        assert (await raw.message())["seq"] > 0
        assert members(valkey, "ann") == 1


@pytest.mark.req("R32")
async def test_the_golden_path_goes_on_beside_an_engine_that_stalls(valkey: Valkey) -> None:
    cluster = ClusterOptions(url=valkey.url, lease=LEASE, patience=0.3)
    async with (
        open_server(options=Options(cluster=cluster), timeouts=Timeouts(linger=5)) as server,
        connect(server) as raw,
    ):
        await raw.upgrade()
        await raw.message()
        valkey.pause()
        await raw.say(op="run", agent="demo", data="what time is it?", ref=1)
        told: list[str] = []
        with trio.fail_after(10):
            while "run_ended" not in told:
                message = await raw.message()
                if message["type"] == "run":
                    told.append(message["event"])
        assert told == [*GOLDEN, "run_ended"]
        async with connect(server) as late:
            await late.upgrade("/ws?user=late")
        valkey.go_on()


@pytest.mark.req("R41", "R25")
@pytest.mark.slow
def test_workers_share_one_port_and_one_that_is_killed_comes_back(valkey: Valkey, unused_port: int) -> None:
    args = ("--workers", "3", "--redis-url", valkey.url, *SHORT, "--per-user", "4", "--port", str(unused_port))
    with WorkersProcess(*args, port=unused_port) as parent:
        trio.run(_workers_at_work, valkey, unused_port)
        children = parent.children()
        assert len(children) == 3
        os.kill(children[0], signal.SIGKILL)
        patience = time.monotonic() + 10
        while len(fresh := parent.children()) < 3 or children[0] in fresh:
            assert time.monotonic() < patience
            time.sleep(0.05)
        trio.run(_workers_at_work, valkey, unused_port)
        parent.process.send_signal(signal.SIGTERM)
        assert parent.process.wait(20) == 0
    assert left(valkey) == set()


async def _workers_at_work(valkey: Valkey, port: int) -> None:
    """Six tabs of one user, at whichever worker: four stay, and hear each other."""
    with trio.fail_after(30):
        while True:
            with contextlib.suppress(OSError, EOFError):
                if len((await figures(port)).get("by_node", ())) == 3:
                    break
            await trio.sleep(0.05)
        async with contextlib.AsyncExitStack() as stack:
            raws = []
            for _ in range(6):
                raw = await stack.enter_async_context(connect(port))
                await raw.upgrade()
                raws.append(raw)
            await until(lambda: members(valkey, "ann") == 4)
            for raw in raws[:2]:
                assert (await raw.closed_with())[0] == 4505
            for raw in raws[2:]:
                await raw.message()
                await raw.say(op="join", room="r", ref=1)
                while (await raw.message()).get("ref") != 1:
                    pass
            await raws[2].say(op="publish", room="r", data="hello")
            for raw in raws[3:]:
                while (await raw.message()).get("data") != "hello":
                    pass
        await until(lambda: members(valkey, "ann") == 0)


class WorkersProcess(Process):
    """The parent of several."""

    def __init__(self, *args: str, port: int) -> None:
        command = [sys.executable, "-m", "supervisor", "serve", *args]
        self.process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
        self.port = port

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()

    def children(self) -> list[int]:
        return [child.pid for child in psutil.Process(self.process.pid).children()]


@pytest.mark.req("R41", "R35")
async def test_who_looks_at_one_node_sees_the_houses_of_all(valkey: Valkey) -> None:
    with node(valkey) as one, node(valkey) as other:
        async with connect(other.port) as before, connect(one.port) as page, connect(other.port) as bob:
            await before.upgrade("/ws?user=ann")
            await page.send(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            told: list[Any] = []

            async def hear() -> Any:
                block = (await page.read_until(b"\n\n")).decode()
                if "data: " in block:
                    told.append(json.loads(block.split("data: ", 1)[1].splitlines()[0]))
                return told[-1] if told else {}

            with trio.fail_after(10):
                while not any(card["user"] == "ann" for card in (await hear()).get("connections", ())):
                    pass
                assert len(told[-1]["statistics"]["by_node"]) == 2
                await bob.upgrade("/ws?user=bob")
                while not any(it["event"] == "admitted" for it in (await hear()).get("events", ())):
                    pass
                assert [it["user"] for it in told[-1]["events"] if it["event"] == "admitted"] == ["bob"]
                while told[-1]["statistics"]["connections"] != 2:
                    await hear()
                await trio.to_thread.run_sync(other.process.kill)
                while told[-1]["statistics"]["connections"] != 0 or len(told[-1]["statistics"]["by_node"]) != 1:
                    await hear()


@pytest.mark.req("A57", "R39", "R41")
async def test_what_an_engine_loses_that_is_killed_under_load_is_announced(
    valkey: Valkey, record_property: Any
) -> None:
    cluster = Options(cluster=ClusterOptions(url=valkey.url, lease=LEASE, patience=0.3))
    async with open_server(options=cluster) as one, open_server(options=cluster) as other:
        async with (
            open_client(f"ws://127.0.0.1:{one.port}/ws?user=ann") as ann,
            open_client(f"ws://127.0.0.1:{other.port}/ws?user=bob") as bob,
            trio.open_nursery() as nursery,
        ):
            await ann.join("r")
            await bob.join("r")
            said: list[int] = []
            heard: list[int | None] = []
            over = trio.Event()

            async def talk() -> None:
                number = 0
                while not over.is_set():
                    number += 1
                    with contextlib.suppress(RequestFailed, OutcomeUnknown):
                        await bob.publish("r", number)
                        said.append(number)
                    await trio.sleep(0.002)

            async def listen() -> None:
                async for it in ann:
                    if isinstance(it, Message):
                        heard.append(it.data)
                    elif isinstance(it, Gap) and it.room == "r":
                        heard.append(None)

            async def ignore() -> None:
                async for _ in bob:
                    pass

            for task in (talk, listen, ignore):
                nursery.start_soon(task)
            await until(lambda: len(heard) > 50)
            for _ in range(2):
                valkey.kill()
                await trio.sleep(0.2)
                before = len(said)
                valkey.start()
                await until(lambda before=before: len(said) > before + 100)
            over.set()
            await until(lambda: heard[-1] == said[-1])
            nursery.cancel_scope.cancel()
    numbers = [number for number in heard if number is not None]
    assert numbers == sorted(set(numbers)), "twice, or in another order"
    for lost in set(said) - set(numbers):
        place = next(index for index, number in enumerate(heard) if number is not None and number > lost)
        before = max(index for index, number in enumerate(heard[:place]) if number is not None)
        assert None in heard[before:place], f"{lost} was lost without a word"
    record_property("told by an engine that was killed twice", len(said))
    record_property("of these lost, and announced", len(set(said) - set(numbers)))
