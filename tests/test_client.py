"""The client for Trio, against the real server, and through a proxy that cuts."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest
import trio

from supervisor import (
    CloseReason,
    Connection,
    Hub,
    Identity,
    Limits,
    Options,
    Overflow,
    Policies,
    Timeouts,
    Unauthorized,
    serve,
)
from supervisor.client import (
    Client,
    Connected,
    Disconnected,
    Dismissed,
    Gap,
    Message,
    OutcomeUnknown,
    Presence,
    RequestFailed,
    RoomLost,
    RunEvent,
    open_client,
)
from supervisor.client.conversation import Conversation
from supervisor.client.inbox import MOST
from supervisor.client.requests import Again
from supervisor.client.returning import FIRST, SPREAD, pause
from supervisor.client.sequence import Missing, Sequence
from tests.cutting import converse, hub, judge
from tests.proxy import Cut, Manner, open_proxy
from tests.serving import file_descriptors, open_server, settled, tasks

MANNERS = [*[Manner.RESET] * 6, *[Manner.CLOSE] * 6, *[Manner.HALF_OPEN] * 6, Manner.SILENT]


def deal(count: int, seed: int) -> Iterator[Cut]:
    """Random cuts: within the handshake, within a frame, after many."""
    rng = random.Random(seed)
    for _ in range(count):
        yield Cut(
            rng.choice((30, 600, 2000, 10_000)), rng.randint(1, rng.choice((200, 2000, 20_000))), rng.choice(MANNERS)
        )


@pytest.mark.req("R39")
@pytest.mark.parametrize("cuts", [100, pytest.param(1000, marks=pytest.mark.slow)])
async def test_random_cuts_lose_nothing(cuts: int, record_property) -> None:
    with trio.fail_after(cuts / 4):
        proxy, talkers, record = await converse(deal(cuts, seed=cuts), history_messages=10_000, history_bytes=10**7)
    judge(talkers, record)
    assert proxy.done.total() == cuts
    assert [talker.gaps for talker in talkers] == [[], [], []]
    assert all(number is not None for talker in talkers for _, number in talker.said)
    record_property("cuts", cuts)
    record_property("messages", len(record))
    record_property("runs", sum(len(talker.runs) for talker in talkers))


@pytest.mark.req("R39")
async def test_what_is_lost_is_said(record_property) -> None:
    limits: dict[str, Any] = {"history_messages": 3, "run_messages": 2}
    with trio.fail_after(60):
        _, talkers, record = await converse(deal(100, seed=3), **limits)
    judge(talkers, record)
    assert any(talker.gaps for talker in talkers)


# -- what a person who uses it sees ----------------------------------------------------------------------------


def url_of(server: Any, user: str = "ann") -> str:
    return f"ws://127.0.0.1:{server.port}/ws?user={user}"


async def next_of(client: Client, kind: type) -> Any:
    async for it in client:
        if isinstance(it, kind):
            return it
    raise AssertionError


async def test_join_publish_send_presence_and_leave() -> None:
    async with open_server() as server, open_client(url_of(server)) as ann, open_client(url_of(server, "bob")) as bob:
        assert await ann.join("r", presence=True) == 1
        assert ann.user == "ann"
        assert await bob.join("r", {"mood": "fine"}) == 2
        assert [card["user"] for card in await ann.presence("r")] == ["ann", "bob"]
        assert await ann.publish("r", ["ü", None]) == 1
        assert await next_of(bob, Message) == Message("r", "ann", ["ü", None], 1)
        assert await next_of(ann, Message) == Message("r", "ann", ["ü", None], 1)  # who speaks hears it, too
        assert await ann.send("bob", "direct") == 1
        assert await next_of(bob, Message) == Message(None, "ann", "direct", 1)
        await bob.leave("r")
        left = (await next_of(ann, Presence)).left
        assert [card["metadata"] for card in left] == [{"mood": "fine"}]


async def test_what_the_server_declines_is_an_error_of_who_has_asked() -> None:
    async with open_server(limits=Limits(rooms=1)) as server, open_client(url_of(server)) as ann:
        with pytest.raises(RequestFailed, match="join a room to publish in it") as failed:
            await ann.publish("r", 1)
        assert failed.value.code == "bad_request"
        await ann.join("r")
        with pytest.raises(RequestFailed, match="limit_reached"):
            await ann.join("s")
        for bad in (float("nan"), object()):
            with pytest.raises((ValueError, TypeError)):
                await ann.publish("r", bad)
        with pytest.raises(RequestFailed, match="not_found"):
            await ann.follow("r99")
        assert await ann.publish("r", 1) == 1


@pytest.mark.req("R32")
async def test_a_run_is_followed_and_cancelled() -> None:
    async with (
        open_server(hub, limits=Limits(runs=2)) as server,
        open_client(url_of(server)) as ann,
        open_client(url_of(server)) as other,
    ):
        run = await ann.run("counting", 3)
        events = [await next_of(ann, RunEvent) for _ in range(4)]
        assert [(event.run, event.seq, event.event) for event in events] == [
            *((run, number, "step") for number in (1, 2, 3)),
            (run, 4, "run_ended"),
        ]
        assert await other.follow(run) == "completed"
        assert [(await next_of(other, RunEvent)).seq for _ in range(4)] == [1, 2, 3, 4]
        long = await ann.run("counting", 10_000)
        assert await ann.cancel(long)
        while (event := await next_of(ann, RunEvent)).event != "run_ended":
            pass
        assert event.data["outcome"] == "cancelled"


@pytest.mark.parametrize(
    ("reason", "code"), [(CloseReason.KICKED, 4503), (CloseReason.REVOKED, 4506), (CloseReason.EVICTED, 4505)]
)
async def test_who_is_not_wanted_does_not_come_back(reason: CloseReason, code: int) -> None:
    async with open_server() as server, open_client(url_of(server)) as ann:
        await ann.join("r")
        await server.supervisor.disconnect_user("ann", reason=reason)
        with pytest.raises(Dismissed) as dismissed:
            while True:
                await next_of(ann, Disconnected)
        assert dismissed.value.code == code
        with pytest.raises(Dismissed):
            await ann.publish("r", 1)


async def test_who_has_no_credential_is_told_so() -> None:
    def authenticate(request: Any) -> Identity:
        if request.header("authorization") != "Bearer two":
            raise Unauthorized("no")
        return Identity(user="ann", session=request.query("session"))

    tokens = iter(["two", "one"])

    async def token() -> str:
        await trio.lowlevel.checkpoint()
        return next(tokens)

    options = Options(authenticate=authenticate)
    async with open_server(options=options) as server, open_client(url_of(server, ""), token=token) as ann:
        await ann.join("r")
        await server.supervisor.disconnect_user("ann", reason=CloseReason.CREDENTIAL_EXPIRED)
        with pytest.raises(Dismissed, match="4500 no"):  # the second token is not good
            while True:
                await next_of(ann, Disconnected)


async def test_a_server_that_refuses_for_now_is_asked_again() -> None:
    async with open_server(limits=Limits(per_user=1), policies=Policies(overflow_user=Overflow.REJECT)) as server:
        async with open_client(url_of(server)) as first:
            await first.join("r")
            async with open_client(url_of(server), longest_pause=0.01) as second:
                refused = await next_of(second, Disconnected)
                assert (refused.code, refused.retry_in >= 1) == (4504, True)


@pytest.mark.req("R39")
async def test_another_server_is_another_history(unused_port: int) -> None:
    """Whatever was there before is lost, and said to be."""

    async def serve_once(talk: Any) -> None:
        async with trio.open_nursery() as nursery:
            options = Options(port=unused_port)
            server = await nursery.start(partial(serve, hub, options, signals=False, timeouts=Timeouts(linger=5)))
            await talk(server)
            await server.supervisor.drain()
            nursery.cancel_scope.cancel()

    url = f"ws://127.0.0.1:{unused_port}/ws?user=ann"
    async with open_client(url, longest_pause=0.01) as ann:

        async def before(server: Any) -> None:
            await ann.join("r", "m", presence=True)
            for number in range(3):
                assert await ann.publish("r", number) == number + 1
            await ann.run("counting", 10_000)
            await next_of(ann, RunEvent)

        async def after(server: Any) -> None:
            while not (await next_of(ann, Connected)).again:
                pass
            gap = await next_of(ann, Gap)
            gaps = [gap, await next_of(ann, Gap), await next_of(ann, Gap)]
            assert {(it.room, it.run) for it in gaps} == {(None, None), ("r", None), (None, "r1")}
            assert [it.until for it in gaps] == [None] * 3
            ended = await next_of(ann, RunEvent)
            assert (ended.event, ended.data) == ("run_ended", {"outcome": None})
            assert await ann.publish("r", "new") == 1
            assert (await next_of(ann, Message)).data == "new"

        await serve_once(before)
        await serve_once(after)


@pytest.mark.req("R39")
async def test_what_nobody_can_know_is_not_guessed() -> None:
    """A message to a user whose answer is lost; and one to a room that lets us in no more."""
    allowed = True
    gate = Hub({}, lambda conn, op, name: allowed or op != "join")
    async with open_server(gate) as server:
        cut = iter([Cut(100_000, 900, Manner.HALF_OPEN)])
        async with open_proxy(server.port, cut) as proxy, trio.open_nursery() as nursery:
            url = f"ws://127.0.0.1:{proxy.port}/ws?user=ann"
            async with open_client(url, longest_pause=0.01, heartbeat=0.1, patience=0.1) as ann:
                await ann.join("r")

                async def send() -> None:
                    with pytest.raises(OutcomeUnknown):
                        while True:
                            await ann.send("bob", "x")

                async def publish() -> None:
                    with pytest.raises(OutcomeUnknown):
                        while True:
                            await ann.publish("r", "y")

                nursery.start_soon(send)
                nursery.start_soon(publish)
                await next_of(ann, Message)
                allowed = False
                lost = await next_of(ann, RoomLost)
                assert (lost.room, lost.code) == ("r", "forbidden")
                with pytest.raises(RequestFailed, match="join a room"):
                    await ann.publish("r", "z")


@pytest.mark.req("R39")
async def test_a_reader_who_is_slow_holds_up_the_server_and_loses_nothing() -> None:
    async with open_server(limits=Limits(outbox_messages=10), policies=Policies()) as server:
        async with open_client(url_of(server)) as ann, open_client(url_of(server, "bob"), longest_pause=0.01) as bob:
            for client in (ann, bob):
                await client.join("r")
            text = "x" * 2000
            for number in range(3 * MOST):
                await ann.publish("r", [number, text])
                if number % 50 == 0:
                    await next_of(ann, Message)
                    while ann._inbox.waiting:
                        await next_of(ann, object)
            assert len(bob._inbox.waiting) <= MOST + 100
            heard = []
            while len(heard) < 3 * MOST:
                it = await next_of(bob, (Message, Gap))
                heard += [it.data[0]] if isinstance(it, Message) else range(it.after, it.until)
            assert heard == list(range(3 * MOST))


async def test_a_server_that_is_no_hub_is_left() -> None:
    async def talks(conn: Connection) -> None:
        await conn.send("[1]")
        await trio.sleep_forever()

    async with open_server(talks) as server, open_client(url_of(server)) as ann:
        with pytest.raises(Dismissed, match="this is no hub"):
            await next_of(ann, Disconnected)


@pytest.mark.parametrize("kind", ["nobody", "mute", "hangs up", "HTTP", "garbage"])
async def test_whatever_is_there_instead_of_a_server_is_tried_again(kind: str) -> None:
    answers = {"HTTP": b"HTTP/1.1 502 Bad Gateway\r\nContent-Length: 3\r\n\r\nbad", "garbage": b"\0" * 100}

    async def stranger(stream: trio.SocketStream) -> None:
        if kind == "mute":
            await trio.sleep_forever()
        if kind != "hangs up":
            await stream.receive_some()
            await stream.send_all(answers[kind])

    async with trio.open_nursery() as nursery:
        listeners = await trio.open_tcp_listeners(0, host="127.0.0.1")
        port = listeners[0].socket.getsockname()[1]
        if kind == "nobody":
            await listeners[0].aclose()
        else:
            nursery.start_soon(trio.serve_listeners, stranger, listeners)
        async with open_client(f"ws://127.0.0.1:{port}/ws", longest_pause=0.01, patience=0.05) as client:
            for _ in range(3):
                assert (await next_of(client, Disconnected)).code in (1006, 1013)
        nursery.cancel_scope.cancel()


async def test_it_leaves_nothing() -> None:
    async with open_server() as server:
        before = tasks(), file_descriptors()
        for _ in range(3):
            async with open_client(url_of(server)) as ann:
                await ann.join("r")
        await settled(server.supervisor)
        assert (tasks(), file_descriptors()) == before
        assert server.supervisor.statistics().closed["peer_closed"] == 3


# -- whether and when ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reason", list(CloseReason))
def test_it_comes_back_when_it_may(reason: CloseReason) -> None:
    rng = random.Random(0)
    waits = [pause(reason.code, attempt, rng=rng) for attempt in range(40)]
    if reason.may_return:
        reach = SPREAD if reason.code in (1001, 1012, 1013) else FIRST
        for attempt, wait in enumerate(waits):
            assert wait is not None
            assert wait <= min(30.0, reach * 2**attempt)
    else:
        assert set(waits) == {None}
    assert (pause(reason.code, 0, 2.0, rng=rng) or 0) >= 2.0  # asked to come later, it comes later


def test_those_who_are_sent_away_together_come_back_spread() -> None:
    waits = sorted(pause(1012, 0, rng=random.Random(seed)) or 0.0 for seed in range(1000))
    for share in (0.25, 0.5, 0.75):
        assert abs(waits[int(1000 * share)] - SPREAD * share) < 0.3


@pytest.mark.req("R39")
async def test_a_run_may_be_followed_before_there_is_a_connection() -> None:
    async with open_server(hub) as server:
        url = f"ws://127.0.0.1:{server.port}/ws?user=ann"
        async with open_client(url, session=None) as one, open_client(url, session=None) as other:
            run = await one.run("counting", 3)
            while getattr(await anext(one), "event", None) != "run_ended":
                pass
            async with open_client(url, session=None) as late:
                assert await late.follow(run) == "completed"
                told = [await anext(late) for _ in range(5)]
            assert isinstance(told[0], Connected)
            assert [event.seq for event in told[1:]] == [1, 2, 3, 4]
            assert other.user == "ann"


@pytest.mark.req("R39")
def test_a_run_that_was_heard_to_its_end_before_its_reply_is_not_told_again() -> None:
    told: list[Any] = []
    talk = Conversation(told.append)
    welcome = {"type": "welcome", "connection": "c1", "user": "ann", "epoch": "e", "seq": 0}
    said = [
        {"type": "run", "run": "r1", "event": event, "data": None, "seq": n}
        for n, event in ((1, "a"), (2, "run_ended"))
    ]
    talk.requests.make({"op": "run", "agent": "x", "id": "mine"}, Again.KNOWN, talk.begin_run)
    for _ in range(2):  # and the reply is lost with the connection
        talk.hear(welcome)
        assert talk.next_frame() == {"op": "run", "agent": "x", "id": "mine", "ref": 1}
        for frame in said:
            talk.hear(frame)
    talk.hear({"type": "reply", "ref": 1, "run": "r1", "seq": 2, "complete": True, "outcome": "completed"})
    assert [(it.event, it.seq) for it in told if isinstance(it, RunEvent)] == [("a", 1), ("run_ended", 2)]
    assert (talk.runs, talk._ended_early) == ({}, set())


# -- the numbers of one audience -------------------------------------------------------------------------------


def test_what_has_come_while_something_was_missing_is_not_missing() -> None:
    sequence: Sequence[str] = Sequence(1)
    sequence.recover()
    assert sequence.hear(5, "five") == []
    sequence.recover()  # cut once more
    assert sequence.hear(6, "six") == []
    assert sequence.settle(6) == [Missing(1, 4), "five", "six"]
    assert sequence.hear(8, "eight") == [Missing(6, 7), "eight"]
    assert sequence.restart() == [Missing(8, None)]
    assert sequence.restart() == []
    assert sequence.hear(3, "three") == ["three"]
