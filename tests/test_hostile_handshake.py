"""Attacks before anybody is known: on real sockets, beside a neighbour who must not notice."""

from __future__ import annotations

import contextlib
import json
import resource
import ssl
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme

from supervisor import Connection, Identity, Limits, Options, Overflow, Policies, Request, Timeouts, echo, events
from tests.serving import connect, file_descriptors, frame, open_server, tasks, upgrade_head
from tests.siege import Complaints, besieged, resident


@pytest.mark.req("A01")
@pytest.mark.parametrize(
    "header", ["Host", "Connection", "Sec_WebSocket_Protocol", "Sec_WebSocket_Extensions", "Origin"]
)
@pytest.mark.parametrize("byte", ["\xff", "\xe9"])
async def test_bytes_beyond_ascii(header: str, byte: str) -> None:
    async with besieged() as server, connect(server) as raw:
        value = f"Upgrade{byte}" if header == "Connection" else byte
        await raw.send(upgrade_head(**{header: value}))
        status, _, _ = await raw.response()
        assert status == 400


@pytest.mark.req("A02")
@pytest.mark.parametrize(
    "garbage", [b"\x16\x03\x01\x02\x00\x01\x00", b"garbage\r\n\r\n", b"\0" * 1000, b"GET / HTTP/9\r\n\r\n"]
)
async def test_garbage_and_a_reset(garbage: bytes) -> None:
    async with besieged() as server:
        async with connect(server) as raw:
            await raw.send(garbage)
            await raw.reset()
        async with connect(server) as raw:
            await raw.send(garbage)
            await raw.ended()


@pytest.mark.req("A03")
async def test_a_reset_before_the_101() -> None:
    async with besieged() as server:
        for _ in range(20):
            async with connect(server) as raw:
                await raw.send(upgrade_head())
                await raw.reset()


@pytest.mark.req("A07")
async def test_two_hundred_megabytes_while_we_authenticate() -> None:
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


@pytest.mark.req("A14", "R40", "R11")
async def test_a_refused_peer_that_does_not_hang_up() -> None:
    async with besieged() as server:
        for path, status in (("/ws?user=", 400), ("/nowhere", 404)):
            async with connect(server) as raw:
                await raw.send(upgrade_head(path))
                assert (await raw.response())[0] == status
                refused_at = trio.current_time()
                await raw.ended()
                assert trio.current_time() - refused_at <= 0.5


@pytest.mark.req("A04", "R21")
async def test_port_scans_and_health_checks_leave_at_once() -> None:
    async with besieged() as server:
        for _ in range(300):
            async with connect(server):
                pass


@pytest.mark.req("A08", "A09", "A10", "A11")
async def test_bad_handshakes_are_refused_before_anything_is_spent() -> None:
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


async def test_a_slow_authentication_is_cut_short() -> None:
    async def authenticate(request: Request) -> Identity:
        if request.query("user") == "ann":
            await trio.sleep_forever()
        return Identity(user=request.query("user"))

    timeouts = Timeouts(handshake=0.3)
    async with besieged(options=Options(authenticate=authenticate), timeouts=timeouts) as server:
        async with connect(server) as raw:
            await raw.send(upgrade_head())
            assert (await raw.response())[0] == 503


@pytest.mark.req("A05")
@pytest.mark.parametrize("drip", [b"", b"G", b"GET /ws HTTP/1.1\r\nHost:"])
async def test_a_slow_head_is_cut_short_in_total(drip: bytes) -> None:
    async with besieged(timeouts=Timeouts(handshake=0.4)) as server, connect(server) as raw:
        started = trio.current_time()
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in (drip * 100)[:100] or ():
                await raw.send(bytes((byte,)))
                await trio.sleep(0.05)
        await raw.ended()
        assert trio.current_time() - started < 5


@pytest.mark.req("A16", "R21")
async def test_the_lobby_is_bounded_and_the_oldest_leaves() -> None:
    async with besieged(limits=Limits(lobby=10)) as server, contextlib.AsyncExitStack() as stack:
        silent = [await stack.enter_async_context(connect(server)) for _ in range(20)]
        for raw in silent[:10]:
            await raw.ended()
        async with connect(server) as raw:
            await raw.upgrade()


@pytest.mark.req("A15")
async def test_running_out_of_file_descriptors_is_survived(caplog) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    async with besieged(errors=("cannot accept",)) as server, contextlib.AsyncExitStack() as stack:
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


@pytest.mark.req("A03")
@pytest.mark.parametrize("while_we", ["authenticate", "wait for a claim", "wait for a seat"])
async def test_a_reset_while_we_are_busy_with_it(while_we: str) -> None:
    deciding = trio.Event()

    async def authenticate(request: Request) -> Identity:
        if while_we == "authenticate" and request.query("user") == "ann":
            await deciding.wait()
        return Identity(user=request.query("user"))

    async def slow_to_leave(conn: Connection) -> None:
        try:
            await trio.sleep_forever()
        finally:
            with trio.CancelScope(shield=True):
                await trio.sleep(0.3)

    policies = Policies(overflow_user=Overflow.WAIT if while_we == "wait for a claim" else Overflow.EVICT_OLDEST)
    settings = {"limits": Limits(per_user=1), "policies": policies, "timeouts": Timeouts(wait=0.5)}
    async with besieged(slow_to_leave, Options(authenticate=authenticate), **settings) as server:
        async with connect(server) as first:
            if while_we != "authenticate":
                await first.upgrade()
            for _ in range(10):
                async with connect(server) as raw:
                    await raw.send(upgrade_head())
                    await trio.sleep(0.01)
                    await raw.reset()
            deciding.set()


@pytest.mark.slow
@pytest.mark.req("A04")
async def test_ten_thousand_connects_and_nothing_more() -> None:
    async with besieged() as server:
        for _ in range(10_000):
            async with connect(server):
                pass
        assert server.supervisor.statistics().turned_away == {}


SERVER_WITH_FEW_FILES = """
import resource, sys
from supervisor.cli import main
resource.setrlimit(resource.RLIMIT_NOFILE, (256, 256))
sys.argv = ["ws-supervisor", "serve", "--port", sys.argv[1], "--app", "echo"]
main()
"""


@contextlib.asynccontextmanager
async def server_with_few_files(port: int) -> AsyncIterator[None]:
    command = [sys.executable, "-c", SERVER_WITH_FEW_FILES, str(port)]
    async with trio.open_nursery() as nursery:
        process = await nursery.start(partial(trio.run_process, command, stderr=subprocess.PIPE, check=False))
        line = b""
        while b"serving on" not in line:
            line += await process.stderr.receive_some()
        nursery.start_soon(drop, process.stderr)
        yield
        process.terminate()


async def drop(stream: trio.abc.ReceiveStream) -> None:
    async for _ in stream:
        pass


@pytest.mark.slow
@pytest.mark.req("A05", "A16")
async def test_five_hundred_dripping_headers_at_256_file_descriptors(unused_port: int, record_property) -> None:
    """Half handshakes are sent away for whoever comes, oldest first, so that somebody honest gets in all the while."""

    async def drip() -> None:
        while True:
            with contextlib.suppress(OSError, trio.BrokenResourceError):
                async with connect(unused_port) as raw:
                    for byte in upgrade_head("/ws?user=drip"):
                        await raw.send(bytes((byte,)))
                        await trio.sleep(1)

    waits = []
    async with server_with_few_files(unused_port), trio.open_nursery() as nursery:
        for _ in range(500):
            nursery.start_soon(drip)
        await trio.sleep(1)
        for _ in range(10):
            started = trio.current_time()
            await served(unused_port)
            waits.append(trio.current_time() - started)
            await trio.sleep(0.2)
        nursery.cancel_scope.cancel()
    record_property("slowest handshake beside 500 dripping headers", max(waits))
    assert max(waits) <= 1


@pytest.mark.req("A04")
async def test_three_hundred_connects_at_256_file_descriptors(unused_port: int) -> None:
    async with server_with_few_files(unused_port), contextlib.AsyncExitStack() as stack:
        for _ in range(300):
            await stack.enter_async_context(connect(unused_port))
        await stack.aclose()
        with trio.fail_after(1):
            await served(unused_port)


async def served(port: int) -> None:
    """Connect and be answered, however often one is sent away with the crowd."""
    while True:
        with contextlib.suppress(OSError, EOFError, trio.BrokenResourceError):
            async with connect(port) as raw:
                await raw.upgrade("/ws?user=honest")
                await raw.send(frame(1, b"hello"))
                if await raw.frame() == (1, b"hello"):
                    return


@pytest.mark.req("A06")
async def test_the_wrong_protocol_on_the_port() -> None:
    authority = trustme.CA()
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    timeouts = Timeouts(handshake=0.5)
    async with besieged(timeouts=timeouts) as server, connect(server) as raw:
        hello = trio.SSLStream(raw.stream, ssl.create_default_context(), server_hostname="127.0.0.1")
        with pytest.raises(trio.BrokenResourceError):
            await hello.do_handshake()
    complaints = Complaints()
    with complaints.heard():
        async with open_server(echo, Options(ssl_context=context), timeouts=timeouts) as server:
            before = tasks(), file_descriptors()
            for start in (upgrade_head(), b"\x16\x03\x01\x02\x00", b"\x16", b""):
                async with connect(server) as raw:  # and then nothing more
                    started = trio.current_time()
                    await raw.send(start)
                    await raw.ended()
                    assert trio.current_time() - started <= 1
            assert (tasks(), file_descriptors()) == before
            assert server.supervisor.statistics().failures == {}
    assert complaints.lines == []


@pytest.mark.req("A08", "A13")
@pytest.mark.parametrize(
    ("head", "statuses"),
    [
        (upgrade_head("/ws?user=ann", *("X: y" for _ in range(1200))), {431}),
        (upgrade_head("/ws?user=ann", *("Origin: http://127.0.0.1" for _ in range(90))), {403}),
        (upgrade_head("/ws?user=ann", *("Host: 127.0.0.1" for _ in range(90))), {400}),
        (upgrade_head(Sec_WebSocket_Protocol=" " * 66_000), {431}),
        (upgrade_head(Sec_WebSocket_Protocol=" " * 15_000 + "x"), {101}),
        (upgrade_head(Sec_WebSocket_Protocol=", " * 7_000), {101}),
        (upgrade_head(Sec_WebSocket_Extensions='a;b="' + "\\c" * 7_000), {101}),
        (upgrade_head("/ws?user=ann&" + "a=b&" * 3_000), {400}),
        (upgrade_head("/ws?user=" + "%61" * 5_000), {400}),
        (b"\r\n" * 10_000, {400, 431}),
        (b"GET " + b"/" * 20_000, {400, 431}),
    ],
)
async def test_heads_that_are_too_much(head: bytes, statuses: set[int]) -> None:
    async with besieged() as server, connect(server) as raw:
        started = time.thread_time()
        with contextlib.suppress(trio.BrokenResourceError):
            await raw.send(head)
        assert (await raw.response())[0] in statuses
        assert time.thread_time() - started < 0.5


@pytest.mark.req("A09")
async def test_a_second_request_behind_the_first() -> None:
    async with besieged() as server:
        for behind in (upgrade_head(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n", frame(1, b"early"), b"\0"):
            async with connect(server) as raw:
                await raw.send(upgrade_head() + behind)
                assert (await raw.response())[0] == 400
        async with connect(server) as raw:  # one request, one answer, then the end
            await raw.send(b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n" * 3)
            assert (await raw.response())[0] == 200
            await raw.ended()
            assert b"HTTP" not in raw.buffer


@pytest.mark.req("A10")
@pytest.mark.parametrize(
    ("changed", "status"),
    [
        ({"Sec_WebSocket_Key": None}, 400),
        ({"Sec_WebSocket_Key": "c2hvcnQ="}, 400),
        ({"Sec_WebSocket_Key": "AAAAAAAAAAAAAAAAAAAAAA"}, 400),
        ({"Sec_WebSocket_Key": "A" * 43 + "="}, 400),
        ({"Sec_WebSocket_Version": "12"}, 426),
        ({"Sec_WebSocket_Version": "13, 12"}, 426),
        ({"Sec_WebSocket_Version": None}, 426),
        ({"Upgrade": None}, 426),
        ({"Upgrade": "websocketx"}, 426),
        ({"Connection": "keep-alive"}, 426),
        ({"Host": None}, 400),
        ({"Content_Length": "5"}, 400),
        ({"Content_Length": "-1"}, 400),
        ({"Content_Length": "5, 6"}, 400),
        ({"Transfer_Encoding": "chunked"}, 400),
    ],
)
async def test_a_handshake_is_what_the_rfc_says(changed: dict[str, str | None], status: int) -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.send(upgrade_head(**changed))
        assert (await raw.response())[0] == status


@pytest.mark.req("A12")
@pytest.mark.parametrize(
    ("origin", "status"),
    [
        (None, 101),
        ("http://127.0.0.1", 101),
        ("https://app.example", 101),
        ("https://127.0.0.1", 403),
        ("http://127.0.0.1:81", 403),
        ("http://evil.example", 403),
        ("null", 403),
        ("", 403),
        ("http://127.0.0.1.evil.example", 403),
        ("https://app.example.evil", 403),
        ("https://evil-app.example", 403),
        ("http://app.example", 403),
        ("https://app.example`evil", 403),
        ("https://app.example/", 403),
        ("https://APP.example\tx", 403),
        ("http://127.0.0.1 http://evil.example", 403),
        ("file://", 403),
    ],
)
async def test_only_pages_of_our_own_and_listed_ones_may_connect(origin: str | None, status: int) -> None:
    async with besieged(options=Options(allowed_origins=["https://app.example"])) as server, connect(server) as raw:
        await raw.send(upgrade_head(Origin=origin))
        assert (await raw.response())[0] == status


@pytest.mark.req("A16")
async def test_half_handshakes_take_nothing_from_those_who_are_in() -> None:
    """However full the lobby: no emergency cleanup, nobody shed, and whoever is honest gets in."""
    async with besieged(limits=Limits(lobby=20, total=10, per_user=5)) as server, contextlib.AsyncExitStack() as stack:
        inside = [await stack.enter_async_context(connect(server)) for _ in range(5)]
        for raw in inside:
            await raw.upgrade("/ws?user=inside")
        for _ in range(200):
            raw = await stack.enter_async_context(connect(server))
            await raw.send(b"GET /ws HTTP/1.1\r\n")
        async with connect(server) as raw:
            await raw.upgrade()
        figures = server.supervisor.statistics()
        assert (figures.emergencies, figures.shed, figures.closed.get("evicted", 0)) == (0, 0, 0)
        for raw in inside:
            await raw.send(frame(1, b"here"))
            assert await raw.frame() == (1, b"here")


@pytest.mark.req("A17", "R37")
@pytest.mark.parametrize("rate", [None, "50/s"])
async def test_a_user_who_connects_and_leaves_as_fast_as_possible(rate: str | None) -> None:
    async with besieged(limits=Limits(connect_rate_user=rate)) as server:
        plan = {"lives": 1000, "users": ["churn"], "ways": ["vanish", "leave", "reset"], "at_once": 20}
        crowd = [sys.executable, str(Path(__file__).parent / "crowd.py"), str(server.port)]
        done = await trio.run_process(crowd, stdin=json.dumps(plan).encode() + b"\n", capture_stdout=True)
        statuses = json.loads(done.stdout)["statuses"]
        assert sum(statuses.values()) == 1000
        assert set(statuses) <= {"101", "429"}
        if rate is not None:
            assert statuses["429"] > 500
