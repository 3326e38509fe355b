"""Runs: they outlive connections, never their user; they are told apart, bounded, and hurt nobody."""

from __future__ import annotations

import gc
import json
import math
import time
import weakref
from typing import Any

import pytest
import trio
import trio.lowlevel

from supervisor import (
    CloseReason,
    Connection,
    Frame,
    Hub,
    JwtAuthenticator,
    Limits,
    NotFound,
    Options,
    Overflow,
    Policies,
    Run,
    RunFailed,
    RunLimitReached,
    Timeouts,
    events,
)
from supervisor._decisions.backlog import Backlog
from supervisor._decisions.runs import KEPT, Outcome
from supervisor._server.demo import demo
from supervisor._server.tokens import issue
from supervisor.testing import Fault, FaultWire, Peer
from supervisor.testing.client import WebSocketClient
from supervisor.testing.client import connect as connect_client
from tests.helpers import open_house, settle, sleeper
from tests.serving import Raw, connect, open_server, tls_pair

SECRET = "a secret of at least thirty-two bytes"
GOLDEN = ["agent_started", "agent_thinking", "tool_executing", "tool_completed", "agent_completed"]
LINGER = Timeouts(linger=30.0)


async def counts(run: Run, most: int = 3) -> str:
    for number in range(most):
        run.emit("step", number)
        await trio.sleep(1)
    return "done"


async def never_ends(run: Run) -> None:
    await trio.sleep_forever()


def heard(conn_wire: FaultWire) -> list[dict[str, Any]]:
    return [json.loads(message) for message in conn_wire.sent]


# -- lives -----------------------------------------------------------------------------------------------------


@pytest.mark.req("R32")
async def test_a_run_outlives_its_connection_and_who_comes_back_misses_nothing(autojump_clock) -> None:
    async with open_house(timeouts=LINGER) as house:
        wire = FaultWire()
        first = await house.enter(wire=wire)
        run = house.supervisor.start_run("ann", counts)
        assert run.follow(first, 0)
        await trio.sleep(0.5)
        first.close()
        await trio.sleep(10)
        assert (run.outcome, run.result) == (Outcome.COMPLETED, "done")
        assert house.supervisor.runs("ann") == (run,)
        back = FaultWire()
        assert run.follow(await house.enter(wire=back), 1)
        assert [(it["seq"], it["event"]) for it in heard(wire)] == [(1, "step")]
        assert [(it["seq"], it["event"]) for it in heard(back)] == [(2, "step"), (3, "step"), (4, "run_ended")]
        assert heard(back)[-1]["data"] == {"outcome": "completed", "error": None, "result": "done"}


@pytest.mark.req("R32", "R10")
@pytest.mark.parametrize("linger", [0.0, 30.0])
async def test_a_run_never_outlives_its_user(autojump_clock, linger: float) -> None:
    async with open_house(timeouts=Timeouts(linger=linger)) as house:
        conn = await house.enter()
        run = house.supervisor.start_run("ann", never_ends)
        await settle()
        assert run.task is not None
        assert run.task.parent_nursery is conn.host.nursery
        conn.close()
        await trio.sleep(linger + 0.001)
        assert run.outcome is Outcome.CANCELLED
        assert house.supervisor.statistics().runs_ended == {"cancelled": 1}
        with pytest.raises(NotFound):
            house.supervisor.start_run("ann", never_ends)


async def test_a_drain_does_not_wait_for_runs_that_linger(autojump_clock) -> None:
    async with open_house(timeouts=LINGER) as house:
        await house.enter()
        run = house.supervisor.start_run("ann", never_ends)
        await house.supervisor.drain()
        await settle()
        assert run.outcome is Outcome.CANCELLED


@pytest.mark.req("R32", "R19")
async def test_a_failure_is_told_to_followers_by_its_type_and_hurts_nobody(autojump_clock, caplog) -> None:
    async def fails(run: Run) -> None:
        await trio.sleep(1)
        raise LookupError("the password is 1234")

    async with open_house() as house:
        wire, other = FaultWire(), FaultWire()
        conn = await house.enter(wire=wire)
        await house.enter(wire=other)
        run = house.supervisor.start_run("ann", fails)
        run.follow(conn)
        with pytest.raises(RunFailed, match="LookupError: the password is 1234"):
            await run.wait()
        await settle()
        assert heard(wire)[-1]["data"] == {"outcome": "failed", "error": "LookupError", "result": None}
        assert heard(other) == []
        assert len(house.ids()) == 2
        (failed,) = house.told(events.Failed)
        assert failed.what == "run"
    assert "Traceback" in caplog.text


async def test_a_run_is_cancelled_by_hand(autojump_clock) -> None:
    async with open_house() as house:
        await house.enter()
        run = house.supervisor.start_run("ann", never_ends)
        early = house.supervisor.start_run("ann", never_ends)
        assert early.cancel()  # before it has begun
        await trio.sleep(1)
        assert run.cancel()
        with pytest.raises(RunFailed, match="cancelled"):
            await run.wait()
        assert not run.cancel()
        assert early.outcome is Outcome.CANCELLED


@pytest.mark.req("R12")
async def test_a_run_that_ignores_its_cancellation_is_named_and_holds_up_nobody(autojump_clock) -> None:
    async def shields(run: Run) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    async with open_house() as house:
        conn = await house.enter()
        house.supervisor.start_run("ann", shields)
        await trio.sleep(1)
        conn.close()
        await trio.sleep(0.6)
        (stuck,) = house.told(events.RunStuck)
        assert (stuck.user, stuck.at) == ("ann", 1.5)
        assert "test_runs.py" in stuck.stuck_at
        again = await house.enter()  # the same user, in a nursery of their own
        assert again.serving
        assert house.supervisor.statistics().runs == 1
        await trio.sleep(60)
        assert house.supervisor.statistics().runs == 0


@pytest.mark.req("R32")
async def test_runs_of_a_user_are_limited_and_those_that_are_stuck_count(autojump_clock) -> None:
    async def shields(run: Run) -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(5)

    async with open_house(limits=Limits(runs=2)) as house:
        conn = await house.enter()
        for _ in range(2):
            house.supervisor.start_run("ann", shields)
        with pytest.raises(RunLimitReached, match=r"user 'ann' exceeded maximum runs per user limit \(2/2\)"):
            house.supervisor.start_run("ann", never_ends)
        await trio.sleep(0.1)
        conn.close()
        await trio.sleep(1)
        await house.enter()
        with pytest.raises(RunLimitReached):
            house.supervisor.start_run("ann", never_ends)
        await house.enter("bob")
        house.supervisor.start_run("bob", never_ends)
        await trio.sleep(5)
        house.supervisor.start_run("ann", never_ends)


async def test_of_runs_that_have_ended_the_last_are_kept(autojump_clock) -> None:
    async def ends(run: Run) -> None:
        await trio.lowlevel.checkpoint()

    async with open_house(limits=Limits(runs=1)) as house:
        await house.enter()
        for _ in range(KEPT + 5):
            await house.supervisor.start_run("ann", ends).wait()
        assert [run.id for run in house.supervisor.runs("ann")] == [f"r{number}" for number in range(6, KEPT + 6)]
        assert house.supervisor.runs() == ()


@pytest.mark.req("R52")
async def test_a_run_may_wait_for_its_followers(autojump_clock) -> None:
    async with open_house() as house:
        slow = FaultWire(kind=Peer.NEVER_READS)
        conn = await house.enter(wire=slow)

        async def pushes(run: Run) -> float:
            run.emit("step", "x")
            await run.drained()
            return trio.current_time()

        run = house.supervisor.start_run("ann", pushes)
        run.follow(conn)
        await run.wait()
        assert run.result == pytest.approx(house.supervisor.timeouts.write_progress, abs=1)
        assert conn.end is not None
        assert conn.end.reason is CloseReason.TOO_SLOW


async def test_what_is_not_for_json_is_refused_before_it_counts(autojump_clock) -> None:
    async def bad(run: Run) -> object:
        for data in (object(), math.nan):
            with pytest.raises((TypeError, ValueError)):
                run.emit("step", data)
        assert run.emit("step", 1) == 1
        return object()

    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(wire=wire)
        run = house.supervisor.start_run("ann", bad)
        run.follow(conn)
        await run.wait()
        await settle()
        assert heard(wire)[-1]["data"] == {"outcome": "completed", "error": None, "result": None}


@pytest.mark.req("R19", "R32")
@pytest.mark.parametrize("group", [False, True])
async def test_what_its_cleanup_raises_when_its_user_is_gone_hurts_nobody(autojump_clock, *, group: bool) -> None:
    async def fails_to_clean_up(run: Run) -> None:
        try:
            if group:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(trio.sleep_forever)
                    try:
                        await trio.sleep_forever()
                    finally:
                        raise OSError("rollback failed")
            await trio.sleep_forever()
        finally:
            raise OSError("rollback failed")

    async with open_house() as house:
        other = await house.enter("bob")
        conn = await house.enter("ann")
        run = house.supervisor.start_run("ann", fails_to_clean_up)
        await trio.sleep(1)
        conn.close()
        await trio.sleep(1)
        assert run.outcome is Outcome.FAILED
        assert other.serving
        (failed,) = house.told(events.Failed)
        assert (failed.what, failed.run, failed.user) == ("run", run.id, "ann")


@pytest.mark.req("R19", "R32")
async def test_an_exception_that_cannot_say_what_it_is_hurts_nobody(autojump_clock) -> None:
    class Mute(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no")

    async def fails(run: Run) -> None:
        raise Mute

    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(wire=wire)
        run = house.supervisor.start_run("ann", fails)
        run.follow(conn)
        await trio.sleep(1)
        assert run.error == "Mute: (it cannot be spelled)"
        assert heard(wire)[-1]["data"]["error"] == "Mute"
        assert conn.serving


@pytest.mark.req("R19", "R32")
async def test_a_followers_wire_that_raises_ends_that_follower_and_not_the_run(autojump_clock) -> None:
    async with open_house() as house:
        bad = await house.enter(wire=FaultWire(faults=(Fault("offer", "raise", every=True),)))
        wire = FaultWire()
        good = await house.enter(wire=wire)
        run = house.supervisor.start_run("ann", counts)
        for conn in (bad, good):
            run.follow(conn)
        assert await run.wait() == "done"
        assert bad.end is not None
        assert bad.end.reason is CloseReason.FAILED
        await settle()
        assert [it["event"] for it in heard(wire)] == ["step"] * 3 + ["run_ended"]


@pytest.mark.req("R10")
async def test_nothing_is_followed_that_is_over_and_nothing_of_it_is_cyclic(autojump_clock) -> None:
    gc.collect()
    gc.disable()
    try:
        async with open_house() as house:
            house.heard = []
            conn = await house.enter(wire=FaultWire())
            for _ in range(20):
                run = house.supervisor.start_run("ann", counts, 1)
                run.follow(conn, 0)
                await run.wait()
            assert conn.groups == {}
            kept = [weakref.ref(run) for run in house.supervisor.runs("ann")]
            assert len(kept) == KEPT
            del run
            conn.close()
            await trio.sleep(1)
            del conn
            house.heard.clear()
            assert [ref() for ref in kept] == [None] * KEPT
    finally:
        gc.enable()


async def test_the_run_that_has_ended_last_is_kept_however_old_it_is(autojump_clock) -> None:
    async with open_house(limits=Limits(runs=100)) as house:
        await house.enter()
        long = house.supervisor.start_run("ann", counts, 50)
        for _ in range(20):
            await house.supervisor.start_run("ann", counts, 1).wait()
        await long.wait()
        assert house.supervisor.runs("ann")[-1] is long


@pytest.mark.req("R29")
async def test_another_users_run_cannot_be_followed_under_any_name(autojump_clock) -> None:
    async with open_house() as house:
        await house.enter("ann")
        wire = FaultWire()
        bob = await house.enter("bob", wire=wire)
        bob.follow("r1")
        run = house.supervisor.start_run("ann", counts)
        with pytest.raises(ValueError, match="run 'r1' is not of user 'bob'"):
            run.follow(bob)
        await run.wait()
        await settle()
        assert wire.sent == []


async def test_after_its_end_it_says_nothing_and_nobody_is_told_twice(autojump_clock) -> None:
    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(wire=wire)
        run = house.supervisor.start_run("ann", counts)
        assert run.follow(conn, 0)
        await trio.sleep(0.5)
        assert run.follow(conn, 1)
        assert not run.follow(conn, 0)  # it has been told that
        await run.wait()
        with pytest.raises(RuntimeError, match="run 'r1' is over"):
            run.emit("step")
        await settle()
        assert [it["seq"] for it in heard(wire)] == [1, 2, 3, 4]


async def test_when_the_house_closes_runs_do_not_wait_for_the_goodbyes(autojump_clock) -> None:
    async def cleans_up(run: Run) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.4)

    async with open_house() as house:
        await house.enter(wire=FaultWire(kind=Peer.MUTE))
        house.supervisor.start_run("ann", cleans_up)
        await settle()
        closing_at = trio.current_time()
    assert trio.current_time() - closing_at <= Timeouts().close


# -- backlog ---------------------------------------------------------------------------------------------------


def test_a_backlog_says_what_it_still_knows() -> None:
    backlog = Backlog(messages=3, octets=1000)
    assert (backlog.first, backlog.after(0)) == (1, ())
    frames = [Frame(str(number)) for number in range(1, 6)]
    assert [backlog.add(frame) for frame in frames] == [1, 2, 3, 4, 5]
    assert backlog.first == 3
    assert backlog.after(5) == ()
    assert backlog.after(2) == tuple(frames[2:])
    assert backlog.after(4) == (frames[4],)
    assert backlog.after(1) is backlog.after(6) is backlog.after(-1) is None


def test_a_backlog_is_bounded_in_bytes() -> None:
    backlog = Backlog(messages=100, octets=50)
    for _ in range(10):
        backlog.add(Frame("x" * 18))
    assert (backlog.bytes, backlog.first, backlog.last) == (40, 9, 10)
    backlog.add(Frame("x" * 100))
    assert (backlog.bytes, backlog.first, backlog.last, backlog.after(11)) == (0, 12, 11, ())
    assert backlog.after(10) is None


# -- in the hub ------------------------------------------------------------------------------------------------


async def until_ended(raw: Raw) -> list[dict[str, Any]]:
    told = []
    while not told or told[-1].get("event") != "run_ended":
        told.append(await raw.message())
    return told


@pytest.mark.req("R32")
async def test_the_golden_path() -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.message()
        await raw.say(op="run", agent="demo", data="what time is it?", ref=1)
        told = await until_ended(raw)
        reply = next(it for it in told if it["type"] == "reply")
        assert reply == {"type": "reply", "ref": 1, "run": "r1", "seq": 0, "complete": True, "outcome": None}
        run = [it for it in told if it["type"] == "run"]
        assert [it["event"] for it in run] == [*GOLDEN, "run_ended"]
        assert [it["seq"] for it in run] == [1, 2, 3, 4, 5, 6]
        assert run[0]["data"] == {"asked": "what time is it?"}


@pytest.mark.req("R32")
async def test_following_and_cancelling_are_for_ones_own_runs() -> None:
    async def waits(run: Run, data: Any) -> None:
        run.emit("begun")
        await trio.sleep_forever()

    async with open_server(Hub({"waits": waits})) as server, connect(server) as ann, connect(server) as bob:
        for raw, user in ((ann, "ann"), (bob, "bob")):
            await raw.upgrade(f"/ws?user={user}")
            await raw.message()
        await ann.say(op="run", agent="waits")
        assert [(await ann.message())["type"] for _ in range(2)] == ["reply", "run"]
        for op in ("follow", "cancel"):
            await bob.say(op=op, run="r1")
            assert (await bob.message())["code"] == "not_found"
        async with connect(server) as other:
            await other.upgrade("/ws?user=ann")
            await other.message()
            await other.say(op="follow", run="r1", seq=0)
            assert (await other.message())["event"] == "begun"
            reply = await other.message()
            assert (reply["seq"], reply["complete"], reply["outcome"]) == (1, True, None)
            await other.say(op="follow", run="r1", seq=7)
            assert (await other.message())["complete"] is False
            await other.say(op="follow", run="r1", seq="7")
            assert (await other.message())["code"] == "bad_request"
            await other.say(op="cancel", run="r1")
            ended = [await other.message(), await other.message()]
            assert {it["type"] for it in ended} == {"reply", "run"}
            assert (await until_ended(ann))[-1]["data"]["outcome"] == "cancelled"


async def test_an_agent_that_is_not_there_and_one_too_many() -> None:
    async def waits(run: Run, data: Any) -> None:
        await trio.sleep_forever()

    async with open_server(Hub({"waits": waits}), limits=Limits(runs=1)) as server, connect(server) as raw:
        await raw.upgrade()
        await raw.message()
        await raw.say(op="run", agent="other")
        assert (await raw.message())["detail"] == "agent must be one of waits"
        await raw.say(op="run", agent="waits")
        await raw.message()
        await raw.say(op="run", agent="waits")
        answer = await raw.message()
        assert answer["code"] == "limit_reached"
        assert answer["detail"] == "user 'ann' exceeded maximum runs per user limit (1/1)"


# -- under pressure --------------------------------------------------------------------------------------------


@pytest.mark.req("R32")
async def test_golden_paths_over_tls_while_limits_are_hit_around_them() -> None:
    """Twenty users, each with as many connections as they may have and newcomers that push them out; CPU beside it."""
    server_context, client_context = tls_pair()
    authenticate = JwtAuthenticator(secret=SECRET, algorithms=("HS256",))
    seen: list[list[str]] = []

    async with open_server(
        options=Options(ssl_context=server_context, authenticate=authenticate),
        limits=Limits(per_user=3, total=80),
        policies=Policies(overflow_total=Overflow.REJECT),
    ) as server:

        async def enter(user: str) -> WebSocketClient:
            token = issue(SECRET, user, session=None, seconds=60.0, now=time.time())
            return await connect_client(
                f"wss://127.0.0.1:{server.port}/ws",
                headers={"Authorization": f"Bearer {token}"},
                ssl_context=client_context,
            )

        async def asks(user: str) -> None:
            client = await enter(user)
            await client.hear()
            await client.say('{"op":"run","agent":"demo","data":1}')
            told: list[str] = []
            while "run_ended" not in told:
                message = json.loads(await client.hear())
                if message["type"] == "run":
                    told.append(message["event"])
            seen.append(told)
            client.vanish()

        async def pushes(user: str) -> None:
            """Comes and is pushed out, over and over, of a user who is always full."""
            with trio.move_on_after(1.5):
                while True:
                    client = await enter(user)
                    try:
                        await trio.sleep(0.02)
                    finally:
                        client.vanish()

        async def burns() -> None:
            with trio.move_on_after(1.5):
                while True:
                    sum(range(20_000))
                    await trio.lowlevel.checkpoint()

        with trio.fail_after(30):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(burns)
                for number in range(20):
                    nursery.start_soon(asks, f"golden-{number}")
                for number in range(6):
                    nursery.start_soon(pushes, f"noisy-{number % 2}")
        assert seen == [[*GOLDEN, "run_ended"]] * 20
        assert server.supervisor.audit() == ()


async def test_the_demo_says_the_time(autojump_clock) -> None:
    async with open_house() as house:
        await house.enter()
        run = house.supervisor.start_run("ann", demo, "x")
        assert str(await run.wait()).startswith("It is ")


@pytest.mark.req("R10", "R24")
async def test_a_thousand_runs_leave_nothing(autojump_clock) -> None:
    async with open_house(limits=Limits(runs=1000)) as house:
        conn: Connection = await house.enter(handler=sleeper)
        for number in range(1000):
            run = house.supervisor.start_run("ann", counts, number % 5)
            run.follow(conn)
        await trio.sleep(10)
        figures = house.supervisor.statistics()
        assert (figures.runs, figures.runs_ended) == (0, {"completed": 1000})
        assert len(house.supervisor.runs("ann")) == KEPT
