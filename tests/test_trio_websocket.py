"""What only the default engine can do wrong."""

from __future__ import annotations

import contextlib
import socket

import pytest
import trio
import trio.lowlevel

from supervisor import Limits
from tests.serving import connect, frame
from tests.siege import besieged


@pytest.fixture(autouse=True)
def default_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WS_SUPERVISOR_ENGINE", "trio-websocket")


@pytest.mark.req("R19")
async def test_an_exception_in_the_engines_reader_ends_one_connection(monkeypatch) -> None:
    async def broken(self, event) -> None:
        raise RuntimeError("reader raises")

    monkeypatch.setattr("trio_websocket.WebSocketConnection._handle_ping_event", broken)
    async with besieged(errors=("failed what=reader",)) as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frame(9))
        assert (await raw.closed_with())[0] == 1002
        assert server.supervisor.statistics().failures == {"reader": 1}


@pytest.mark.req("A22")
async def test_a_message_in_tiny_pieces_is_bounded() -> None:
    """It keeps each piece that it is given, so a piece counts like a fragment."""
    async with besieged(limits=Limits(max_fragments=100)) as server, connect(server) as raw:
        await raw.upgrade()
        raw.stream.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with contextlib.suppress(trio.BrokenResourceError):
            for byte in frame(2, bytes(2000)):
                await raw.send(bytes((byte,)))
                await trio.lowlevel.checkpoint()
        opcode, close = await raw.frame()
        assert (opcode, close[:2]) == (8, (1008).to_bytes(2, "big"))
