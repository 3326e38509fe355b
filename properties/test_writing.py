"""Whatever writes, and however the peer reads: whole frames, in order, none lost but by the policy."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import Callable
from functools import partial
from itertools import chain, repeat

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor import (
    CloseReason,
    Connection,
    ConnectionClosed,
    Identity,
    Limits,
    Policies,
    SlowConsumer,
    Supervisor,
    open_supervisor,
)
from supervisor._engines.ear import Ear, open_ear
from supervisor._engines.sans_io import SansIo
from supervisor._engines.trio_websocket import TrioWebSocket
from supervisor._words.upgrade import Upgrade
from supervisor._words.wire import Wire
from supervisor.testing.model import left_behind

KEY = "AAAAAAAAAAAAAAAAAAAAAA=="
GOODBYE = b"closed by the handler"
LIMITS = Limits(outbox_messages=3, outbox_bytes=60_000)
SIZES = st.sampled_from([10, 200, 5_000, 40_000])
#: What one hand does: send and wait, send without waiting, ask for a sign of life, let the others run.
DEEDS = st.one_of(
    st.tuples(st.sampled_from(["send", "send_nowait"]), SIZES),
    st.tuples(st.just("send_nowait"), SIZES),
    st.tuples(st.sampled_from(["ping", "rest"]), st.integers(1, 4)),
)
#: How many octets the peer reads, and how many turns it lets pass before.
READINGS = st.tuples(st.sampled_from([1, 100, 3_000, 20_000]), st.integers(0, 5))


@attrs.define
class Conversation:
    """What was accepted for sending, and what has arrived."""

    supervisor: Supervisor
    conn: Connection
    accepted: list[bytes] = attrs.field(factory=list)
    refused: int = 0
    pings: int = 0

    async def do(self, deed: str, amount: int) -> None:
        message = len(self.accepted).to_bytes(4, "big") + bytes(amount)
        match deed:
            case "send":
                try:
                    await self.conn.send(message)
                    self.accepted.append(message)
                except ConnectionClosed:
                    self.refused += 1
            case "send_nowait":
                taken = self.conn.send_nowait(message)
                self.accepted.extend([message] * taken)
                self.refused += not taken
            case "ping":
                self.conn.wire.ping()
                self.pings += 1
            case "rest":
                for _ in range(amount):
                    await trio.lowlevel.checkpoint()
        self.look()

    def look(self) -> None:
        outbox = self.conn.outbox
        if outbox is not None and len(outbox.frames) > 1:
            assert len(outbox.frames) <= LIMITS.outbox_messages
            assert outbox.bytes <= LIMITS.outbox_bytes
        assert self.supervisor.audit() == ()


def frames(octets: bytes) -> tuple[list[tuple[int, bytes]], bytes]:
    """The whole frames that `octets` consists of, and what is left."""
    found = []
    while len(octets) >= 2:
        size, at = octets[1], 2
        if size > 125:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(octets[2 : 2 + width], "big"), 2 + width
        if len(octets) < at + size or len(octets) < at:
            break
        assert octets[0] in (0x82, 0x88, 0x89), octets[:2]
        found.append((octets[0] & 0x0F, octets[at : at + size]))
        octets = octets[at + size :]
    return found, octets


async def read(stream: trio.SocketStream, plan: list[tuple[int, int]], heard: bytearray) -> None:
    """As the plan says, and everything after that, to the close frame."""
    async with stream:
        with contextlib.suppress(trio.BrokenResourceError):
            for octets, turns in chain(plan, repeat((65_536, 0))):
                for _ in range(turns):
                    await trio.lowlevel.checkpoint()
                data = await stream.receive_some(octets)
                heard += data
                if not data or heard.endswith(GOODBYE):
                    return


async def connected() -> tuple[trio.SocketStream, trio.SocketStream]:
    """Both ends of a TCP connection whose buffers are small."""
    with trio.socket.socket() as listener, trio.socket.socket() as theirs:
        await listener.bind(("127.0.0.1", 0))
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4608)
        theirs.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4608)
        listener.listen(1)
        await theirs.connect(listener.getsockname())
        ours, _ = await listener.accept()
        return trio.SocketStream(ours), trio.SocketStream(
            trio.socket.fromfd(theirs.fileno(), theirs.family, theirs.type)
        )


async def converse(
    make_wire: Callable[[trio.SocketStream, Ear | None], Wire],
    policy: SlowConsumer,
    deeds: list[tuple[str, int]],
    readings: list[tuple[int, int]],
) -> tuple[Conversation, bytes]:
    """One connection's life over a real socket with a small buffer; what was sent, and every octet that arrived."""
    ours, theirs = await connected()
    heard, inside = bytearray(), trio.Event()

    async def handler(conn: Connection) -> None:
        inside.set()
        await trio.sleep_forever()

    async with (
        open_ear() as ear,
        open_supervisor(limits=LIMITS, policies=Policies(slow_consumer=policy)) as supervisor,
        trio.open_nursery() as nursery,
    ):
        wire = make_wire(ours, ear)
        conversation = Conversation(supervisor, await supervisor.start(wire, Identity(user="ann"), handler))
        nursery.start_soon(read, theirs, readings, heard)
        await inside.wait()
        for deed, amount in deeds:
            await conversation.do(deed, amount)
        await conversation.conn.drained()
        conversation.conn.close()
        await conversation.conn.wait_gone()
        while supervisor.statistics().users:
            await trio.lowlevel.checkpoint()
        assert list(left_behind(supervisor)) == []
    return conversation, bytes(heard).partition(b"\r\n\r\n")[2]


async def send_into_the_goodbye(
    make_wire: Callable[[trio.SocketStream, Ear | None], Wire], readings: list[tuple[int, int]]
) -> bytes:
    """Somebody else than the handler sends while the outbox is full, and the connection is closed; what arrives."""
    ours, theirs = await connected()
    heard, inside = bytearray(), trio.Event()

    async def handler(conn: Connection) -> None:
        inside.set()
        await trio.sleep_forever()

    async def send(conn: Connection) -> None:
        with contextlib.suppress(ConnectionClosed):
            await conn.send(b"last")

    async with (
        open_ear() as ear,
        open_supervisor(policies=Policies(slow_consumer=SlowConsumer.DROP_NEWEST)) as supervisor,
        trio.open_nursery() as nursery,
    ):
        conn = await supervisor.start(make_wire(ours, ear), Identity(user="ann"), handler)
        await inside.wait()
        for _ in range(3):
            conn.send_nowait(bytes(40_000))
        for _ in range(3):
            nursery.start_soon(send, conn)
        await trio.lowlevel.checkpoint()
        conn.close()
        nursery.start_soon(read, theirs, readings, heard)
        await conn.wait_gone()
    return bytes(heard).partition(b"\r\n\r\n")[2]


def with_trio_websocket(stream: trio.SocketStream, ear: Ear | None) -> Wire:
    return TrioWebSocket(stream, "memory", Upgrade(KEY), LIMITS, 10.0)


def with_websockets(stream: trio.SocketStream, ear: Ear | None) -> Wire:
    return SansIo(stream, "memory", Upgrade(KEY), LIMITS, 10.0, ear)


def is_part_of(some: list[bytes], others: list[bytes]) -> bool:
    """Whether all of `some` are among `others`, in this order."""
    left = iter(others)
    return all(it in left for it in some)


@pytest.mark.req("R52")
@pytest.mark.parametrize("policy", SlowConsumer)
@pytest.mark.parametrize("make_wire", [with_trio_websocket, with_websockets])
def test_whole_frames_in_order_and_none_lost_but_by_the_policy(make_wire, policy: SlowConsumer) -> None:
    @settings(max_examples=100, deadline=None)
    @given(deeds=st.lists(DEEDS, max_size=25), readings=st.lists(READINGS, max_size=25))
    def holds(deeds: list[tuple[str, int]], readings: list[tuple[int, int]]) -> None:
        sent, octets = trio.run(partial(converse, make_wire, policy, deeds, readings))
        found, rest = frames(octets)
        arrived = [payload for opcode, payload in found if opcode == 2]
        reason = sent.conn.end.reason
        assert sum(opcode == 9 for opcode, _ in found) <= sent.pings
        assert is_part_of(arrived, sent.accepted)
        if reason is CloseReason.TOO_SLOW:
            assert policy is SlowConsumer.CLOSE
            assert sent.refused
            assert arrived == sent.accepted[: len(arrived)]
            return
        assert reason is CloseReason.CLOSED
        assert (rest, found[-1][0]) == (b"", 8)
        if policy is SlowConsumer.DROP_OLDEST:
            assert not sent.refused
        else:
            assert arrived == sent.accepted

    holds()


@pytest.mark.req("R52")
@pytest.mark.parametrize("make_wire", [with_trio_websocket, with_websockets])
def test_nothing_follows_the_goodbye(make_wire) -> None:
    for _ in range(20):
        found, rest = frames(trio.run(send_into_the_goodbye, make_wire, []))
        assert (rest, [opcode for opcode, _ in found][-1:]) == (b"", [8])
