"""What is sent without waiting: order, bounds, and what happens at them."""

from __future__ import annotations

import pytest
import trio

from supervisor import CloseReason, Frame, Limits, Policies, SlowConsumer
from supervisor._decisions.outbox import Outbox, Put
from supervisor.testing import FaultWire
from tests.helpers import open_house, reason, settle


def queued(outbox: Outbox) -> list[str | bytes]:
    return [frame.message for frame in outbox.frames]


@pytest.mark.req("R52")
@pytest.mark.parametrize(
    ("policy", "kept", "put"),
    [
        (SlowConsumer.CLOSE, ["a", "b"], Put.OVERFLOW),
        (SlowConsumer.DROP_OLDEST, ["b", "c"], Put.QUEUED),
        (SlowConsumer.DROP_NEWEST, ["a", "b"], Put.DROPPED),
    ],
)
def test_the_policies_at_the_bound(policy: SlowConsumer, kept: list[str], put: Put) -> None:
    outbox, limits = Outbox(), Limits(outbox_messages=2)
    assert outbox.put(Frame("a"), limits, policy) is Put.QUEUED
    assert outbox.put(Frame("b"), limits, policy) is Put.QUEUED
    assert outbox.put(Frame("c"), limits, policy) is put
    assert queued(outbox) == kept
    assert outbox.bytes == sum(len(frame) for frame in outbox.frames) == 6


@pytest.mark.req("R52")
def test_bytes_are_bounded_too() -> None:
    outbox, limits = Outbox(), Limits(outbox_bytes=100)
    assert outbox.put(Frame(b"x" * 60), limits, SlowConsumer.CLOSE) is Put.QUEUED
    assert outbox.put(Frame(b"y" * 60), limits, SlowConsumer.CLOSE) is Put.OVERFLOW
    assert outbox.put(Frame(b"y" * 60), limits, SlowConsumer.DROP_OLDEST) is Put.QUEUED
    assert queued(outbox) == [b"y" * 60]
    outbox.clear()
    assert (queued(outbox), outbox.bytes) == ([], 0)
    assert outbox.put(Frame(b"z" * 200), limits, SlowConsumer.CLOSE) is Put.QUEUED  # an empty one takes any one frame


def frame_of(octets: int) -> Frame:
    return Frame(bytes(octets - 2))


@pytest.mark.req("R52")
def test_the_bound_in_bytes_is_exact() -> None:
    outbox, limits = Outbox(), Limits(outbox_bytes=100)
    puts = [outbox.put(frame_of(octets), limits, SlowConsumer.CLOSE) for octets in (60, 40, 2)]
    assert puts == [Put.QUEUED, Put.QUEUED, Put.OVERFLOW]
    assert outbox.bytes == 100


@pytest.mark.req("R52")
def test_what_is_taken_out_makes_room_for_as_much() -> None:
    outbox, limits = Outbox(), Limits(outbox_bytes=100)
    for octets in (20, 30, 50):
        outbox.put(frame_of(octets), limits, SlowConsumer.CLOSE)
    assert (len(outbox.get()), outbox.bytes) == (20, 80)
    assert outbox.put(frame_of(21), limits, SlowConsumer.CLOSE) is Put.OVERFLOW
    assert outbox.put(frame_of(20), limits, SlowConsumer.CLOSE) is Put.QUEUED


@pytest.mark.req("R52")
async def test_what_a_stalled_peer_is_sent_keeps_its_order(autojump_clock) -> None:
    async def sender(conn) -> None:
        await trio.sleep(1)
        await conn.send("sent")
        await trio.sleep_forever()

    async with open_house() as house:
        wire = FaultWire("never-reads")
        conn = await house.enter(wire=wire, handler=sender)
        assert all(conn.send_nowait(str(number)) for number in range(3))
        await trio.sleep(2)
        assert conn.send_nowait("last")
        assert wire.sent == []
        wire.become("healthy")
        await settle()
        assert sorted(wire.sent) == sorted(["0", "1", "2", "last", "sent"])
        assert wire.sent[:3] == ["0", "1", "2"]


@pytest.mark.req("R52")
async def test_a_full_outbox_closes_the_slow_consumer_and_nobody_else(autojump_clock) -> None:
    async with open_house(limits=Limits(outbox_messages=10)) as house:
        slow = await house.enter(wire=FaultWire("never-reads"))
        healthy = FaultWire()
        good = await house.enter(wire=healthy)
        slow.join("room")
        good.join("room")
        delivered = [house.supervisor.room("room").publish(str(number)) for number in range(20)]
        assert reason(slow) is CloseReason.TOO_SLOW
        assert slow.end.code == 4003
        assert delivered == [2] * 10 + [1] * 10
        assert healthy.sent == [str(number) for number in range(20)]


@pytest.mark.req("R52")
async def test_dropping_keeps_the_connection(autojump_clock) -> None:
    policies = Policies(slow_consumer=SlowConsumer.DROP_OLDEST)
    async with open_house(limits=Limits(outbox_messages=2), policies=policies) as house:
        wire = FaultWire("never-reads")
        conn = await house.enter(wire=wire)
        for number in range(10):
            conn.send_nowait(str(number))
            await settle()
        wire.become("healthy")
        await settle()
        assert wire.sent == ["0", "8", "9"]  # the first was being written already
        assert conn.end is None


async def test_what_is_queued_goes_out_before_the_goodbye(autojump_clock) -> None:
    class Listing(FaultWire):
        async def close(self, code: int, text: str) -> None:
            self.sent.append(text)
            await super().close(code, text)

    async with open_house() as house:
        wire = Listing("never-reads")
        conn = await house.enter(wire=wire)
        for number in range(3):
            conn.send_nowait(str(number))
        await settle()
        conn.close()
        await trio.sleep(0.1)
        wire.become("healthy")
        await conn.wait_gone()
        assert wire.sent == ["0", "1", "2", "closed by the handler"]


async def test_a_writer_is_there_only_while_something_is_queued(autojump_clock) -> None:
    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(wire=wire)
        conn.send_nowait("at once")
        assert len(conn.nursery.child_tasks) == 0
        wire.become("never-reads")
        conn.send_nowait("queued")
        assert len(conn.nursery.child_tasks) == 1
        wire.become("healthy")
        await settle()
        assert len(conn.nursery.child_tasks) == 0


async def test_backpressure_is_for_the_handler_that_sends(autojump_clock) -> None:
    progress: list[str] = []

    async def sender(conn) -> None:
        for name in "ab":
            await conn.send(name)
            progress.append(name)

    async with open_house() as house:
        wire = FaultWire("never-reads")
        await house.enter(wire=wire, handler=sender)
        await trio.sleep(5)
        assert progress == []
        wire.become("healthy")
        await settle()
        assert progress == ["a", "b"]


@pytest.mark.parametrize("message", ["text", b"bytes", bytearray(b"array"), memoryview(b"view")])
async def test_what_a_message_may_be(autojump_clock, message) -> None:
    async with open_house() as house:
        wire = FaultWire()
        conn = await house.enter(wire=wire)
        assert conn.send_nowait(message)
        assert wire.sent == [message if isinstance(message, str) else bytes(message)]
        with pytest.raises(TypeError, match="a message is str or bytes, not dict"):
            conn.send_nowait({"not": "a message"})
        assert conn.end is None


async def test_a_dropped_message_is_not_counted_as_delivered(autojump_clock) -> None:
    policies = Policies(slow_consumer=SlowConsumer.DROP_NEWEST)
    async with open_house(limits=Limits(outbox_messages=1), policies=policies) as house:
        conn = await house.enter(wire=FaultWire("never-reads"))
        assert [conn.send_nowait(str(number)) for number in range(3)] == [True, False, False]


async def test_nothing_follows_the_goodbye_of_a_slow_consumer(autojump_clock) -> None:
    async with open_house(limits=Limits(outbox_messages=5)) as house:
        wire = FaultWire("never-reads")
        conn = await house.enter(wire=wire)
        for number in range(10):
            conn.send_nowait(str(number))
            await settle()
        assert reason(conn) is CloseReason.TOO_SLOW
        wire.become("healthy")
        await conn.wait_gone()
        assert wire.farewell == (4003, "too slow: the outbox is full")
        assert wire.sent in ([], ["0"])  # it was being written, and is finished or not


async def test_what_a_slow_consumer_has_not_taken_is_not_sent_while_it_is_told_goodbye(autojump_clock) -> None:
    class Polite(FaultWire):
        async def close(self, code: int, text: str) -> None:
            await trio.sleep(0.45)
            await super().close(code, text)

    async with open_house(limits=Limits(outbox_messages=5)) as house:
        wire = Polite("slow")
        conn = await house.enter(wire=wire)
        for number in range(10):
            conn.send_nowait(str(number))
            await settle()
        await conn.wait_gone()
        assert (wire.sent, wire.farewell[0]) == (["0"], 4003)


async def test_a_message_that_finds_the_peer_gone_has_not_been_sent(autojump_clock) -> None:
    class Reset(FaultWire):
        def offer(self, frame: Frame) -> bool:
            self.hang_up(CloseReason.PEER_LOST)
            return False

    async with open_house() as house:
        conn = await house.enter(wire=Reset())
        assert conn.send_nowait("x") is False
        assert reason(conn) is CloseReason.PEER_LOST


async def test_a_frame_larger_than_the_outbox_is_no_fault_of_the_peer(autojump_clock) -> None:
    class NeverAtOnce(FaultWire):
        def offer(self, frame: Frame) -> bool:
            return False

    async with open_house(limits=Limits(outbox_bytes=100)) as house:
        wire = NeverAtOnce()
        conn = await house.enter(wire=wire)
        assert conn.send_nowait(bytes(1000))
        await settle()
        assert (wire.sent, conn.end) == ([bytes(1000)], None)
