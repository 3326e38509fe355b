"""The server as people run it: identities, TLS, other people's clients, the end of the process."""

from __future__ import annotations

import json
import os
import signal
import socket
import ssl
import subprocess
import sys
import textwrap
from functools import partial
from pathlib import Path

import pytest
import trio
import trustme
from websockets.exceptions import ConnectionClosed as PeerClosed
from websockets.exceptions import InvalidStatus
from websockets.sync.client import connect as peer_connect

from supervisor import Identity, Limits, Options, Request, Unauthorized, echo
from tests.serving import Process, connect, open_server, request, settled, upgrade_head


def talk(url: str, *messages: str | bytes, **settings: object) -> list[str | bytes]:
    """A conversation of the ``websockets`` library, which is not ours."""
    with peer_connect(url, **settings) as peer:
        answers = []
        for message in messages:
            peer.send(message)
            answers.append(peer.recv(timeout=5))
        return answers


@pytest.mark.req("R38")
async def test_echo_returns_every_message_unchanged() -> None:
    messages = ["", "text", "ü\N{GRINNING FACE}", b"", b"\0\xff", "x" * 70_000, bytes(1_000_000)]
    async with open_server(echo) as server:
        url = f"ws://127.0.0.1:{server.port}/ws?user=ann"
        assert await trio.to_thread.run_sync(partial(talk, url, *messages, max_size=None)) == messages
        await settled(server.supervisor)
        assert server.supervisor.statistics().closed == {"peer_closed": 1}


async def test_tls() -> None:
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("localhost", "127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    async with open_server(echo, Options(ssl_context=server_side)) as server:
        url = f"wss://127.0.0.1:{server.port}/ws?user=ann"
        messages = ["hello", bytes(300_000)]
        assert await trio.to_thread.run_sync(partial(talk, url, *messages, ssl=client_side)) == messages
        async with connect(server) as raw:  # plain HTTP on the TLS port
            await raw.send(upgrade_head())
            await raw.ended()
        async with connect(server):  # no handshake at all
            pass
        assert await trio.to_thread.run_sync(partial(talk, url, "again", ssl=client_side)) == ["again"]
        assert server.supervisor.statistics().failures == {}


@pytest.mark.req("R11")
async def test_a_tls_peer_that_never_reads_is_closed_in_bounded_time() -> None:
    async def flood(conn) -> None:
        while True:
            await conn.send(bytes(100_000))

    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    async with (
        open_server(flood, Options(ssl_context=server_side)) as server,
        connect(server, receive_buffer=4096) as raw,
    ):
        secured = trio.SSLStream(raw.stream, client_side, server_hostname="127.0.0.1")
        await secured.send_all(upgrade_head())
        await secured.receive_some()
        await trio.sleep(0.3)
        (record,) = await server.supervisor.disconnect_user("ann")
        assert record.cleanup <= 0.6


def test_a_bad_certificate_is_an_error_before_anybody_connects(tmp_path: Path) -> None:
    (tmp_path / "cert.pem").write_text("no certificate")
    answer = run_cli("serve", "--certfile", str(tmp_path / "cert.pem"))
    assert (answer.returncode, answer.stdout) == (2, "")
    assert answer.stderr.startswith("ws-supervisor: ")


async def test_an_authenticate_hook_makes_identities_or_refuses() -> None:
    async def authenticate(request: Request) -> Identity:
        if request.header("authorization") != "Bearer good":
            raise Unauthorized("the token is not valid")
        return Identity(user="ann", labels={"from": request.peer})

    async with open_server(options=Options(authenticate=authenticate)) as server, connect(server) as raw:
        await raw.upgrade("/ws?user=mallory", Authorization="Bearer good")
        assert (await raw.message())["user"] == "ann"
        async with connect(server) as bad:
            await bad.send(upgrade_head())
            status, headers, body = await bad.response()
            assert (status, headers["www-authenticate"]) == (401, "Bearer")
            assert json.loads(body)["detail"] == "the token is not valid"
        async with connect(server) as bad:
            await bad.send(upgrade_head(Authorization="Bearer good", Origin="http://evil.example"))
            assert (await bad.response())[0] == 403


async def test_an_authenticate_hook_that_crashes_refuses_one_request(caplog) -> None:
    async def authenticate(request: Request) -> Identity:
        raise RuntimeError("hook raises")

    async with open_server(options=Options(authenticate=authenticate)) as server:
        async with connect(server) as raw:
            await raw.send(upgrade_head())
            assert (await raw.response())[0] == 500
        assert server.supervisor.statistics().failures == {"request": 1}
    assert "hook raises" in caplog.text


@pytest.mark.parametrize(("name", "status"), [("x" * 256, 101), ("x" * 257, 400), ("", 400)])
async def test_a_hook_that_takes_a_bad_name_has_not_crashed(name: str, status: int) -> None:
    def authenticate(request: Request) -> Identity:
        return Identity(user=request.query("user"))

    async with open_server(options=Options(authenticate=authenticate)) as server, connect(server) as raw:
        await raw.send(upgrade_head(f"/ws?user={name}"))
        assert (await raw.response())[0] == status
        assert server.supervisor.statistics().failures == {}


async def test_without_a_name_everybody_is_somebody_else() -> None:
    async with open_server() as server, connect(server) as first, connect(server) as second:
        await first.upgrade("/ws")
        await second.upgrade("/ws")
        names = {(await raw.message())["user"] for raw in (first, second)}
        assert len(names) == 2
        assert all(name.startswith("anonymous-") for name in names)


@pytest.mark.parametrize("query", ["user=", "user=a&user=b", "user=" + "x" * 257, "user=%ff", "user=a&session="])
async def test_a_bad_name_is_a_bad_request(query: str) -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.send(upgrade_head(f"/ws?{query}"))
        assert (await raw.response())[0] == 400


async def test_six_tabs_as_the_websockets_library_sees_them() -> None:
    def six_tabs(url: str) -> PeerClosed:
        tabs = [peer_connect(url).__enter__() for _ in range(6)]
        try:
            with pytest.raises(PeerClosed) as closed:
                while True:
                    tabs[0].recv(timeout=5)
            return closed.value
        finally:
            for tab in tabs:
                tab.__exit__(None, None, None)

    async with open_server() as server:
        closed = await trio.to_thread.run_sync(six_tabs, f"ws://127.0.0.1:{server.port}/ws?user=ann")
        assert closed.rcvd.code == 4505


async def test_a_refusal_as_the_websockets_library_sees_it() -> None:
    def refused(url: str) -> int:
        with pytest.raises(InvalidStatus) as answer:
            talk(url)
        return answer.value.response.status_code

    async with open_server() as server:
        await server.supervisor.drain()
        assert await trio.to_thread.run_sync(refused, f"ws://127.0.0.1:{server.port}/ws?user=ann") == 503


async def test_stop_drains_and_serve_returns() -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.upgrade()
        port = server.port
        server.stop()
        assert await raw.closed_with() == (1012, "server restart")
        with pytest.raises(OSError, match="refused"):
            await knock_until_refused(port)


async def knock_until_refused(port: int) -> None:
    while True:
        async with connect(port):
            await trio.sleep(0.01)


# -- a process of its own ----------------------------------------------------------------------------------------


def run_cli(*args: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "supervisor", *args]
    return subprocess.run(command, capture_output=True, text=True, timeout=30, env=os.environ | environ, check=False)


@pytest.mark.req("A46")
def test_sigterm_drains_and_the_process_ends_well() -> None:
    with Process() as server, peer_connect(f"ws://127.0.0.1:{server.port}/ws?user=ann") as peer:
        peer.recv()
        server.process.send_signal(signal.SIGTERM)
        with pytest.raises(PeerClosed) as closed:
            peer.recv(timeout=5)
        assert closed.value.rcvd.code == 1012
        status, _, said = server.end()
        assert status == 0
        assert "drain_started connections=1" in said
        assert "Traceback" not in said


STUBBORN = """
    import pathlib, resource, signal, time, trio

    async def shields(conn):
        with trio.CancelScope(shield=True):
            await trio.sleep(60)

    async def blocks(conn):
        time.sleep(60)

    async def sleeps_on(conn):  # as if the signal had come in the instant before, or to another thread
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGTERM])
        time.sleep(60)

    def take_memory():
        pages = int(pathlib.Path("/proc/self/statm").read_text().split()[0])
        limit = pages * resource.getpagesize() + 4_000_000
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))

    async def starves(conn):
        take_memory()
        await shields(conn)

    async def hungers(conn):
        take_memory()
        await trio.sleep_forever()
"""


@pytest.mark.req("R12")
@pytest.mark.parametrize("handler", ["shields", "blocks", "sleeps_on", "starves"])
def test_no_handler_can_keep_the_process_alive(tmp_path: Path, handler: str) -> None:
    (tmp_path / "stubborn.py").write_text(textwrap.dedent(STUBBORN))
    with Process("--app", f"stubborn:{handler}", "--exit", "0.5", "--drain", "1", cwd=tmp_path) as server:
        with peer_connect(f"ws://127.0.0.1:{server.port}/ws?user=ann", close_timeout=0.1):
            server.wait_for("admitted")
            status, took, said = server.end(signal.SIGTERM)
        assert status == 1
        assert took < 5
        assert "exiting with status 1" in said or handler == "starves"
        if handler == "shields":
            assert "stubborn.py:6" in said, said


@pytest.mark.req("R12", "R33")
def test_a_process_in_which_no_thread_can_be_started_ends_when_told(tmp_path: Path) -> None:
    (tmp_path / "stubborn.py").write_text(textwrap.dedent(STUBBORN))
    with Process("--app", "stubborn:hungers", cwd=tmp_path) as server, connect_raw(server.port):
        server.wait_for("admitted")
        status, took, _ = server.end(signal.SIGTERM)
        assert status == 0
        assert took < 5


@pytest.mark.req("A46")
def test_a_second_signal_cuts(tmp_path: Path) -> None:
    (tmp_path / "slow.py").write_text("import trio\n\nasync def slow(conn):\n    await trio.sleep_forever()\n")
    with Process("--app", "slow:slow", "--drain", "60", "--close", "30", "--exit", "0.2", cwd=tmp_path) as server:
        with connect_raw(server.port):
            server.wait_for("admitted")
            status, took, _ = server.end(signal.SIGINT, signal.SIGTERM)
        assert status == 0
        assert took < 5


def connect_raw(port: int):
    """A peer that never answers a close frame."""
    sock = socket.create_connection(("127.0.0.1", port))
    sock.sendall(upgrade_head())
    return sock


@pytest.mark.parametrize(
    ("args", "complaint"),
    [
        (["serve", "--app", "nonsense"], "--app must be hub, echo or package.module:handler, not 'nonsense'"),
        (["serve", "--app", "nowhere:handler"], "--app nowhere:handler: No module named 'nowhere'"),
        (["serve", "--per-user", "0"], "per_user must be a whole number of at least 1, is 0"),
        (["serve", "--host", "203.0.113.1"], "Cannot assign requested address"),
        (["serve", "--env", "prod"], "unknown environment 'prod'"),
        (["serve", "--jwt-secret", "short"], "a secret for HS256 has at least 32 bytes, not 5"),
        (["serve", "--jwt-audience", "chat"], "tokens are verified by a secret or by keys: give one of them"),
        (["serve", "--message-rate", "5"], "a rate is spelled like 100/s"),
        (["serve", "--forwarded-allow-ips", "proxy"], "'proxy' does not appear to be an IPv4 or IPv6 network"),
        (["token", "ann", "--jwt-secret", "short"], "a secret for HS256 has at least 32 bytes, not 5"),
    ],
)
def test_bad_input_gets_one_line(args: list[str], complaint: str) -> None:
    answer = run_cli(*args)
    assert answer.returncode != 0
    assert complaint in answer.stderr + answer.stdout
    assert "Traceback" not in answer.stderr


def test_settings_from_the_environment_and_json_lines() -> None:
    os.environ["WS_SUPERVISOR_PER_USER"] = "3"
    try:
        with Process("--log-format", "text") as server:
            with peer_connect(f"ws://127.0.0.1:{server.port}/ws?user=ann") as peer:
                assert json.loads(peer.recv())["limits"]["per_user"] == 3
            server.end(signal.SIGTERM)
    finally:
        del os.environ["WS_SUPERVISOR_PER_USER"]


@pytest.mark.req("R40")
def test_a_token_of_the_command_line_opens_its_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WS_SUPERVISOR_JWT_SECRET", "of the command line, 32 bytes at least")
    token = run_cli("token", "ann", "--session", "s1").stdout.strip()
    with Process("--app", "hub") as server:
        url = f"ws://127.0.0.1:{server.port}/ws"
        with pytest.raises(InvalidStatus, match="401"):
            peer_connect(f"{url}?user=ann")
        with peer_connect(url, additional_headers={"Authorization": f"Bearer {token}"}) as peer:
            welcome = json.loads(peer.recv())
            assert (welcome["user"], welcome["session"]) == ("ann", "s1")
        server.end(signal.SIGTERM)


@pytest.mark.req("R35")
def test_the_log_can_be_json() -> None:
    command = [sys.executable, "-m", "supervisor", "serve", "--port", "0", "--log-format", "json"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        first = json.loads(process.stderr.readline())
        assert first["message"].startswith("serving on http://127.0.0.1:")
        port = int(first["message"].rsplit(":", 1)[1].strip("/"))
        with peer_connect(f"ws://127.0.0.1:{port}/ws?user=ann") as peer:
            peer.recv()
            said = map(json.loads, process.stderr)
            admitted = next(line for line in said if line["message"].startswith("admitted"))
        assert (admitted["connection"], admitted["user"], admitted["level"]) == ("c1", "ann", "info")
        process.send_signal(signal.SIGTERM)
        assert process.wait(10) == 0


async def test_the_total_can_be_asked_while_serving() -> None:
    async with open_server(limits=Limits(total=7)) as server:
        assert (await request(server, "GET", "/api/statistics"))[1]["total_limit"] == 7


def test_tls_from_the_command_line(tmp_path: Path) -> None:
    authority = trustme.CA()
    authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "all.pem"))
    trusting = ssl.create_default_context()
    authority.configure_trust(trusting)
    with Process("--certfile", str(tmp_path / "all.pem"), "--app", "echo") as server:
        url = f"wss://127.0.0.1:{server.port}/ws?user=ann"
        assert talk(url, "hello", ssl=trusting) == ["hello"]
        assert server.end(signal.SIGTERM)[0] == 0


GOES_ON = """
    import time, trio
    from functools import partial
    from supervisor import Options, Timeouts, serve

    async def main():
        async with trio.open_nursery() as nursery:
            quick = Timeouts(drain=0.1, exit=0.1)
            await nursery.start(partial(serve, options=Options(port=0), timeouts=quick))
            print("ready", flush=True)

    trio.run(main)
    time.sleep(1.5)
    print("went on", flush=True)
"""


def test_a_program_that_has_served_goes_on_living(tmp_path: Path) -> None:
    (tmp_path / "program.py").write_text(textwrap.dedent(GOES_ON))
    with subprocess.Popen([sys.executable, str(tmp_path / "program.py")], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout.readline() == "ready\n"
        process.send_signal(signal.SIGTERM)
        assert (process.stdout.readline(), process.wait(10)) == ("went on\n", 0)
