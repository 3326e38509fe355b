"""Peers that break rules, vanish, or never read: on real sockets, with a neighbour who must not notice.

Every test here runs against a server on which somebody else keeps talking, and ends at the exact baseline.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import resource
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from supervisor import Connection, ConnectionClosed, Identity, Limits, Options, Request, Server, Timeouts, echo, events
from tests.serving import connect, file_descriptors, frame, open_server, settled, tasks, upgrade_head

PATIENCE = 5


@contextlib.asynccontextmanager
async def besieged(handler=echo, **settings) -> AsyncIterator[Server]:
    """A server with a neighbour who echoes all the while; afterwards everything is as it was."""
    async with open_server(handler, **settings) as server:
        async with connect(server) as neighbour:
            await neighbour.upgrade("/ws?user=neighbour")
            before = tasks(), file_descriptors()
            with trio.fail_after(PATIENCE):
                yield server
                await neighbour.send(frame(1, b"still here"))
                while (answer := await neighbour.frame())[0] == 9:
                    pass
                assert answer == (1, b"still here")
                while server.supervisor.statistics().users > 1 or (tasks(), file_descriptors()) != before:
                    await trio.sleep(0.005)  # the fail_after above says when this is too long
            assert server.supervisor.audit() == ()
            assert server.supervisor.statistics().seats == 1
        await settled(server.supervisor)


@pytest.mark.parametrize(
    "header", ["Host", "Connection", "Sec_WebSocket_Protocol", "Sec_WebSocket_Extensions", "Origin"]
)
@pytest.mark.parametrize("byte", ["\xff", "\xe9"])
async def test_w1_non_ascii_bytes_before_authentication(header: str, byte: str) -> None:
    async with besieged() as server, connect(server) as raw:
        value = f"Upgrade{byte}" if header == "Connection" else byte
        await raw.send(upgrade_head(**{header: value}))
        status, _, _ = await raw.response()
        assert status == 400


@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"garbage\r\n\r\n", b"\0" * 1000, b"GET / HTTP/9\r\n\r\n"]
)
async def test_w2_garbage_and_a_reset(garbage: bytes) -> None:
    async with besieged() as server:
        async with connect(server) as raw:
            await raw.send(garbage)
            await raw.reset()
        async with connect(server) as raw:
            await raw.send(garbage)
            await raw.ended()


async def test_w3_a_reset_before_the_101() -> None:
    async with besieged() as server:
        for _ in range(20):
            async with connect(server) as raw:
                await raw.send(upgrade_head())
                await raw.reset()


@pytest.mark.req("R11")
async def test_w4_pings_and_oversize_while_we_close() -> None:
    async with besieged(limits=Limits(max_message_size=1000)) as server:
        for noise in (frame(9, b"ping"), frame(2, b"x" * 2000), frame(2, b"x" * 2000) * 2, frame(3), b"\xff" * 50):
            async with connect(server) as raw:
                await raw.upgrade()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(server.supervisor.disconnect_user, "ann")
                    with contextlib.suppress(trio.BrokenResourceError):
                        for _ in range(50):
                            await raw.send(noise)
                            await trio.lowlevel.checkpoint()
        assert server.supervisor.statistics().failures == {}


async def test_w5_two_hundred_megabytes_while_we_authenticate() -> None:
    """What we do not read stays with the sender: memory does not grow by what a stranger sends."""
    deciding = trio.Event()

    async def authenticate(request: Request) -> Identity:
        user = request.query("user")
        if user == "ann":
            await deciding.wait()
        return Identity(user=user)

    async with besieged(options=Options(authenticate=authenticate)) as server, connect(server) as raw:
        await raw.send(upgrade_head())
        before, sent = resident(), 0
        with trio.move_on_after(1), contextlib.suppress(trio.BrokenResourceError):
            for _ in range(200):
                await raw.send(bytes(1_000_000))
                sent += 1
        assert sent < 50  # the kernel's buffers took some
        assert resident() - before < 2_000_000
        deciding.set()


def resident() -> int:
    """Bytes of memory this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


@pytest.mark.req("R40", "R11")
async def test_w6_a_refused_peer_that_does_not_hang_up() -> None:
    async with besieged() as server:
        for path, status in (("/ws?user=", 400), ("/nowhere", 404)):
            async with connect(server) as raw:
                await raw.send(upgrade_head(path))
                assert (await raw.response())[0] == status
                refused_at = trio.current_time()
                await raw.ended()
                assert trio.current_time() - refused_at <= 0.5


@pytest.mark.req("R11")
@pytest.mark.parametrize("payload", [1001, 500_000])
async def test_w7_oversize_and_then_silence(payload: int) -> None:
    async with besieged(limits=Limits(max_message_size=1000)) as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frame(2, bytes(payload)))
        started = trio.current_time()
        opcode, close = await raw.frame()
        assert (opcode, close[:2]) == (8, (1009).to_bytes(2, "big"))
        await raw.ended()  # though the close frame is never answered
        assert trio.current_time() - started <= 0.6


@pytest.mark.req("R11")
async def test_w8_a_close_from_a_peer_that_never_reads() -> None:
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


async def closed(server: Server) -> dict[str, int]:
    """How many have closed for which reasons, once the first has."""
    while not server.supervisor.statistics().closed:
        await trio.sleep(0.005)
    return dict(server.supervisor.statistics().closed)


async def flood(conn: Connection) -> None:
    """Sends without end, but to the neighbour."""
    if conn.user == "neighbour":
        await echo(conn)
    while True:
        await conn.send(bytes(100_000))


async def until_stalled(server: Server) -> None:
    """Wait until a write towards ann has stopped moving."""
    while True:
        conns = server.supervisor.connections(user="ann")
        since = conns[0].wire.stalled_since if conns else None
        if since is not None and trio.current_time() - since > 0.2:
            return
        await trio.sleep(0.02)


@pytest.mark.req("R21")
async def test_w9_port_scans_and_health_checks_leave_at_once() -> None:
    async with besieged() as server:
        for _ in range(300):
            async with connect(server):
                pass


@pytest.mark.parametrize("payload", [b"", b"x"])
async def test_w10_fragments_without_end(payload: bytes) -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        before = resident()
        await raw.send(frame(1, payload, fin=False))
        fragments = frame(0, payload, fin=False) * 10_000
        with contextlib.suppress(trio.BrokenResourceError):
            for _ in range(20):
                await raw.send(fragments)
        opcode, close = await raw.frame()
        assert (opcode, close[:2]) == (8, (1008).to_bytes(2, "big"))
        assert resident() - before < 4_000_000


async def test_w11_bad_handshakes_are_refused_before_anything_is_spent() -> None:
    bad = [
        (upgrade_head(Sec_WebSocket_Key="\xff\xff"), 400),
        (upgrade_head().replace(b"\r\n\r\n", b"\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"), 400),
        (upgrade_head().replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
        (upgrade_head(Origin="http://evil.example"), 403),
        (upgrade_head(Host="rebound.example:8765"), 401),
        (upgrade_head(X="y" * 70_000), 431),
        (upgrade_head().replace(b"\r\n\r\n", b"\r\nX: y" * 200 + b"\r\n\r\n"), 431),
        (upgrade_head() + b"glued", 400),
        (upgrade_head().replace(b"GET", b"POST"), 400),
        (b"CONNECT example.com:443 HTTP/1.1\r\nHost: x\r\n\r\n", 405),
        (upgrade_head(Content_Length="3", Transfer_Encoding="chunked"), 400),
    ]
    async with besieged() as server:
        for head, status in bad:
            async with connect(server) as raw:
                with contextlib.suppress(trio.BrokenResourceError):
                    await raw.send(head)
                got, _, body = await raw.response()
                assert got == status, (head[:100], body)
        assert server.supervisor.statistics().admitted == 1


@pytest.mark.req("R11", "R52")
async def test_w12_a_peer_that_never_reads_is_closed_in_bounded_time() -> None:
    async with besieged(flood) as server, connect(server, receive_buffer=4096) as raw:
        await raw.upgrade()
        await until_stalled(server)
        (record,) = await server.supervisor.disconnect_user("ann")
        assert record.cleanup <= 0.6
        assert record.stuck_at is None


@pytest.mark.req("R51", "R52")
async def test_w12_write_progress_is_bounded_too() -> None:
    async with besieged(flood, timeouts=Timeouts(write_progress=0.3)) as server:
        async with connect(server, receive_buffer=4096) as raw:
            await raw.upgrade()
            while server.supervisor.connections(user="ann"):
                await trio.sleep(0.01)
        assert await closed(server) == {"too_slow": 1}


@pytest.mark.req("R51")
@pytest.mark.parametrize("messages", [0, 3, 1000])
async def test_w13_a_handler_that_does_not_read(messages: int) -> None:
    """Closing is noticed while there is room for what came before; beyond it, by the heartbeat's look at the socket."""

    async def deaf(conn: Connection) -> None:
        if conn.user == "neighbour":
            return await echo(conn)
        await trio.sleep_forever()

    async with besieged(deaf, timeouts=Timeouts(ping_interval=0.2)) as server:
        async with connect(server) as raw:
            await raw.upgrade()
            await raw.send(frame(1, b"unread") * messages)
            await raw.send(frame(8, (1000).to_bytes(2, "big")))
        while server.supervisor.connections(user="ann"):
            await trio.sleep(0.01)


async def test_w14_the_kernel_is_told_to_notice_the_vanished() -> None:
    async def kept(conn: Connection) -> None:
        sock = conn.wire.stream.socket
        options[conn.user] = (
            sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE),
            sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT),
        )
        await echo(conn)

    options: dict[str, tuple[int, int, int]] = {}
    async with besieged(kept):
        while not options:
            await trio.sleep(0.005)
        assert options == {"neighbour": (1, 20, 10_000)}


@pytest.mark.req("R51")
async def test_w15_a_peer_that_answers_no_ping_is_unresponsive() -> None:
    timeouts = Timeouts(ping_interval=0.2, pong=0.2)
    async with open_server(echo, timeouts=timeouts) as server, connect(server) as raw:
        await raw.upgrade()
        assert await raw.frame() == (9, b"")
        await raw.send(frame(10))
        assert await raw.frame() == (9, b"")
        assert await raw.closed_with() == (4002, "unresponsive")
        assert tasks() < 30


async def test_w16_a_slow_authentication_is_cut_short() -> None:
    async def authenticate(request: Request) -> Identity:
        if request.query("user") == "ann":
            await trio.sleep_forever()
        return Identity(user=request.query("user"))

    timeouts = Timeouts(handshake=0.3)
    async with besieged(options=Options(authenticate=authenticate), timeouts=timeouts) as server:
        async with connect(server) as raw:
            await raw.send(upgrade_head())
            assert (await raw.response())[0] == 503


@pytest.mark.parametrize("drip", [b"", b"G", b"GET /ws HTTP/1.1\r\nHost:"])
async def test_w16_a_slow_head_is_cut_short_in_total(drip: bytes) -> None:
    async with besieged(timeouts=Timeouts(handshake=0.4)) as server, connect(server) as raw:
        started = trio.current_time()
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in (drip * 100)[:100] or ():
                await raw.send(bytes((byte,)))
                await trio.sleep(0.05)
        await raw.ended()
        assert trio.current_time() - started < 5


@pytest.mark.parametrize("deliver", ["send", "send_nowait"])
async def test_w17_a_cancelled_send_poisons_the_connection(deliver: str) -> None:
    """A frame is written whole, or it is the last thing that is ever written."""

    async def impatient(conn: Connection) -> None:
        if conn.user == "neighbour":
            return await echo(conn)
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


@pytest.mark.parametrize(
    ("bytes_sent", "code"),
    [
        (frame(3), 1002),
        (frame(11), 1002),
        (frame(1, b"x", rsv=0x40), 1002),
        (frame(1, b"x", mask=None), 1002),
        (frame(9, b"x", fin=False), 1002),
        (frame(9, bytes(126)), 1002),
        (frame(0, b"x"), 1002),
        (frame(1, b"\xff"), 1007),
        (frame(1, b"\xed\xa0\x80"), 1007),
        (frame(8, (999).to_bytes(2, "big")), 1002),
        (frame(8, (1005).to_bytes(2, "big")), 1002),
        (frame(8, (5000).to_bytes(2, "big")), 1002),
        (frame(8, b"x"), 1002),
        (frame(8, (1000).to_bytes(2, "big")), 1000),
        (frame(8, (4999).to_bytes(2, "big") + b"\x1b[31m\r\nforged line"), 4999),
    ],
)
async def test_what_breaks_the_protocol_ends_with_its_code(bytes_sent: bytes, code: int) -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(bytes_sent)
        opcode, payload = await raw.frame()
        assert (opcode, int.from_bytes(payload[:2], "big")) == (8, code)
        await raw.ended()


async def test_a_close_without_a_code_is_answered_without_one() -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frame(8))
        assert await raw.frame() == (8, b"")


@pytest.mark.req("R35")
async def test_a_peers_words_cannot_forge_a_log_line(caplog) -> None:
    caplog.set_level(logging.INFO)
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade("/ws?user=%0d%0aERROR%20forged%1b%5b31m")
        await raw.send(frame(8, (4000).to_bytes(2, "big") + b"\r\nCRITICAL forged\x1b[31m"))
        await raw.ended()
    for record in caplog.records:
        assert record.getMessage().isprintable(), record.getMessage()


@pytest.mark.req("R10")
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
async def test_the_lobby_is_bounded_and_the_oldest_leaves() -> None:
    async with besieged(limits=Limits(lobby=10)) as server, contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(connect(server)) for _ in range(20)]
        for raw in silent[:10]:
            await raw.ended()
        async with connect(server) as raw:
            await raw.upgrade()


async def test_running_out_of_file_descriptors_is_survived(caplog) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with besieged() as server, contextlib.AsyncExitStack() as stack:
        clients = [trio.socket.socket() for _ in range(40)]
        for client in clients:
            stack.callback(client.close)
        resource.setrlimit(resource.RLIMIT_NOFILE, (file_descriptors() + 10, hard))
        try:
            for client in clients:
                await client.connect(("127.0.0.1", server.port))
            await trio.sleep(0.5)  # it has run out by now, and goes on running out
            assert sum("cannot accept" in record.getMessage() for record in caplog.records) == 1
        finally:
            resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        for client in clients:
            client.close()
        async with connect(server) as raw:
            with trio.fail_after(1):
                await raw.upgrade()


async def test_an_exception_in_the_engines_reader_ends_one_connection(monkeypatch) -> None:
    async def broken(self, event) -> None:
        raise RuntimeError("reader raises")

    monkeypatch.setattr("trio_websocket.WebSocketConnection._handle_ping_event", broken)
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frame(9))
        assert (await raw.closed_with())[0] == 1002
        assert server.supervisor.statistics().failures == {"reader": 1}


async def test_nothing_is_written_before_the_101() -> None:
    """Others may speak to a connection from the moment it is admitted; what they say waits for the upgrade."""
    async with open_server() as server, connect(server) as raw:

        def greet(event: events.Event) -> None:
            if isinstance(event, events.Admitted):
                assert server.supervisor.user("ann").publish("early") == 1

        server.supervisor.subscribe(greet)
        await raw.upgrade()
        assert await raw.frame() == (1, b"early")
        assert (await raw.message())["type"] == "welcome"


async def test_a_close_frame_of_many_megabytes_is_refused_and_not_kept() -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        before = resident()
        await raw.send(b"\x88\xff" + (100_000_000).to_bytes(8, "big") + bytes(4))
        with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(1):
            for _ in range(100):
                await raw.send(bytes(1_000_000))
        assert resident() - before < 4_000_000


async def test_a_message_in_tiny_pieces_is_bounded() -> None:
    async with besieged(limits=Limits(max_fragments=100)) as server, connect(server) as raw:
        await raw.upgrade()
        raw.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in frame(2, bytes(2000)):
                await raw.send(bytes((byte,)))
                await trio.lowlevel.checkpoint()
        opcode, close = await raw.frame()
        assert (opcode, close[:2]) == (8, (1008).to_bytes(2, "big"))


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
