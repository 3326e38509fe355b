"""Asking and telling a running server from the command line."""

from __future__ import annotations

import contextlib
import json
import re
from collections.abc import AsyncIterator
from functools import partial

import pytest
import trio

from supervisor import Limits, Options, Server
from supervisor.cli import operations
from supervisor.cli.remote import Declined, Target
from tests.serving import connect, open_server


async def run(command, server: Server, *args: object, **kwargs: object) -> object:
    """In a thread, as it waits for the server that runs here."""
    target = kwargs.pop("target", None) or Target(url=f"http://127.0.0.1:{server.port}")
    return await trio.to_thread.run_sync(partial(command, *args, target=target, **kwargs))


async def enter(server: Server, stack: trio.Nursery, user: str) -> None:
    """A peer that reads, and so answers nothing but exists; it leaves with the nursery."""

    async def stay(task_status: trio.TaskStatus[None]) -> None:
        async with connect(server) as raw:
            await raw.upgrade(f"/ws?user={user}&session=s")
            await raw.message()
            task_status.started()
            await trio.sleep_forever()

    await stack.start(stay)


@pytest.mark.req("R17")
async def test_everything_can_be_asked_and_told(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_server(limits=Limits(per_user=2)) as server, trio.open_nursery() as peers:
        for user in ("ann", "ann", "bob", "cid", "dan"):
            await enter(server, peers, user)
        told = partial(_told, capsys)
        await run(operations.statistics, server)
        assert "connections      5" in told()
        await run(operations.connections, server, user="ann")
        assert "2 of 2" in told()
        await run(operations.disconnect, server, user="bob", session="s")
        assert "1 closed" in told()
        await run(operations.why, server, user="bob")
        assert "reason=kicked" in told()
        await run(operations.why, server, connection="c1")
        assert re.search(r"c1  here, idle for \d s, for (300|29\d) s more \(idle\)", told())
        await run(operations.limits, server, "per-user=1", "lifetime=none", "message_rate=9/s")
        assert "evicted" in told()
        await run(operations.limits, server)
        assert "per_user              1" in told()
        await run(operations.publish, server, '{"a":1}', user="ann")
        assert "1 delivered" in told()
        await run(operations.publish, server, "hello", room="r")
        assert "0 delivered" in told()
        await run(operations.revoke, server, "ann")
        assert "revoked" in told()
        await run(operations.expire, server, 1000)
        await run(operations.shed, server)
        assert told().count("0 closed") == 2
        assert await run(operations.audit, server) == 0
        assert "0 inconsistencies" in told()
        await run(operations.disconnect, server, connection="c4")
        await run(operations.disconnect, server, everybody=True)
        assert told().count("1 closed") == 2
        await run(operations.drain, server, rate=1000, deadline=1)
        assert server.supervisor.draining
        peers.cancel_scope.cancel()


def _told(capsys: pytest.CaptureFixture[str]) -> str:
    return capsys.readouterr().out


@pytest.mark.req("R17")
async def test_what_is_declined_is_an_error() -> None:
    async with open_server(options=Options(admin_token="secret")) as server:
        with pytest.raises(Declined, match=r"the admin token is missing or wrong \(401\)"):
            await run(operations.statistics, server)
        target = Target(url=f"http://127.0.0.1:{server.port}", admin_token="secret")
        with pytest.raises(Declined, match=r"user 'nobody' has no connections \(404\)"):
            await run(operations.disconnect, server, user="nobody", target=target)
        with pytest.raises(ValueError, match="a change is name=value"):
            await run(operations.limits, server, "per-user", target=target)
        with pytest.raises(Declined, match="per_user must be"):
            await run(operations.limits, server, "per-user=0", target=target)
    with pytest.raises(Declined, match="refused"):
        await run(operations.statistics, server, target=target)


async def test_the_answer_as_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_server() as server:
        await run(operations.statistics, server, target=Target(url=f"http://127.0.0.1:{server.port}", json=True))
    assert json.loads(capsys.readouterr().out)["connections"] == 0


async def test_what_others_have_chosen_is_printed_so_that_a_terminal_obeys_nothing(capsys) -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.upgrade("/ws?user=a%1b]0;owned%07b%0a0%20of%200" + "x" * 200)
        await raw.message()
        await run(operations.connections, server)
        told = _told(capsys)
        assert "a·]0;owned·b·0 of 0" in told
        assert "\x1b" not in told
        assert max(map(len, told.splitlines())) < 300


@pytest.mark.req("R32")
async def test_the_story_of_a_user_with_runs(capsys) -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.say(op="run", agent="demo")
        while (await raw.message()).get("event") != "run_ended":
            pass
        await run(operations.why, server, user="ann")
        told = _told(capsys)
        assert "r1  run_started" in told
        assert "outcome=completed" in told


@pytest.mark.req("R17")
@pytest.mark.parametrize(
    "url",
    ["file:///etc/passwd", "http://", "http://127.0.0.1:abc", "http://127.0.0.1:99999", "http://a b", "127.0.0.1:8765"],
)
def test_what_is_no_address_is_refused_before_anything_is_sent(url: str) -> None:
    with pytest.raises(ValueError, match="--url is http"):
        Target(url=url)


@pytest.mark.parametrize("token", ["", " ", "sec\nret", "пароль"])
def test_what_is_no_token_is_refused_without_saying_it(token: str) -> None:
    with pytest.raises(ValueError, match="a token is one line") as refused:
        Target(admin_token=token)
    assert not token.strip() or token not in str(refused.value)


@contextlib.asynccontextmanager
async def other_server(answer: bytes, seen: list[bytes]) -> AsyncIterator[str]:
    """Something else that listens, and answers everything the same; where it is."""
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")

    async def answer_it(stream: trio.SocketStream) -> None:
        async with stream:
            with contextlib.suppress(trio.BrokenResourceError):
                seen.append(bytes(await stream.receive_some()))
                await stream.send_all(answer)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(trio.serve_listeners, answer_it, [listener])
        yield f"http://127.0.0.1:{listener.socket.getsockname()[1]}"
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    "answer",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\n<p/>",
        b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n[]",
        b"HTTP/1.1 500 Oh\r\nContent-Length: 2\r\n\r\n[]",
        b"",
    ],
)
async def test_what_is_no_supervisor_is_told_in_a_line(answer: bytes) -> None:
    async with other_server(answer, []) as url:
        with pytest.raises(Declined):
            await trio.to_thread.run_sync(Target(url=url).ask, "/api/statistics")


async def test_a_token_goes_nowhere_else(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[bytes] = []
    async with other_server(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n{}", seen) as elsewhere:
        redirect = f"HTTP/1.1 302 Found\r\nLocation: {elsewhere}/\r\nContent-Length: 0\r\n\r\n".encode()
        monkeypatch.setenv("http_proxy", elsewhere)
        async with other_server(redirect, []) as url:
            with pytest.raises(Declined, match="302"):
                await trio.to_thread.run_sync(Target(url=url, admin_token="secret").ask, "/api/statistics")
    assert seen == []
