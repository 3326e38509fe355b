"""Asking and telling a running server from the command line."""

from __future__ import annotations

import json
import re
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
        await run(operations.disconnect, server, all=True)
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
    with pytest.raises(ValueError, match="--url is http"):
        Target(url="file:///etc/passwd")


async def test_the_answer_as_it_came(capsys: pytest.CaptureFixture[str]) -> None:
    async with open_server() as server:
        await run(operations.statistics, server, target=Target(url=f"http://127.0.0.1:{server.port}", json=True))
    assert json.loads(capsys.readouterr().out)["connections"] == 0
