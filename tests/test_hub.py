"""The native protocol, spoken by a client that is not ours."""

from __future__ import annotations

import pytest
import trio

from supervisor import Connection, Hub, Limits, echo
from supervisor._server.hub import MAX_METADATA, MAX_MISTAKES
from tests.serving import connect, frame, open_server


async def test_join_publish_presence_and_leave() -> None:
    async with open_server() as server, connect(server) as ann, connect(server) as bob:
        await ann.upgrade("/ws?user=ann", Sec_WebSocket_Protocol="supervisor.v1.json")
        welcome = await ann.message()
        assert (welcome["type"], welcome["user"], welcome["seq"]) == ("welcome", "ann", 0)
        epoch = welcome["epoch"]
        assert welcome["limits"]["per_user"] == 5
        await bob.upgrade("/ws?user=bob&session=s1")
        assert (await bob.message())["session"] == "s1"
        await ann.say(op="join", room="r", ref="one")
        reply = {"type": "reply", "ref": "one", "room": "r", "members": 1, "seq": 0, "epoch": epoch}
        assert await ann.message() == reply
        await bob.say(op="join", room="r", ref=2)
        assert (await bob.message())["members"] == 2
        joined = {"connection": "c2", "user": "bob"}
        assert await ann.message() == {"type": "presence", "room": "r", "joined": [joined], "left": []}
        await bob.say(op="publish", room="r", data={"nested": [1, None, "ü"]}, ref=3)
        assert await bob.message() == {"type": "reply", "ref": 3, "room": "r", "delivered": 1, "seq": 1}
        message = {"type": "message", "room": "r", "from": "bob", "data": {"nested": [1, None, "ü"]}, "seq": 1}
        assert await ann.message() == message
        await ann.say(op="presence", room="r")
        assert [member["user"] for member in (await ann.message())["members"]] == ["ann", "bob"]
        await bob.say(op="leave", room="r")
        assert (await bob.message())["room"] == "r"
        assert (await ann.message())["left"] == [joined]
        await ann.say(op="send", user="bob", data="direct")
        assert (await ann.message())["delivered"] == 1
        assert await bob.message() == {"type": "message", "user": "bob", "from": "ann", "data": "direct", "seq": 1}
        await ann.say(op="ping", ref=9)
        assert await ann.message() == {"type": "reply", "ref": 9, "pong": True}


@pytest.mark.req("R10")
async def test_a_room_is_told_of_whoever_vanishes() -> None:
    async with open_server() as server, connect(server) as ann:
        await ann.upgrade("/ws?user=ann")
        await ann.message()
        await ann.say(op="join", room="r")
        await ann.message()
        async with connect(server) as bob:
            await bob.upgrade("/ws?user=bob")
            await bob.say(op="join", room="r")
            assert (await ann.message())["joined"][0]["user"] == "bob"
            await bob.reset()
        assert (await ann.message())["left"][0]["user"] == "bob"
        assert len(server.supervisor.room("r").members) == 1


BAD = [
    *("not json", "[]", '"text"', "null", "1", "{}", '{"op":1}', '{"op":"fly"}', '{"op":["join"]}', '{"op":"join"}'),
    *('{"op":"join","room":""}', '{"op":"join","room":1}', '{"op":"join","room":"' + "x" * 257 + '"}'),
    *('{"op":"publish","room":"r"}', '{"op":"publish","room":"r","data":1}', '{"op":"leave","room":"r"}'),
    *('{"op":"send","user":"bob"}', '{"op":"ping","ref":{}}', '{"op":"ping","ref":1e400}', '{"op":"ping","ref":NaN}'),
    *("[" * 100_000, '{"a":' * 100_000, "9" * 10_000, '{"op":"send","user":"u","data":1e400}', '{"op":"ping"', ""),
    '{"op":"send","user":"u","data":' + "[" * 900 + "]" * 900 + "}",
]


@pytest.mark.parametrize("text", BAD, ids=lambda text: text[:24])
async def test_malformed_frames_get_an_error_and_nothing_else(text: str) -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.message()
        await raw.send(frame(1, text.encode()))
        answer = await raw.message()
        if answer["type"] == "error":
            assert answer["code"] == "bad_request"
        await raw.say(op="ping")
        assert (await raw.message())["pong"] is True


async def test_binary_frames_and_surrogates() -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.message()
        await raw.send(frame(2, b"{}"))
        assert (await raw.message())["detail"] == "frames are JSON text, not binary"
        await raw.send(frame(1, rb'{"op":"join","room":"\ud800","ref":"\ud800"}'))
        assert (await raw.message())["room"] == "\ud800"


async def test_repeated_abuse_ends_the_connection() -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frame(1, b"x") * MAX_MISTAKES)
        assert await raw.closed_with() == (4501, "too many malformed frames")


async def test_rooms_are_bounded() -> None:
    async with open_server(limits=Limits(rooms=3, rooms_total=4)) as server, connect(server) as ann:
        await ann.upgrade()
        assert (await ann.message())["limits"]["rooms"] == 3
        for name in "abc":
            await ann.say(op="join", room=name)
            assert (await ann.message())["type"] == "reply"
        await ann.say(op="join", room="d")
        assert (await ann.message())["detail"] == "exceeded maximum rooms per connection limit (3/3)"
        async with connect(server) as bob:
            await bob.upgrade("/ws?user=bob")
            await bob.message()
            for name, detail in (
                ("a", None),
                ("d", None),
                ("e", "exceeded maximum rooms total limit (4/4)"),
                ("b", None),
            ):
                await bob.say(op="join", room=name)
                answer = await bob.message()
                assert (answer.get("detail"), answer.get("code")) == (detail, detail and "limit_reached")
            await bob.say(op="leave", room="d")
            assert (await bob.message())["type"] == "reply"
            await bob.say(op="join", room="e")
            assert (await bob.message())["type"] == "reply"


@pytest.mark.req("R39")
async def test_who_comes_back_misses_nothing_that_is_still_kept() -> None:
    limits = Limits(history_messages=5)
    async with open_server(limits=limits) as server, connect(server) as ann, connect(server) as bob:
        for raw, user in ((ann, "ann"), (bob, "bob")):
            await raw.upgrade(f"/ws?user={user}")
            epoch = (await raw.message())["epoch"]
            await raw.say(op="join", room="r")
            reply = await raw.message()
            assert (reply["seq"], "complete" in reply) == (0, False)
        await ann.message()  # bob is here
        await bob.reset()
        await ann.message()  # bob is gone
        for number in range(1, 4):
            await ann.say(op="publish", room="r", data=number)
            assert (await ann.message())["seq"] == number
        for since, of, expected in (
            (0, epoch, [1, 2, 3]),
            (2, epoch, [3]),
            (3, epoch, []),
            (2, "another", None),
            (9, epoch, None),
        ):
            async with connect(server) as back:
                await back.upgrade("/ws?user=bob")
                await back.message()
                await back.say(op="join", room="r", seq=since, epoch=of)
                missed = [await back.message() for _ in expected or ()]
                assert [message["data"] for message in missed] == (expected or [])
                assert (await back.message())["complete"] is (expected is not None)
        async with connect(server) as back:
            await back.upgrade("/ws?user=bob")
            await back.message()
            await back.say(op="join", room="r", seq="2")
            assert (await back.message())["code"] == "bad_request"


@pytest.mark.req("R39")
async def test_what_was_said_to_a_user_while_they_were_away_is_told_once_they_ask() -> None:
    async with open_server() as server, connect(server) as ann:
        await ann.upgrade("/ws?user=ann")
        epoch = (await ann.message())["epoch"]
        for number in range(3):
            await ann.say(op="send", user="bob", data=number)
            answer = await ann.message()
            assert (answer["delivered"], "seq" in answer) == (0, False)
        async with connect(server) as bob:
            await bob.upgrade("/ws?user=bob")
            assert (await bob.message())["seq"] == 3
            await bob.say(op="recover", seq=1, epoch=epoch)
            assert [(await bob.message())["data"] for _ in range(2)] == [1, 2]
            assert await bob.message() == {"type": "reply", "ref": None, "seq": 3, "epoch": epoch, "complete": True}


async def test_presence_has_what_each_joined_with() -> None:
    async with open_server() as server, connect(server) as ann, connect(server) as bob:
        for raw, user in ((ann, "ann"), (bob, "bob")):
            await raw.upgrade(f"/ws?user={user}")
            await raw.message()
        await ann.say(op="join", room="r")
        await ann.message()
        for metadata in ({"mood": "fine"}, {"mood": "better"}, {"mood": "better"}):
            await bob.say(op="join", room="r", metadata=metadata)
            assert (await bob.message())["members"] == 2
        for mood in ("fine", "better"):
            joined = (await ann.message())["joined"]
            assert joined == [{"connection": "c2", "user": "bob", "metadata": {"mood": mood}}]
        await ann.say(op="presence", room="r")  # and nothing was told of what did not change
        assert (await ann.message())["members"] == [{"connection": "c1", "user": "ann"}, *joined]
        await bob.say(op="leave", room="r")
        assert (await ann.message())["left"] == joined
        await bob.message()
        await bob.say(op="join", room="r", metadata="x" * MAX_METADATA)
        assert (await bob.message())["detail"] == f"metadata has at most {MAX_METADATA} bytes"


async def test_who_may_not_is_told_so() -> None:
    def may(conn: Connection, op: str, name: str) -> bool:
        return (op, name) in {("join", "news"), ("presence", "news"), ("send", "bob")}

    async with open_server(Hub({"agent": echo}, may)) as server, connect(server) as raw:  # type: ignore[arg-type]  # it never runs
        await raw.upgrade()
        await raw.message()
        for allowed, frame_ in (
            (True, {"op": "join", "room": "news"}),
            (False, {"op": "join", "room": "secrets"}),
            (False, {"op": "publish", "room": "news", "data": 1}),
            (True, {"op": "presence", "room": "news"}),
            (False, {"op": "presence", "room": "secrets"}),
            (True, {"op": "send", "user": "bob", "data": 1}),
            (False, {"op": "send", "user": "cid", "data": 1}),
            (False, {"op": "run", "agent": "agent"}),
        ):
            await raw.say(**frame_)
            answer = await raw.message()
            assert answer.get("code") == (None if allowed else "forbidden"), frame_


@pytest.mark.req("R03", "R26")
@pytest.mark.parametrize("limit", [5, 20])
async def test_eight_tabs_of_one_user(limit: int) -> None:
    async with open_server(limits=Limits(per_user=limit)) as server, trio.open_nursery() as nursery:
        closed: list[tuple[int, str]] = []

        async def tab(*, task_status=trio.TASK_STATUS_IGNORED) -> None:
            async with connect(server) as raw:
                await raw.upgrade()
                task_status.started()
                closed.append(await raw.closed_with())

        for _ in range(8):
            await nursery.start(tab)
        with trio.move_on_after(0.3):
            while len(closed) < 8:
                await trio.sleep(0.01)
        sentence = f"user 'ann' exceeded maximum connections per user limit ({limit}/{limit})"
        assert closed == [(4505, sentence)] * max(0, 8 - limit)
        assert len(server.supervisor.connections(user="ann")) == min(8, limit)
        nursery.cancel_scope.cancel()


async def test_without_an_idle_ttl_there_is_a_welcome_too() -> None:
    async with open_server(limits=Limits(idle_ttl=float("inf"))) as server, connect(server) as raw:
        await raw.upgrade()
        assert (await raw.message())["limits"]["idle_ttl"] is None


async def test_what_is_declined_is_no_mistake() -> None:
    async with open_server(limits=Limits(runs=0)) as server, connect(server) as raw:
        await raw.upgrade()
        await raw.message()
        for _ in range(MAX_MISTAKES + 5):
            await raw.say(op="run", agent="demo")
            assert (await raw.message())["code"] == "limit_reached"
        await raw.say(op="ping")
        assert (await raw.message())["pong"] is True


@pytest.mark.req("R39")
async def test_what_was_missed_is_told_once_for_each_coming() -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.upgrade()
        epoch = (await raw.message())["epoch"]
        await raw.say(op="join", room="r")
        await raw.message()
        await raw.say(op="publish", room="r", data="x" * 1000)
        await raw.message()
        for seq, complete in ((0, False), (1, True)):
            await raw.say(op="join", room="r", seq=seq, epoch=epoch)
            assert (await raw.message())["complete"] is complete
