"""The real engines, over our own stream, cut at every octet of a conversation, in either direction."""

from __future__ import annotations

import pytest
import trio

from supervisor import CloseReason, Connection, Frame, Identity, Limits, Wire, open_supervisor
from supervisor._engines.sans_io import SansIo
from supervisor._engines.trio_websocket import TrioWebSocket
from supervisor._words.upgrade import Upgrade
from supervisor.testing.model import left_behind
from supervisor.testing.pipe import Cut, FaultPipe
from supervisor.testing.schedule import run
from tests.serving import KEY, frame

TEXT, BINARY, CONTINUED, CLOSE, PING, PONG = 0x1, 0x2, 0x0, 0x8, 0x9, 0xA
CONVERSATION = b"".join(
    [
        frame(TEXT, b"one"),
        frame(PING, b"are you there?"),
        frame(TEXT, b"zw", fin=False),
        frame(PONG),
        frame(CONTINUED, "ölf".encode()),
        frame(BINARY, bytes(130)),
        frame(TEXT, b""),
        frame(CLOSE, b"\x03\xe8bye"),
    ]
)
LIMITS = Limits(max_message_size=1000)
ECHOES = [Frame(message).octets for message in ("one", "zwölf", bytes(130))]


async def echo(conn: Connection) -> None:
    async for message in conn:
        await conn.send(message)


async def deaf(conn: Connection) -> None:
    await trio.sleep(1)
    conn.send_nowait("x" * 100)
    await trio.sleep_forever()


def trio_websocket(pipe: FaultPipe) -> Wire:
    return TrioWebSocket(pipe, "memory", Upgrade(KEY), LIMITS, 10.0)


def sans_io(pipe: FaultPipe) -> Wire:
    return SansIo(pipe, "memory", Upgrade(KEY), LIMITS, 10.0, None)


@pytest.fixture(params=[trio_websocket, sans_io], ids=["trio-websocket", "websockets"], autouse=True)
def engine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("properties.test_bytes.make_wire", request.param)


make_wire = trio_websocket


async def live(pipe: FaultPipe, handler) -> tuple[CloseReason, float]:
    """One connection's whole life over `pipe`; why it ended, and how long it took to leave."""
    async with open_supervisor() as supervisor:
        conn = await supervisor.start(make_wire(pipe), Identity(user="ann"), handler)
        await conn.wait_gone()
        await trio.testing.wait_all_tasks_blocked()
        assert pipe.closed
        assert list(left_behind(supervisor)) == []
        failures = supervisor.statistics().failures
        assert failures == {}, failures
        assert conn.closed.stuck_at is None
    return conn.end.reason, conn.closed.cleanup


def play(pipe: FaultPipe, handler=echo) -> tuple[CloseReason, float]:
    return run(0, live, pipe, handler, instruments=[])


def test_the_whole_conversation() -> None:
    pipe = FaultPipe(CONVERSATION)
    assert play(pipe) == (CloseReason.PEER_CLOSED, 0.0)
    assert pipe.outgoing.count(b"zw\xc3\xb6lf") == 1
    assert pipe.outgoing.endswith(b"\x88\x02\x03\xe8")


@pytest.mark.req("R10", "R11", "A36")
@pytest.mark.parametrize("handler", [echo, deaf])
@pytest.mark.parametrize("cut", Cut)
def test_cut_at_every_octet_that_comes(cut: Cut, handler) -> None:
    for octet in range(len(CONVERSATION)):
        reason, cleanup = play(FaultPipe(CONVERSATION[:octet], cut), handler)
        allowed = {CloseReason.PEER_LOST} if cut is not Cut.SILENCE else {CloseReason.UNRESPONSIVE, CloseReason.IDLE}
        assert reason in allowed, (octet, reason)
        assert cleanup <= 0.5


@pytest.mark.req("R10", "R11", "A36")
@pytest.mark.parametrize("cut", Cut)
def test_cut_at_every_octet_that_goes(cut: Cut) -> None:
    whole = FaultPipe(CONVERSATION)
    play(whole)
    for octet in range(len(whole.outgoing)):
        pipe = FaultPipe(CONVERSATION, room=octet, full=cut)
        reason, cleanup = play(pipe)
        assert reason in (CloseReason.PEER_LOST, CloseReason.TOO_SLOW, CloseReason.PEER_CLOSED), (octet, reason)
        assert cleanup <= 0.5 + 1e-6, (octet, reason, cleanup)
        assert whole.outgoing.startswith(pipe.outgoing)  # no octet out of its turn


@pytest.mark.req("R10")
@pytest.mark.parametrize("dribble", [1, 2, 3, 7])
def test_octets_may_come_in_pieces_of_any_size(dribble: int) -> None:
    pipe, whole = FaultPipe(CONVERSATION, dribble=dribble), FaultPipe(CONVERSATION)
    assert play(pipe) == play(whole)
    assert pipe.outgoing.endswith(b"\x88\x02\x03\xe8")
    echoed = [octets for octets in ECHOES if octets in pipe.outgoing]
    assert echoed == ECHOES[: len(echoed)]  # whoever has said goodbye is told nothing more


@pytest.mark.req("R10", "R11", "A40")
def test_a_send_cancelled_at_every_octet_is_the_last() -> None:
    """Whatever has been written is the beginning of the one frame; nothing follows it."""

    async def impatient(conn: Connection) -> None:
        with trio.move_on_after(0.1):
            await conn.send("y" * 50)
        await conn.send("never")

    beginning = FaultPipe(then=Cut.SILENCE)
    play(beginning, lambda conn: conn.send("y" * 50))
    frame_at = beginning.outgoing.index(b"\x81\x32")
    for octet in range(frame_at, frame_at + 52):
        pipe = FaultPipe(room=octet)
        reason, cleanup = play(pipe, impatient)
        assert (reason, cleanup) == (CloseReason.SEND_CANCELLED, 0.0)
        assert pipe.outgoing == beginning.outgoing[:octet]
