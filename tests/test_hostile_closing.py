"""Attacks by leaving, and by not leaving: on real sockets, beside a neighbour who must not notice."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import socket
import time
from urllib.parse import quote

import pytest
import trio
import trio.lowlevel

from supervisor import (
    Connection,
    ConnectionClosed,
    Identity,
    Limits,
    Options,
    Request,
    Server,
    Timeouts,
    echo,
    events,
    hub,
    open_supervisor,
)
from supervisor.testing import FaultWire
from supervisor.testing.memory import types_alive
from tests.helpers import settle
from tests.serving import Raw, connect, frame, open_server, settled, tasks, upgrade_head
from tests.siege import Blackhole, besieged, closed, flood, until_stalled


@pytest.mark.req("A31", "A20", "R11")
async def test_pings_and_oversize_while_we_close() -> None:
    async with besieged(limits=Limits(max_message_size=1000)) as server:
        for noise in (frame(9, b"ping"), frame(2, b"x" * 2000), frame(2, b"x" * 2000) * 2, frame(3), b"\xff" * 50):
            async with connect(server) as raw:
                await raw.upgrade()
                (conn,) = server.supervisor.connections(user="ann")
                conn.close()
                with contextlib.suppress(trio.BrokenResourceError):
                    for _ in range(50):
                        await raw.send(noise)
                        await trio.lowlevel.checkpoint()
        assert server.supervisor.statistics().failures == {}


@pytest.mark.req("A34", "R11")
async def test_a_close_from_a_peer_that_never_reads() -> None:
    async with besieged(flood) as server, connect(server, receive_buffer=4096) as raw:
        await raw.upgrade()
        await until_stalled(server)
        await raw.send(frame(8, (1000).to_bytes(2, "big")))
        while server.supervisor.connections(user="ann"):
            await trio.sleep(0.005)
        left_at = trio.current_time()
        while server.supervisor.statistics().closing or server.supervisor.statistics().leaving:
            await trio.sleep(0.005)
        assert trio.current_time() - left_at <= 0.6
        assert await closed(server) == {"peer_closed": 1}


@pytest.mark.req("R11", "R52")
async def test_a_peer_that_never_reads_is_closed_in_bounded_time() -> None:
    async with besieged(flood) as server, connect(server, receive_buffer=4096) as raw:
        await raw.upgrade()
        await until_stalled(server)
        (record,) = await server.supervisor.disconnect_user("ann")
        assert record.cleanup <= 0.6
        assert record.stuck_at is None


@pytest.mark.req("A37", "R51", "R52")
async def test_write_progress_is_bounded_too() -> None:
    async with besieged(flood, timeouts=Timeouts(write_progress=0.3)) as server:
        async with connect(server, receive_buffer=4096) as raw:
            await raw.upgrade()
            while server.supervisor.connections(user="ann"):
                await trio.sleep(0.01)
        assert await closed(server) == {"too_slow": 1}


@pytest.mark.req("R51")
@pytest.mark.parametrize("messages", [0, 3, 1000])
async def test_a_handler_that_does_not_read(messages: int) -> None:
    """Closing is noticed while there is room for what came before; beyond it, by the heartbeat's look at the socket."""

    async def deaf(conn: Connection) -> None:
        await trio.sleep_forever()

    async with besieged(deaf, timeouts=Timeouts(ping_interval=0.2)) as server:
        async with connect(server) as raw:
            await raw.upgrade()
            await raw.send(frame(1, b"unread") * messages)
            await raw.send(frame(8, (1000).to_bytes(2, "big")))
        while server.supervisor.connections(user="ann"):
            await trio.sleep(0.01)


@pytest.mark.req("A37")
async def test_the_kernel_is_told_to_notice_the_vanished() -> None:
    async def kept(conn: Connection) -> None:
        sock = conn.wire.stream.socket
        options[conn.user] = (
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        )
        await echo(conn)

    options: dict[str, tuple[int, int, int]] = {}
    async with besieged(kept) as server, connect(server) as raw:
        await raw.upgrade()
        while not options:
            await trio.sleep(0.005)
        assert options == {"ann": (1, 20, 10_000)}


@pytest.mark.req("A37", "R51")
async def test_a_peer_that_answers_no_ping_is_unresponsive() -> None:
    timeouts = Timeouts(ping_interval=0.2, pong=0.2)
    async with open_server(echo, timeouts=timeouts) as server, connect(server) as raw:
        await raw.upgrade()
        assert await raw.frame() == (9, b"")
        await raw.send(frame(10))
        assert await raw.frame() == (9, b"")
        assert await raw.closed_with() == (4002, "unresponsive")
        assert tasks() < 30


@pytest.mark.req("A40")
@pytest.mark.parametrize("deliver", ["send", "send_nowait"])
async def test_a_cancelled_send_poisons_the_connection(deliver: str) -> None:
    """A frame is written whole, or it is the last thing that is ever written."""

    async def impatient(conn: Connection) -> None:
        with trio.move_on_after(0.2):
            await conn.send(bytes(2_000_000))
        with contextlib.suppress(ConnectionClosed):
            if deliver == "send":
                await conn.send(b"AFTER")
            else:
                conn.send_nowait(b"AFTER")

    async with besieged(impatient) as server, connect(server, receive_buffer=4096) as raw:
        await raw.upgrade()
        while server.supervisor.connections(user="ann"):
            await trio.sleep(0.01)
        received = bytearray()
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await raw.stream.receive_some():
                received += data
        assert len(received) < 2_000_000
        assert b"AFTER" not in received
        assert await closed(server) == {"send_cancelled": 1}


@pytest.mark.req("A35", "A53", "R35")
async def test_a_peers_words_cannot_forge_a_log_line(caplog) -> None:
    caplog.set_level(logging.INFO)
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade("/ws?user=%0d%0aERROR%20forged%1b%5b31m")
        await raw.send(frame(8, (4000).to_bytes(2, "big") + b"\r\nCRITICAL forged\x1b[31m"))
        await raw.ended()
    for record in caplog.records:
        assert record.getMessage().isprintable(), record.getMessage()


@pytest.mark.req("A36", "R10")
async def test_a_reset_at_any_byte_leaves_nothing() -> None:
    conversation = upgrade_head() + frame(1, b"hello") + frame(1, b"wor", fin=False) + frame(9) + frame(0, b"ld")
    async with besieged() as server:
        for cut in range(1, len(conversation), 7):
            async with connect(server) as raw:
                head, rest = conversation[:cut], b""
                if cut > len(upgrade_head()):
                    head, rest = conversation[: len(upgrade_head())], conversation[len(upgrade_head()) : cut]
                await raw.send(head)
                if rest:
                    await raw.response()
                    await raw.send(rest)
                await raw.reset()


@pytest.mark.req("R21")
async def test_a_connection_on_a_real_socket_leaves_no_more_garbage_than_bare_trio_websocket() -> None:
    """Nothing for the cycle collector, whoever ends it."""

    async def life(server: Server, ending: str) -> None:
        async with connect(server) as raw:
            await raw.upgrade()
            await raw.send(frame(1, b"x"))
            await raw.frame()
            if ending == "peer":
                await raw.send(frame(8, (1000).to_bytes(2, "big")))
            elif ending == "server":
                server.supervisor.connections(user="ann")[0].close()
            elif ending == "error":
                await raw.send(frame(3))
            elif ending == "reset":
                await raw.reset()
            if ending != "reset":
                await raw.closed_with()
        await settled(server.supervisor)

    async with open_server(echo) as server:
        for ending in ("peer", "server", "error", "reset"):
            await life(server, ending)
            gc.collect()
            gc.disable()
            try:
                for _ in range(5):
                    await life(server, ending)
                await trio.lowlevel.checkpoint()
                assert gc.collect() == 0, ending
            finally:
                gc.enable()


async def test_a_peer_that_only_stops_sending_gets_no_code_that_may_not_be_sent() -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.stream.send_eof()
        await raw.ended()
        assert raw.buffer == b""
        assert await closed(server) == {"peer_lost": 1}


@pytest.mark.req("A32", "A33", "R11")
@pytest.mark.parametrize("answer", ["nothing", "data without end", "pings without end", "its own close, unread"])
async def test_a_peer_that_does_not_answer_our_close(answer: str) -> None:
    async def leave(conn: Connection) -> None:
        await conn.receive()

    async with besieged(leave) as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frame(1, b"now"))
        started = trio.current_time()
        noise = {"data without end": frame(2, bytes(10_000)), "pings without end": frame(9) * 100}.get(answer)
        with contextlib.suppress(trio.BrokenResourceError):
            while noise is not None:
                await raw.send(noise)
        while server.supervisor.statistics().closing:
            await trio.sleep(0.005)
        assert trio.current_time() - started <= 0.5 + 0.1
        assert await closed(server) == {"returned": 1}


@pytest.mark.req("A37", "R51")
@pytest.mark.parametrize("meanwhile", ["idle", "sending", "not reading", "closing"])
async def test_a_peer_behind_a_pulled_cable_is_found_in_time(meanwhile: str) -> None:
    timeouts = Timeouts(ping_interval=0.3, pong=0.3, write_progress=0.4)
    pulled = trio.Event()

    async def handler(conn: Connection) -> None:
        if meanwhile == "sending":
            await flood(conn)
        if meanwhile == "not reading":
            await pulled.wait()
        await echo(conn)

    async with besieged(handler, timeouts=timeouts) as server, trio.open_nursery() as nursery:
        hole = Blackhole(server.port)
        await nursery.start(hole.serve)
        async with connect(hole.port, receive_buffer=4096) as raw:
            await raw.upgrade()
            if meanwhile == "sending":
                await raw.frame()
            hole.open = False
            started = trio.current_time()
            pulled.set()
            if meanwhile == "closing":
                (conn,) = server.supervisor.connections(user="ann")
                conn.close()
            (reason,) = await closed(server)
        took = trio.current_time() - started
        bounds = {"idle": 0.6, "not reading": 0.9, "sending": 0.4, "closing": 0.0}
        assert took <= bounds[meanwhile] + 0.5 + 0.2
        assert (
            reason
            in {
                "idle": ("unresponsive",),
                "not reading": ("unresponsive",),
                "sending": ("too_slow", "unresponsive"),
                "closing": ("closed",),
            }[meanwhile]
        )
        nursery.cancel_scope.cancel()


@pytest.mark.req("A38", "R52")
async def test_a_peer_that_reads_a_byte_a_second() -> None:
    async with besieged(flood, timeouts=Timeouts(write_progress=0.5)) as server:
        async with connect(server, receive_buffer=4096) as raw:
            await raw.upgrade()
            with contextlib.suppress(trio.BrokenResourceError):
                while server.supervisor.connections(user="ann"):
                    await raw.stream.receive_some(1)
                    await trio.sleep(0.1)
        assert await closed(server) == {"too_slow": 1}


@pytest.mark.req("A39", "R52")
async def test_a_member_who_never_reads_is_cut_and_the_others_miss_nothing() -> None:
    limits, count = Limits(per_user=30, outbox_bytes=200_000), 100
    async with besieged(hub, limits=limits) as server, contextlib.AsyncExitStack() as stack:
        members = [await stack.enter_async_context(connect(server)) for _ in range(10)]
        deaf = await stack.enter_async_context(connect(server, receive_buffer=4096))
        for raw in (*members, deaf):
            await raw.upgrade(f"/ws?user={'deaf' if raw is deaf else 'member'}")
            await raw.message()
            await raw.say(op="join", room="r")
            while (await raw.message())["type"] != "reply":
                pass
        room = server.supervisor.room("r")

        async def listen(raw: Raw) -> None:
            numbers = []
            while len(numbers) < count:
                if "number" in (message := await raw.message()):
                    numbers.append(message["number"])
            assert numbers == list(range(count))

        async with trio.open_nursery() as nursery:
            for raw in members:
                nursery.start_soon(listen, raw)
            for number in range(count):
                room.publish(json.dumps({"number": number, "fill": "x" * 10_000}))
                await trio.sleep(0.005)
        assert await closed(server) == {"too_slow": 1}
        assert [conn.user for conn in room.members] == ["member"] * 10


async def shields(conn: Connection) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(0.8)


async def swallows(conn: Connection) -> None:
    until = trio.current_time() + 0.8
    while trio.current_time() < until:
        try:
            await trio.sleep(1)
        except trio.Cancelled:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.1)


async def sleeps_in_finally(conn: Connection) -> None:
    try:
        await trio.sleep_forever()
    finally:
        with trio.CancelScope(shield=True):
            await trio.sleep(0.8)


async def blocks_a_thread(conn: Connection) -> None:
    await trio.to_thread.run_sync(time.sleep, 0.8)


@pytest.mark.req("A41", "R12")
@pytest.mark.parametrize("handler", [shields, swallows, sleeps_in_finally, blocks_a_thread])
@pytest.mark.parametrize("by", ["server", "peer"])
async def test_a_handler_that_does_not_leave_holds_nothing(handler, by: str) -> None:
    inside = trio.Event()

    async def handle(conn: Connection) -> None:
        inside.set()
        await handler(conn)

    async with besieged(handle, errors=("handler_stuck",)) as server, connect(server) as raw:
        await raw.upgrade()
        await inside.wait()
        (conn,) = server.supervisor.connections(user="ann")
        started = trio.current_time()
        if by == "server":
            conn.close()
        else:
            await raw.reset()
        while server.supervisor.statistics().seats > 1:
            await trio.sleep(0.005)
        assert conn.end.at - started <= 0.1
        assert trio.current_time() - conn.end.at <= 0.5 + 0.1
        assert server.supervisor.statistics().stuck == 1
        assert "test_hostile_closing.py" in conn.closed.stuck_at or "threads" in conn.closed.stuck_at


@pytest.mark.req("A42")
async def test_a_stall_of_our_own_expires_nobody_who_has_spoken() -> None:
    def stop_everything(conn: Connection) -> None:
        time.sleep(1.2)

    async def handler(conn: Connection) -> None:
        async for message in conn:
            if message == "stop":
                stop_everything(conn)
            await conn.send(message)

    limits, timeouts = Limits(idle_ttl=0.8, per_user=20), Timeouts(ping_interval=0.4, pong=0.4)
    settings = {"limits": limits, "timeouts": timeouts, "within": 2.0}
    async with besieged(handler, **settings) as server, contextlib.AsyncExitStack() as stack:
        others = [await stack.enter_async_context(connect(server)) for _ in range(10)]
        for raw in others:
            await raw.upgrade()
        await trio.sleep(0.5)
        async with connect(server) as raw:
            await raw.upgrade("/ws?user=bob")
            await raw.send(frame(1, b"stop"))
            for other in others:  # said before anybody is due, heard long after
                await other.send(frame(1, b"here"))
            await trio.lowlevel.checkpoint()
        for other in others:
            while (heard := await other.frame())[0] == 9:
                await other.send(frame(10, heard[1]))
            assert heard == (1, b"here")


@pytest.mark.req("A43")
@pytest.mark.parametrize("jump", [3600, -3600])
async def test_the_wall_clock_may_jump(jump: int, monkeypatch) -> None:
    async def authenticate(request: Request) -> Identity:
        return Identity(user=request.query("user"), expires_at=time.time() + 600)

    async with besieged(options=Options(authenticate=authenticate)) as server, connect(server) as raw:
        await raw.upgrade()
        now = time.time()
        monkeypatch.setattr(time, "time", lambda: now + jump)
        await raw.send(frame(1, b"later"))
        assert await raw.frame() == (1, b"later")
        (conn,) = server.supervisor.connections(user="ann")
        assert conn.ends_at - trio.current_time() == pytest.approx(600, abs=5)


@pytest.mark.req("A44", "R15")
async def test_hooks_that_raise_hang_close_others_and_come_back() -> None:
    ran = []

    async def raises() -> None:
        ran.append("raises")
        raise ValueError("hook")

    async def hangs() -> None:
        ran.append("hangs")
        await trio.sleep_forever()

    async def closes(conn: Connection) -> None:
        ran.append("closes")
        for other in conn.supervisor.connections(user="ann"):
            other.close()

    async def comes_back(conn: Connection) -> None:
        ran.append("comes back")
        with contextlib.suppress(ConnectionClosed):
            conn.join("room")
        conn.supervisor.audit()
        await conn.supervisor.expire_idle(1e6)

    async def handler(conn: Connection) -> None:
        conn.on_close(raises)
        conn.on_close(hangs)
        conn.on_close(closes, conn)
        conn.on_close(comes_back, conn)
        await trio.sleep_forever()

    async with besieged(handler, errors=("failed what=hook",)) as server:
        async with connect(server) as one, connect(server) as two:
            await one.upgrade()
            await two.upgrade()
            first, second = server.supervisor.connections(user="ann")
            record = await server.supervisor.disconnect(first.id)
            assert record.cleanup <= 0.5 + 0.1
            await second.wait_gone()
        assert sorted(ran) == sorted(["raises", "hangs", "closes", "comes back"] * 2)


@pytest.mark.req("A47")
async def test_many_reasons_in_one_tick_are_one_end() -> None:
    for _ in range(4):
        async with besieged(limits=Limits(per_user=1, idle_ttl=0.2)) as server, connect(server) as raw:
            ends: list[str] = []
            server.supervisor.subscribe(
                lambda event, ends=ends: ends.append(event.connection) if isinstance(event, events.Closed) else None
            )
            await raw.upgrade()
            (conn,) = server.supervisor.connections(user="ann")
            await trio.sleep_until(conn.last_active + 0.2)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(raw.send, frame(8, (1000).to_bytes(2, "big")))
                nursery.start_soon(server.supervisor.expire_idle, 0.1)
                async with connect(server) as newer:
                    await newer.send(upgrade_head())
                    conn.close()
            await conn.wait_gone()
            assert ends.count(conn.id) == 1


@pytest.mark.req("A48")
async def test_nobody_joins_a_room_while_leaving() -> None:
    async def handler(conn: Connection) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with pytest.raises(ConnectionClosed):
                conn.join("too late")

    async with besieged(handler) as server, connect(server) as raw:
        await raw.upgrade()
        await server.supervisor.disconnect_user("ann")
        assert server.supervisor.rooms() == ()


NAUGHTY = [
    "\r\nERROR forged",
    "\x1b[31mred",
    "a\0b",
    "\N{RIGHT-TO-LEFT OVERRIDE}gnp.exe",
    "\N{ZERO WIDTH SPACE}",
    "\N{BYTE ORDER MARK}x",
    "\u2028\u2029\x85\v\f",
    "'; DROP TABLE users; --",
    "<script>alert(1)</script>",
    "{{7*7}} ${jndi:ldap://x} %s%n%d",
    "../../etc/passwd",
    "__proto__",
    "constructor",
    "0",
    "False",
    "None",
    "null",
    "NaN",
    " ",
    "ﬀ",
    "Z͑ͫ̓ͪ̂ͫ̽͏̴̙̤̞",
    "x" * 256,
]


@pytest.mark.req("A53", "A56")
async def test_naughty_names_are_just_names(caplog) -> None:
    caplog.set_level(logging.DEBUG)
    async with besieged(hub, limits=Limits(per_user=2)) as server, contextlib.AsyncExitStack() as stack:
        for name in NAUGHTY:
            raw = await stack.enter_async_context(connect(server))
            await raw.upgrade(f"/ws?user={quote(name, safe='')}&session={quote(name, safe='')}")
            assert (await raw.message())["user"] == name
            await raw.say(op="join", room=name)
            assert (await raw.message())["members"] == 1
        assert server.supervisor.statistics().users == len(NAUGHTY) + 1
        assert set(server.supervisor.rooms()) == set(NAUGHTY)
        for name in ("", "x" * 257, "x" * 10_000):
            async with connect(server) as raw:
                await raw.send(upgrade_head(f"/ws?user={name}"))
                assert (await raw.response())[0] == 400
    for record in caplog.records:
        assert record.getMessage().isprintable(), record.getMessage()


@pytest.mark.req("A54")
async def test_nothing_is_kept_of_thousands_who_are_gone(autojump_clock) -> None:
    """In memory, because it is the books that must not grow."""
    async with open_supervisor(limits=Limits(connect_rate_user="5/s")) as supervisor:

        async def visit(number: int) -> None:
            wire = FaultWire()
            conn = await supervisor.start(wire, Identity(user=f"user-{number}"), joins)
            await trio.testing.wait_all_tasks_blocked()
            wire.hang_up()
            await conn.wait_gone()

        async def joins(conn: Connection) -> None:
            conn.join(f"room of {conn.user}")
            await echo(conn)

        async def many(first: int) -> None:
            for number in range(1500):
                await visit(first + number)
            await trio.sleep(10)  # as long as it takes to have one's rate back
            await visit(0)
            await settle()
            gc.collect()

        await many(1)
        before = types_alive()
        await many(10_000)
        more = {name: count for name, count in (types_alive() - before).items() if count > 300}
        trios = ("trio.", "builtins.tuple")  # it keeps deadlines that are over
        assert not [name for name in more if not name.startswith(trios)], more
        assert (len(supervisor._ledger.attempts), supervisor.statistics().users) == (1, 0)


@pytest.mark.req("A55")
async def test_nobody_comes_back_for_what_is_not_theirs() -> None:
    """Numbers that were never given, other people's sessions and runs, and one session twice at the same time."""
    async with besieged(hub) as server, connect(server) as ann, connect(server) as eve:
        await ann.upgrade("/ws?user=ann&session=s")
        epoch = (await ann.message())["epoch"]
        await ann.say(op="join", room="r")
        await ann.message()
        await ann.say(op="run", agent="demo")
        run = (await ann.message())["run"]
        await ann.say(op="send", user="ann", data="secret", id="mine")
        await eve.upgrade("/ws?user=eve&session=s&takeover=1")  # of another user: takes nothing over
        await eve.message()
        assert len(server.supervisor.connections(user="ann")) == 1
        for seq in (-1, 1.5, True, "1", None, [], 2**63, -(2**63), 10**300):
            for frame_ in ({"op": "join", "room": "r"}, {"op": "recover"}):
                await eve.say(**frame_, seq=seq, epoch=epoch)
                answer = await eve.message()
                assert answer.get("code") == "bad_request" or answer["complete"] is False, answer
        for wrong in ("", "0" * 8, None, 1, epoch.upper() + "x"):
            await eve.say(op="join", room="r", seq=0, epoch=wrong)
            assert (await eve.message())["complete"] is False
        for op in ("follow", "cancel"):
            await eve.say(op=op, run=run, seq=0)
            assert (await eve.message())["code"] == "not_found"
        await eve.say(op="recover", seq=0, epoch=epoch)
        assert (await eve.message())["type"] == "reply"  # and nothing of what was said to others
        async with contextlib.AsyncExitStack() as stack:
            twins = [await stack.enter_async_context(connect(server)) for _ in range(8)]
            for twin in twins:
                await twin.send(upgrade_head("/ws?user=ann&session=s&takeover=1"))
            with trio.fail_after(5):
                answers = [(await twin.response())[0] for twin in twins]
                while server.supervisor.statistics().leaving or server.supervisor.statistics().closing:
                    await trio.sleep(0.005)
            assert set(answers) <= {101, 429}  # refused, who was taken over before it was in
            [holder] = server.supervisor.connections(user="ann")
            assert [conn for conn in server.supervisor.room("r").members if conn.user == "ann"] == [holder]
            [kept] = [twin for twin, status in zip(twins, answers, strict=True) if status == 101 and await _lasts(twin)]
            await kept.say(op="send", user="eve", data="it is me")
            assert (await kept.message())["delivered"] == 1


async def _lasts(raw: Raw) -> bool:
    """Whether it answers a ping, and does not say goodbye."""
    await raw.send(frame(9, b"still there?"))
    while True:
        opcode, payload = await raw.frame()
        if opcode in (8, 10):
            return payload == b"still there?"
