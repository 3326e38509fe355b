"""One connection, from its first step to nothing; every way of ending."""

from __future__ import annotations

import contextvars
import gc
import logging
import threading
import weakref

import pytest
import trio
import trio.lowlevel

from supervisor import (
    CloseReason,
    ConnectionClosed,
    Identity,
    LimitReached,
    Limits,
    Overflow,
    Policies,
    Timeouts,
    events,
    open_supervisor,
)
from supervisor._decisions.stay import Stage
from supervisor.testing import Fault, FaultWire
from supervisor.testing.world import STRAY
from tests.helpers import echo, open_house, reason, settle, sleeper, slow_to_leave


async def fails(conn) -> None:
    raise ValueError("handler raises")


async def fails_in_a_nursery(conn) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        await trio.lowlevel.checkpoint()
        raise ValueError("handler raises")


async def strays(conn) -> None:
    raise STRAY.with_traceback(None)


async def strays_in_a_group(conn) -> None:
    raise BaseExceptionGroup("both", [STRAY.with_traceback(None), KeyError(1)])


async def returns(conn) -> None:
    await trio.lowlevel.checkpoint()


async def stubborn(conn) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(60)  # here it hangs


@pytest.mark.req("R19")
@pytest.mark.parametrize("handler", [fails, fails_in_a_nursery, strays, strays_in_a_group])
async def test_a_failure_ends_its_own_connection_only(autojump_clock, caplog, handler) -> None:
    async with open_house() as house:
        neighbour = await house.enter()
        wire = FaultWire()
        conn = await house.enter(handler=handler, wire=wire)
        await conn.wait_gone()
        assert (reason(conn), wire.farewell) == (CloseReason.FAILED, (1011, "handler failed"))
        assert neighbour.end is None
        (event,) = house.told(events.Failed)
        assert (event.what, event.connection) == ("handler", conn.id)
        assert house.supervisor.statistics().failures == {"handler": 1}
    assert "Traceback" in caplog.text


async def test_a_handler_that_returns_ends_its_connection_and_says_so(autojump_clock) -> None:
    async def takes_a_second(conn) -> None:
        await trio.sleep(1)

    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(handler=takes_a_second, wire=wire)
        await conn.wait_gone()
        assert (reason(conn), wire.farewell) == (CloseReason.RETURNED, (1000, "handler returned"))


async def receives(conn) -> None:
    await conn.receive()


async def receives_in_a_nursery(conn) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.sleep_forever)
        nursery.start_soon(conn.receive)


@pytest.mark.req("R19")
@pytest.mark.parametrize("handler", [receives, receives_in_a_nursery])
async def test_that_its_connection_has_closed_is_no_failure_of_a_handler(autojump_clock, handler) -> None:
    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(handler=handler, wire=wire)
        wire.hang_up()
        await conn.wait_gone()
        assert reason(conn) is CloseReason.PEER_CLOSED
        assert house.told(events.Failed) == []


@pytest.mark.req("R19")
async def test_that_another_connection_has_closed_is(autojump_clock) -> None:
    async with open_house() as house:
        other = await house.enter()

        async def forwards(conn) -> None:
            await other.send("x")

        other.close()
        conn = await house.enter(handler=forwards)
        await conn.wait_gone()
        assert reason(conn) is CloseReason.FAILED
        (event,) = house.told(events.Failed)
        assert (event.what, event.connection, type(event.exception)) == ("handler", conn.id, ConnectionClosed)


async def fails_while_leaving(conn) -> None:
    try:
        await trio.sleep_forever()
    finally:
        raise ValueError("handler raises")


async def fails_beside_a_receiver(conn) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(fails_while_leaving, conn)
        nursery.start_soon(conn.receive)


@pytest.mark.req("R19")
@pytest.mark.parametrize("handler", [fails_while_leaving, fails_beside_a_receiver])
async def test_a_failure_while_leaving_is_reported_and_changes_no_reason(autojump_clock, handler) -> None:
    async with open_house() as house:
        conn = await house.enter(handler=handler)
        await house.supervisor.disconnect(conn.id)
        assert reason(conn) is CloseReason.KICKED
        assert [event.what for event in house.told(events.Failed)] == ["handler"]


async def in_the_handler(conn, fatal: type[BaseException]) -> None:
    raise fatal


async def in_a_nursery_of_the_handler(conn, fatal: type[BaseException]) -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(in_the_handler, conn, fatal)


async def in_a_hook(conn, fatal: type[BaseException]) -> None:
    conn.on_close(in_the_handler, conn, fatal)


@pytest.mark.req("R19")
@pytest.mark.parametrize("fatal", [KeyboardInterrupt, SystemExit])
@pytest.mark.parametrize("where", [in_the_handler, in_a_nursery_of_the_handler, in_a_hook])
async def test_only_ctrl_c_and_exit_end_everything(autojump_clock, where, fatal: type[BaseException]) -> None:
    async def interrupted(conn) -> None:
        await where(conn, fatal)

    wires = [FaultWire(), FaultWire()]
    with pytest.raises(BaseExceptionGroup) as caught:
        async with open_supervisor() as supervisor:
            await supervisor.start(wires[0], Identity(user="ann"), sleeper)
            await supervisor.start(wires[1], Identity(user="ann"), interrupted)
            await trio.sleep(60)
    assert caught.value.subgroup(fatal) is not None
    assert all(wire.cut_at is not None for wire in wires)
    assert supervisor.statistics().seats == 0


async def test_whatever_ends_everything_a_goodbye_is_finished(autojump_clock) -> None:
    said: list[tuple[int, str]] = []

    class Finishing(FaultWire):
        async def close(self, code: int, text: str) -> None:
            await super().close(code, text)
            said.append((code, text))

    async def interrupted(conn) -> None:
        await trio.sleep(1)
        raise KeyboardInterrupt

    with pytest.raises(BaseExceptionGroup):
        async with open_supervisor() as supervisor:
            await supervisor.start(FaultWire(), Identity(user="ann"), interrupted)
            conn = await supervisor.start(Finishing("slow"), Identity(user="ann"), sleeper)
            await trio.sleep(0.9)
            conn.close()
            await trio.sleep(60)
    assert said == [(1000, "closed by the handler")]


@pytest.mark.req("R11")
@pytest.mark.parametrize(
    ("kind", "faults", "took"),
    [
        ("healthy", [], 0),
        ("slow", [], 0.2),
        ("mute", [], 0.5),
        ("never-reads", [], 0.5),
        ("half-open", [], 0.5),
        ("healthy", [Fault("close", "raise")], 0),
        ("healthy", [Fault("close", "hang")], 0.5),
        ("healthy", [Fault("close", "shield")], 0.6),
        ("healthy", [Fault("cut", "raise")], 0),
    ],
)
async def test_closing_is_bounded_whatever_the_peer_does(
    autojump_clock, kind: str, faults: list[Fault], took: float
) -> None:
    wire = FaultWire(kind, faults)
    async with open_house() as house:
        conn = await house.enter(wire=wire)
        before = trio.current_time()
        await house.supervisor.disconnect(conn.id)
        assert trio.current_time() - before == pytest.approx(took, abs=1e-6)
        assert wire.cut_at is not None
        assert wire.cut_at - before <= 0.6
        assert house.supervisor.statistics().seats == 0


async def kick(house, conn) -> None:
    await house.supervisor.disconnect(conn.id)


async def wait_for_the_ping(house, conn) -> None:
    await trio.sleep(20.1)


async def cut_all(house, conn) -> None:
    await house.supervisor.cut()


@pytest.mark.req("R15", "R19")
@pytest.mark.parametrize(
    ("call", "handler", "act", "what"),
    [
        ("ping", sleeper, wait_for_the_ping, "wire"),
        ("cut", stubborn, kick, "wire"),
        ("cut", sleeper, cut_all, "wire"),
        ("cut", sleeper, kick, "wire"),
        ("close", sleeper, kick, "close"),
    ],
)
async def test_a_wire_that_breaks_its_word_is_reported_and_nothing_is_lost(
    autojump_clock, call: str, handler, act, what: str
) -> None:
    async with open_house() as house:
        neighbour = await house.enter()
        conn = await house.enter(handler=handler, wire=FaultWire(faults=[Fault(call, "raise")]))
        await act(house, conn)
        (event,) = house.told(events.Failed)
        assert (event.what, event.connection, event.identity) == (what, conn.id, conn.identity)
        assert repr(event.exception) == repr(OSError(f"{call} raises"))
        assert 0 <= trio.current_time() - event.at <= 0.5
        assert (conn.end is None) is (act is wait_for_the_ping)
        assert (neighbour.end is None) is (act is not cut_all)


@pytest.mark.req("R03", "R12")
@pytest.mark.parametrize(
    ("handler", "act", "told"),
    [
        (sleeper, kick, (4503, "kicked")),
        (stubborn, kick, (4503, "kicked")),
        (stubborn, cut_all, (1012, "server restart")),
    ],
)
async def test_a_cut_wire_is_told_why(autojump_clock, handler, act, told: tuple[int, str]) -> None:
    heard: set[tuple[int, str]] = set()

    class Listening(FaultWire):
        def cut(self, code: int, text: str) -> None:
            heard.add((code, text))
            super().cut(code, text)

    async with open_house() as house:
        conn = await house.enter(handler=handler, wire=Listening())
        await act(house, conn)
        assert heard == {told}


async def test_the_tasks_of_a_wire_are_cancelled_after_its_cut(autojump_clock) -> None:
    was_cut: list[bool] = []

    class Reading(FaultWire):
        async def open(self, nursery, ended) -> None:
            await super().open(nursery, ended)
            nursery.start_soon(self.read)

        async def read(self) -> None:
            try:
                await trio.sleep(60)
            finally:
                was_cut.append(self.cut_at is not None)

    async with open_house() as house:
        conn = await house.enter(wire=Reading())
        record = await house.supervisor.disconnect(conn.id)
        assert (record.stuck_at, was_cut) == (None, [True])


@pytest.mark.parametrize("lost", [CloseReason.PEER_LOST, CloseReason.SEND_CANCELLED])
async def test_who_is_lost_is_sent_no_goodbye(autojump_clock, lost: CloseReason) -> None:
    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(wire=wire)
        wire.hang_up(lost)
        await conn.wait_gone()
        assert (reason(conn), wire.farewell) == (lost, None)


@pytest.mark.req("R11")
async def test_handler_and_goodbye_share_one_budget(autojump_clock) -> None:
    async with open_house() as house:
        conn = await house.enter(handler=slow_to_leave(0.4), wire=FaultWire("mute"))
        record = await house.supervisor.disconnect(conn.id)
        assert record.cleanup == pytest.approx(0.5)
        assert record.stuck_at is None


@pytest.mark.req("R12")
async def test_a_stuck_handler_is_set_aside_and_named(autojump_clock, caplog) -> None:
    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(handler=stubborn, wire=wire)
        conn.join("room")
        task = conn.task
        record = await house.supervisor.disconnect(conn.id)
        assert record.cleanup == pytest.approx(0.5)
        line = stubborn.__code__.co_firstlineno + 2
        assert record.stuck_at == f"{__file__}:{line}"
        figures = house.supervisor.statistics()
        assert (figures.stuck, figures.seats, figures.connections, figures.rooms) == (1, 0, 0, 0)
        assert wire.cut_at is not None
        assert task in conn.host.nursery.child_tasks  # it stays where it is, counted
        assert "handler_stuck" in caplog.text
        await trio.sleep(60)
        await settle()
        returned = [(event.connection, event.identity) for event in house.told(events.HandlerReturned)]
        assert returned == [(conn.id, conn.identity)]
        assert house.supervisor.statistics().stuck == 0
        assert wire.farewell is None


@pytest.mark.req("R12")
async def test_a_handler_that_needs_all_of_its_time_is_not_stuck(autojump_clock) -> None:
    """Twenty times, since the keeper and the handler wake in one batch, which Trio shuffles."""
    async with open_house() as house:
        for _ in range(20):
            conn = await house.enter(handler=slow_to_leave(0.5))
            record = await house.supervisor.disconnect(conn.id)
            assert (record.cleanup, record.stuck_at) == (pytest.approx(0.5), None)


@pytest.mark.req("R12")
async def test_supervise_returns_although_its_handler_is_stuck(autojump_clock) -> None:
    async with open_house(limits=Limits(idle_ttl=5)) as house:
        before = trio.current_time()
        why = await house.supervisor.supervise(FaultWire(), Identity(user="ann"), stubborn)
        assert (why, trio.current_time() - before) == (CloseReason.IDLE, pytest.approx(5.5))


@pytest.mark.req("R12")
async def test_a_thread_that_blocks_is_set_aside_too() -> None:
    release = threading.Event()

    async def blocks(conn) -> None:
        await trio.to_thread.run_sync(release.wait)

    async with open_house(timeouts=Timeouts(handler_exit=0.05, close=0.05)) as house:
        conn = await house.enter(handler=blocks)
        record = await house.supervisor.disconnect(conn.id)
        assert record.stuck_at is not None
        assert record.stuck_at == f"{__file__}:{blocks.__code__.co_firstlineno + 1}"
        release.set()


@pytest.mark.req("R15")
async def test_hooks_run_whatever_ended_it_and_hurt_nobody(autojump_clock) -> None:
    ran: list[str] = []

    async def hook(name: str) -> None:
        ran.append(name)

    async def failing() -> None:
        raise KeyError("hook raises")

    async def handler(conn) -> None:
        conn.on_close(failing)
        conn.on_close(trio.sleep_forever)
        conn.on_close(hook, "last")
        await trio.sleep_forever()

    async with open_house() as house:
        wires = [FaultWire() for _ in range(5)]
        for wire in wires:
            await house.enter(handler=handler, wire=wire)
        records = await house.supervisor.disconnect_user("ann")
        assert len(records) == len(wires)
        assert all(record.cleanup == pytest.approx(0.5) for record in records)
        assert ran == ["last"] * 5
        assert {wire.farewell for wire in wires} == {(4503, "kicked")}
        assert house.supervisor.statistics().failures == {"hook": 5}
        assert {repr(event.exception) for event in house.told(events.Failed)} == {repr(KeyError("hook raises"))}


@pytest.mark.req("R15")
async def test_a_hook_may_raise_anything(autojump_clock) -> None:
    class Unusual(BaseException):
        pass

    async def hook() -> None:
        raise Unusual

    async def handler(conn) -> None:
        conn.on_close(hook)

    async with open_house() as house:
        neighbour = await house.enter("bob")
        conn = await house.enter(handler=handler)
        await conn.wait_gone()
        assert neighbour.end is None
        assert house.supervisor.statistics().failures == {"hook": 1}


@pytest.mark.req("R15")
async def test_a_hook_that_shields_itself_is_set_aside(autojump_clock) -> None:
    async def handler(conn) -> None:
        conn.on_close(stubborn, conn)

    async with open_house() as house:
        conn = await house.enter(handler=handler)
        await conn.wait_gone()
        assert conn.closed.cleanup == pytest.approx(0.6)
        assert conn.closed.stuck_at is not None


@pytest.mark.req("R15")
async def test_the_hooks_of_a_stuck_handler_run_when_it_returns(autojump_clock) -> None:
    ran: list[float] = []

    async def hook() -> None:
        await trio.sleep(0.1)
        ran.append(trio.current_time())

    async def handler(conn) -> None:
        conn.on_close(hook)
        await stubborn(conn)

    async with open_house() as house:
        started = trio.current_time()
        wire = FaultWire()
        conn = await house.enter(handler=handler, wire=wire)
        await house.supervisor.disconnect(conn.id)
        assert ran == []
    assert ran == [pytest.approx(started + 60.1)]
    assert wire.farewell is None


@pytest.mark.req("R10")
async def test_the_first_reason_wins(autojump_clock) -> None:
    async with open_house() as house:
        conn = await house.enter()
        assert conn.close(4321, "first")
        assert not conn.close(4322, "second")
        await house.supervisor.disconnect(conn.id)
        assert (reason(conn), conn.end.code, conn.end.text) == (CloseReason.CLOSED, 4321, "first")
        assert len(house.told(events.Closed)) == 1


async def test_a_reader_sees_what_had_arrived_and_then_the_end(autojump_clock) -> None:
    seen: list[object] = []

    async def reader(conn) -> None:
        async for message in conn:
            seen.append(message)
        seen.append("end")
        await trio.sleep(0.2)
        seen.append("still had time")

    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(handler=reader, wire=wire)
        wire.deliver("a")
        wire.deliver(b"b")
        wire.hang_up()
        await conn.wait_gone()
        assert seen == ["a", b"b", "end", "still had time"]
        assert reason(conn) is CloseReason.PEER_CLOSED


@pytest.mark.req("R51")
async def test_a_handler_that_never_reads_is_cancelled_when_the_peer_leaves(autojump_clock) -> None:
    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(wire=wire)
        wire.hang_up(CloseReason.PEER_LOST)
        before = trio.current_time()
        await conn.wait_gone()
        assert trio.current_time() == before
        assert reason(conn) is CloseReason.PEER_LOST


async def test_a_reader_that_does_something_else_is_cancelled_a_little_later(autojump_clock) -> None:
    async def reads_once(conn) -> None:
        await conn.receive()
        await trio.sleep_forever()

    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(handler=reads_once, wire=wire)
        wire.deliver("a")
        await settle()
        wire.hang_up()
        before = trio.current_time()
        await conn.wait_gone()
        assert trio.current_time() - before == pytest.approx(0.25)


async def test_sending_and_receiving_on_a_leaving_connection_say_why(autojump_clock) -> None:
    said: list[str] = []

    async def handler(conn) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                for attempt in (conn.receive, lambda: conn.send("x")):
                    try:
                        await attempt()
                    except ConnectionClosed as closed:
                        said.append(f"{closed.reason.name}: {closed}")
                try:
                    conn.join("room")
                except ConnectionClosed as closed:
                    said.append(str(closed))

    async with open_house() as house:
        conn = await house.enter(handler=handler)
        assert not conn.send_nowait("x") or conn.end is None
        await house.supervisor.disconnect(conn.id)
        assert said == ["KICKED: kicked", "KICKED: kicked", "kicked"]
        assert not conn.send_nowait("x")
        assert house.told(events.Failed) == []


async def test_a_cancelled_supervise_ends_the_connection_first(autojump_clock) -> None:
    async with open_house() as house:
        with trio.move_on_after(1) as patience:
            await house.supervisor.supervise(FaultWire("mute"), Identity(user="ann"), sleeper)
        assert patience.cancelled_caught
        assert house.supervisor.statistics().connections == 0
        (closed,) = house.told(events.Closed)
        assert closed.reason is CloseReason.GOING_AWAY
        assert closed.at == pytest.approx(trio.current_time())


async def test_a_peer_that_leaves_during_the_upgrade_never_meets_the_handler(autojump_clock) -> None:
    met: list[object] = []

    async def handler(conn) -> None:
        met.append(conn)

    async with open_house() as house:
        why = await house.supervisor.supervise(FaultWire("refuses"), Identity(user="ann"), handler)
        assert (why, met) == (CloseReason.PEER_LOST, [])
        (closed,) = house.told(events.Closed)
        assert closed.end.text == "connection lost during the upgrade"


async def test_an_upgrade_that_never_ends_is_lost_at_its_bound(autojump_clock) -> None:
    async with open_house(timeouts=Timeouts(handshake=2)) as house:
        conn = await house.enter(wire=FaultWire(faults=[Fault("open", "hang")]))
        await conn.wait_gone()
        assert reason(conn) is CloseReason.PEER_LOST
        assert conn.closed.duration == pytest.approx(2)


async def test_who_is_kicked_during_the_upgrade_is_told_so_when_it_is_complete(autojump_clock) -> None:
    class Hesitating(FaultWire):
        async def open(self, nursery, ended) -> None:
            await trio.sleep(0.05)
            await super().open(nursery, ended)

    async with open_house() as house:
        wire = Hesitating()
        conn = await house.enter(handler=fails, wire=wire)
        record = await house.supervisor.disconnect(conn.id)
        assert (record.cleanup, wire.farewell) == (pytest.approx(0.05), (4503, "kicked"))
        assert house.told(events.Failed) == []  # its handler never began


@pytest.mark.req("R42")
async def test_every_connection_is_a_child_task_of_its_users_nursery(autojump_clock) -> None:
    async with open_house() as house:
        for user in ("ann", "bob"):
            await house.fill(3, user)
        for user in ("ann", "bob"):
            conns = house.supervisor.connections(user=user)
            host = conns[0].host
            assert {conn.task for conn in conns} == set(host.nursery.child_tasks)
            assert host.nursery.parent_task.name == f"user {user!r}"
            borrowers = set(host.roster.seats.limiter.statistics().borrowers)
            assert borrowers == set(conns)


async def test_beyond_the_bound_on_goodbyes_the_cut_is_immediate(autojump_clock) -> None:
    async with open_house(limits=Limits(closing=2)) as house:
        await house.fill(5, wire=None, handler=sleeper)
        for conn in house.supervisor.connections():
            conn.wire.become("mute")
        records = await house.supervisor.disconnect_user("ann")
        assert sorted(round(record.cleanup, 3) for record in records) == [0, 0, 0, 0.375, 0.5]


@pytest.mark.req("R10")
async def test_context_variables_of_the_first_arrival_are_not_kept(autojump_clock) -> None:
    class Pinned:
        pass

    variable: contextvars.ContextVar[object] = contextvars.ContextVar("variable")

    async def arrive(house) -> weakref.ref:
        pinned = Pinned()
        variable.set(pinned)
        conn = await house.enter()
        conn.close()
        await conn.wait_gone()
        return weakref.ref(pinned)

    kept: list[weakref.ref] = []
    async with open_house(timeouts=Timeouts(linger=60)) as house:

        async def first() -> None:
            kept.append(await arrive(house))

        house.callers.start_soon(first)
        await trio.sleep(1)
        gc.collect()
        assert house.supervisor.statistics().users == 1
        assert kept[0]() is None


@pytest.mark.req("R10")
async def test_who_is_gone_holds_on_to_nothing(autojump_clock) -> None:
    during_hooks: list[tuple[object, object]] = []

    async def handler(conn) -> None:
        async def hook() -> None:
            during_hooks.append((conn.handler, conn.scope))

        conn.on_close(hook)
        await conn.receive()

    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(handler=handler, wire=wire)
        wire.hang_up()
        await conn.wait_gone()
        await settle()
        assert during_hooks == [(None, None)]
        assert (conn.task, conn.nursery, conn.scope, conn.handler) == (None, None, None, None)
        assert (conn.host.nursery, conn.host.alarm) == (None, None)
        assert conn.peer == "gone"
        with pytest.raises(ConnectionClosed, match="closed by the peer"):
            await conn.receive()


@pytest.mark.req("R10")
async def test_who_was_refused_while_it_waited_holds_on_to_nothing(autojump_clock) -> None:
    async def wait() -> None:
        with pytest.raises(LimitReached):
            await house.enter()

    async with open_house(limits=Limits(per_user=1), policies=Policies(overflow_user=Overflow.WAIT)) as house:
        first = await house.enter()
        house.callers.start_soon(wait)
        await settle()
        (waiting,) = first.host.roster.files[Stage.QUEUED]
        await waiting.wait_gone()
        assert (waiting.task, waiting.nursery, waiting.scope, waiting.handler) == (None, None, None, None)
        assert waiting.peer == "gone"


async def keeps(conn) -> None:
    """A hook that refers to its connection."""


ENDINGS = {
    "peer closes": (sleeper, lambda conn, wire: wire.hang_up()),
    "peer closes on a reader": (echo, lambda conn, wire: wire.hang_up()),
    "handler returns": (returns, None),
    "handler raises": (fails, None),
    "kicked": (sleeper, lambda conn, wire: conn.close()),
    "kicked reader": (echo, lambda conn, wire: conn.close()),
    "idle": (sleeper, "wait"),
    "outbox": (sleeper, lambda conn, wire: (conn.send_nowait("x"), conn.close())),
    "hook": (sleeper, lambda conn, wire: (conn.on_close(trio.sleep, 0), conn.on_close(keeps, conn), conn.close())),
    "room": (sleeper, lambda conn, wire: (conn.join("r"), conn.close())),
    "superseded": (sleeper, "evict"),
}


@pytest.mark.req("R19")
async def test_a_wire_whose_own_task_fails_ends_its_own_connection_only(autojump_clock) -> None:
    class Failing(FaultWire):
        async def open(self, nursery, ended) -> None:
            await super().open(nursery, ended)
            nursery.start_soon(self.fail)

        async def fail(self) -> None:
            raise KeyError("a bug of the wire's")

    async with open_house() as house:
        neighbour = await house.enter()
        conn = await house.enter(wire=Failing())
        await conn.wait_gone()
        assert (reason(conn), neighbour.end) == (CloseReason.FAILED, None)
        (failed,) = house.told(events.Failed)
        assert (failed.what, bool(failed.exception)) == ("wire", True)


@pytest.mark.req("R19")
async def test_a_wire_that_fails_while_the_outbox_is_written_ends_its_own_connection_only(autojump_clock) -> None:
    async with open_house() as house:
        neighbour = await house.enter()
        conn = await house.enter(wire=FaultWire("slow", [Fault("send", "raise")]))
        assert conn.send_nowait("x")
        await conn.wait_gone()
        assert (reason(conn), neighbour.end) == (CloseReason.FAILED, None)
        (failed,) = house.told(events.Failed)
        assert (failed.what, bool(failed.exception)) == ("wire", True)


@pytest.mark.req("R21")
async def test_a_failing_subscriber_leaves_no_cyclic_garbage(autojump_clock, caplog) -> None:
    caplog.set_level(logging.CRITICAL + 1, "supervisor")  # what is written down is kept by the test

    def fail(event: events.Event) -> None:
        raise RuntimeError("a subscriber that fails")

    async with open_supervisor() as supervisor:
        supervisor.subscribe(fail)
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                conn = await supervisor.start(FaultWire(), Identity(user="ann"), returns)
                await conn.wait_gone()
            del conn
            await trio.sleep(0.01)
            assert gc.collect() == 0
        finally:
            gc.enable()


@pytest.mark.req("R21")
@pytest.mark.parametrize("kind", ["healthy", "mute", "never-reads", "vanishes"])
@pytest.mark.parametrize("ending", ENDINGS)
async def test_no_ending_leaves_cyclic_garbage(autojump_clock, ending: str, kind: str) -> None:
    handler, act = ENDINGS[ending]

    async def life(house) -> None:
        wire = FaultWire(kind)
        conn = await house.supervisor.start(wire, Identity(user="ann"), handler)
        await trio.sleep(0.01)
        if callable(act):
            act(conn, wire)
        elif act == "wait":
            await trio.sleep(300)
        elif act == "evict":
            other = await house.supervisor.start(FaultWire(), Identity(user="ann"), sleeper)
            other.close()
            await other.wait_gone()
        await conn.wait_gone()
        await trio.sleep(0.01)

    async with open_house(limits=Limits(per_user=1)) as house:
        await life(house)
        house.heard.clear()
        gc.collect()
        gc.disable()
        try:
            for _ in range(5):
                await life(house)
                house.heard.clear()
            assert gc.collect() == 0
        finally:
            gc.enable()
            house.heard.clear()


@pytest.mark.req("R19")
async def test_a_cancelled_handler_can_see_why(autojump_clock) -> None:
    told: list[tuple[str, str | None]] = []

    async def handler(conn) -> None:
        try:
            await trio.sleep_forever()
        except trio.Cancelled as cancelled:
            told.append((conn.id, cancelled.reason))
            raise

    async with open_house(limits=Limits(per_user=1)) as house:
        kicked = await house.enter("ann", handler=handler)
        evicted = await house.enter("bob", handler=handler)
        await house.supervisor.disconnect(kicked.id)
        await house.enter("bob")
        sentence = "user 'bob' exceeded maximum connections per user limit (1/1)"
        assert told == [(kicked.id, "kicked"), (evicted.id, sentence)]


@pytest.mark.req("R42")
async def test_a_task_is_named_after_its_connection(autojump_clock) -> None:
    async with open_house() as house:
        conn = await house.enter()
        assert [task.name for task in conn.host.nursery.child_tasks] == [f"connection {conn.id}"]
