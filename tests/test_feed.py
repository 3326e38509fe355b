"""What happens, as server-sent events: the house once, then what changes; bounded whatever happens."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import attrs
import pytest
import trio

from supervisor import CloseReason, Identity, Limits, Options, Overflow, Policies, Refused, Server, Supervisor, events
from supervisor._server import feed as feed_module
from supervisor._server.feed import Feed
from supervisor.testing import FaultWire
from tests.helpers import sleeper
from tests.serving import Raw, connect, open_server, request


@attrs.define
class Viewer:
    """Somebody who looks."""

    raw: Raw
    house: dict[str, Any] = attrs.field(factory=dict)

    async def chunk(self) -> bytes:
        size = int(await self.raw.read_until(b"\r\n"), 16)
        data = await self.raw.read_exactly(size + 2)
        return data[:-2]

    async def told(self) -> tuple[str, dict[str, Any]]:
        """The next thing that is told, and of what kind."""
        while (said := (await self.chunk()).decode()) == ":\n\n":
            pass
        kind, data, *_ = said.split("\n")
        return kind.removeprefix("event: "), json.loads(data.removeprefix("data: "))

    async def until(self, event: str) -> dict[str, Any]:
        """The first event of this name."""
        while True:
            _, data = await self.told()
            for one in data.get("events", ()):
                if one["event"] == event:
                    return one


@contextlib.asynccontextmanager
async def looking(server: Server) -> AsyncIterator[Viewer]:
    async with connect(server) as raw:
        await raw.send(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        head = (await raw.read_until(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 200")
        assert "content-type: text/event-stream" in head
        viewer = Viewer(raw)
        kind, viewer.house = await viewer.told()
        assert kind == "house"
        yield viewer


async def enter(supervisor: Supervisor, user: str = "ann") -> None:
    with contextlib.suppress(Refused):
        await supervisor.start(FaultWire(), Identity(user=user), sleeper)


@pytest.mark.req("R35")
async def test_the_house_then_what_changes() -> None:
    async with open_server(limits=Limits(per_user=1)) as server:
        await enter(server.supervisor, "ann")
        async with looking(server) as viewer:
            (one,) = viewer.house["connections"]
            assert (one["connection"], one["user"], viewer.house["limits"]["per_user"]) == ("c1", "ann", 1)
            await enter(server.supervisor, "ann")
            kind, told = await viewer.told()
            assert kind == "changes"
            assert sorted(event["event"] for event in told["events"]) == ["admitted", "closed", "leaving"]
            assert told["statistics"]["admitted"] == 2
            assert told["events"][0]["reason"] == "evicted"


@pytest.mark.req("R35")
async def test_nothing_is_kept_while_nobody_looks() -> None:
    async with open_server() as server:
        await enter(server.supervisor)
        assert server.feed._changes == []
        async with looking(server):
            assert server.feed.viewers == 1
        with trio.fail_after(5):
            while server.feed.viewers:
                await trio.sleep(0.01)
        await enter(server.supervisor)
        assert server.feed._changes == []


async def test_after_too_much_the_house_is_shown_again(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "_MOST_CHANGES", 10)
    async with open_server() as server, looking(server) as viewer:
        for number in range(20):
            await enter(server.supervisor, f"user-{number}")
        assert len(server.feed._changes) == 11
        kind, house = await viewer.told()
        assert (kind, len(house["connections"])) == ("house", 20)


async def test_of_many_refusals_some_are_told_and_all_are_counted() -> None:
    policies = Policies(overflow_user=Overflow.REJECT)
    async with open_server(limits=Limits(per_user=1), policies=policies) as server, looking(server) as viewer:
        for _ in range(501):
            await enter(server.supervisor)
        _, told = await viewer.told()
        names = [event["event"] for event in told["events"]]
        assert names.count("refused") == 50
        assert told["statistics"]["refused"] == {"limit_reached": 500}


async def test_a_house_too_large_to_show_says_how_much_is_not_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MAX_SHOWN", 3)
    async with open_server() as server:
        for number in range(5):
            await enter(server.supervisor, f"user-{number}")
        async with looking(server) as viewer:
            assert (len(viewer.house["connections"]), viewer.house["unshown"]) == (3, 2)


async def test_all_viewers_are_told_the_same_and_one_who_is_late_catches_up(autojump_clock) -> None:
    """On virtual time, with the feed alone: a viewer that misses a tick is shown the house."""
    from supervisor import open_supervisor

    class Watching:
        def __init__(self, pause: float) -> None:
            self.pause, self.said = pause, []

        async def begin_stream(self, content_type: str) -> None:
            await trio.lowlevel.checkpoint()

        async def send_part(self, data: bytes) -> None:
            self.said.append(data)
            await trio.sleep(self.pause)

        async def wait_hangup(self, scope: trio.CancelScope) -> None:
            await trio.sleep_forever()

    async with open_supervisor() as supervisor, trio.open_nursery() as nursery:
        feed = Feed(supervisor)
        supervisor.subscribe(feed)
        nursery.start_soon(feed.run)
        quick, slow = Watching(0), Watching(0.9)
        for viewer in (quick, slow):
            nursery.start_soon(feed.show, viewer)
        await trio.sleep(0.05)  # so that nothing falls upon a tick
        for number in range(4):
            await enter(supervisor, f"user-{number}")
            await trio.sleep(0.3)
        assert [said.split(b"\n")[0] for said in quick.said] == [b"event: house"] + [b"event: changes"] * 4
        assert [said.split(b"\n")[0] for said in slow.said] == [b"event: house"] * 2
        await trio.sleep(20)
        assert quick.said[-1] == b":\n\n"  # still here
        nursery.cancel_scope.cancel()


async def test_too_many_viewers_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(feed_module, "MAX_VIEWERS", 1)
    async with open_server() as server, looking(server):
        status, answer = await request(server, "GET", "/api/events")
        assert (status, answer["error"]) == (503, "unavailable")


async def test_a_viewer_that_does_not_read_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("supervisor._server.exchange._ANSWER", 0.2)
    async with open_server(limits=Limits(total=2000)) as server:
        for number in range(1500):
            await enter(server.supervisor, f"user-{number}")
        monkeypatch.setattr(feed_module, "_MOST_CHANGES", 0)  # the whole house each time
        async with connect(server, receive_buffer=4096) as raw:
            await raw.send(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            with trio.fail_after(20):
                while not server.feed.viewers:
                    await trio.sleep(0.01)
                while server.feed.viewers:
                    await enter(server.supervisor, "ann")
                    await trio.sleep(0.05)


async def test_it_is_for_those_who_may_ask() -> None:
    async with open_server(options=Options(admin_token="secret")) as server:
        assert (await request(server, "GET", "/api/events"))[0] == 401
        async with connect(server) as raw:
            await raw.send(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer secret\r\n\r\n")
            assert b"200" in await raw.read_until(b"\r\n")


@pytest.mark.req("R35")
async def test_who_looks_sees_the_end() -> None:
    async with open_server() as server, looking(server) as viewer:
        await enter(server.supervisor)
        await server.supervisor.drain()
        assert (await viewer.until("closed"))["reason"] == CloseReason.RESTART.word


@pytest.mark.req("R19")
async def test_an_event_that_cannot_be_spelled_hurts_nobody(caplog: pytest.LogCaptureFixture) -> None:
    @attrs.frozen(kw_only=True)
    class Strange(events.Event):
        what: object

    class Mute:
        def __repr__(self) -> str:
            raise RuntimeError("no")

    async with open_server() as server, looking(server) as viewer:
        server.supervisor.post(Strange(at=trio.current_time(), what=Mute()))
        assert (await viewer.until("strange"))["what"] == "(it cannot be spelled)"
        server.feed._changes.append(None)  # type: ignore[arg-type]  # something that nobody has thought of
        await enter(server.supervisor)
        with trio.fail_after(5):
            while not server.supervisor.statistics().failures.get("feed"):
                await trio.sleep(0.01)
        await enter(server.supervisor, "bob")
        await viewer.until("admitted")


async def test_late_comers_in_one_tick_are_shown_the_same_house() -> None:
    async with open_server() as server, looking(server):
        assert server.feed._house() is server.feed._house()


@pytest.mark.parametrize("method", ["POST", "HEAD", "DELETE"])
async def test_it_is_for_get(method: str) -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.send(f"{method} /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        head = (await raw.read_until(b"\r\n\r\n")).decode().lower()
        assert head.startswith("http/1.1 405")
        assert "allow: get\r\n" in head
        assert server.feed.viewers == 0
