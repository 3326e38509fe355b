"""The wires that fail, themselves put to the test."""

from __future__ import annotations

import pytest
import trio

from supervisor import CloseReason, Frame, WireClosed
from supervisor.testing import Fault, FaultWire, Mishap, Peer
from supervisor.testing.pipe import Cut, FaultPipe

FRAME = Frame("x")


async def opened(wire: FaultWire, nursery: trio.Nursery) -> list[CloseReason]:
    ends: list[CloseReason] = []
    await wire.open(nursery, lambda reason, *_: ends.append(reason))
    return ends


SENDS = {
    Peer.HEALTHY: 0,
    Peer.SLOW: 0.2,
    Peer.DRIBBLES: 0.5,
    Peer.MUTE: 0,
    Peer.NEVER_READS: CloseReason.TOO_SLOW,
    Peer.HALF_OPEN: CloseReason.PEER_CLOSED,
    Peer.RESETS: CloseReason.PEER_LOST,
}


@pytest.mark.req("R23")
@pytest.mark.parametrize("kind", SENDS)
async def test_a_peer_takes_what_its_kind_takes(autojump_clock, nursery, kind: Peer) -> None:
    wire, expected = FaultWire(kind), SENDS[kind]
    ends = await opened(wire, nursery)
    before = trio.current_time()
    if isinstance(expected, CloseReason):
        with pytest.raises(WireClosed):
            await wire.write(FRAME)
        assert ends[0] is expected
    else:
        await wire.write(FRAME)
        assert trio.current_time() - before == pytest.approx(expected)
        assert (wire.sent, ends) == (["x"], [])
    assert wire.stalled_since is None


@pytest.mark.req("R23")
async def test_who_has_vanished_still_has_room_for_a_little(autojump_clock, nursery) -> None:
    wire = FaultWire("vanishes", write_progress=5)
    ends = await opened(wire, nursery)
    for _ in range(8):
        await wire.write(FRAME)
    before = trio.current_time()
    with pytest.raises(WireClosed):
        await wire.write(FRAME)
    assert (trio.current_time() - before, ends) == (pytest.approx(5), [CloseReason.TOO_SLOW])


@pytest.mark.req("R23")
@pytest.mark.parametrize("call", ["open", "receive", "send", "close"])
async def test_any_call_can_raise_hang_or_shield_itself(autojump_clock, nursery, call: str) -> None:
    async def make(wire: FaultWire) -> None:
        if call != "open":
            await opened(wire, nursery)
        wire.deliver("message")
        await {
            "open": lambda: opened(wire, nursery),
            "receive": wire.receive,
            "send": lambda: wire.write(FRAME),
            "close": lambda: wire.close(1000, ""),
        }[call]()

    with pytest.raises(OSError, match=f"{call} raises"):
        await make(FaultWire(faults=[Fault(call, "raise")]))
    for mishap, bound in ((Mishap.HANG, 1), (Mishap.SHIELD, 3)):
        before = trio.current_time()
        with trio.move_on_after(1) as scope:
            await make(FaultWire(faults=[Fault(call, mishap)]))
        assert scope.cancelled_caught
        assert trio.current_time() - before == pytest.approx(bound)


@pytest.mark.req("R23")
async def test_a_fault_strikes_once_or_every_so_often(autojump_clock, nursery) -> None:
    once, often = (
        FaultWire(faults=[Fault("send", "raise", 3)]),
        FaultWire(faults=[Fault("send", "raise", 3, every=True)]),
    )
    struck: dict[FaultWire, list[int]] = {once: [], often: []}
    for wire, numbers in struck.items():
        await opened(wire, nursery)
        for number in range(1, 8):
            try:
                await wire.write(FRAME)
            except OSError:
                numbers.append(number)
    assert list(struck.values()) == [[3], [3, 6]]


def test_what_never_waits_can_only_raise() -> None:
    with pytest.raises(ValueError, match="ping never waits"):
        Fault("ping", "hang")
    with pytest.raises(ValueError, match="call"):
        Fault("think", "raise")


@pytest.mark.req("R23")
async def test_what_a_supervisor_may_not_do_is_written_down(autojump_clock, nursery) -> None:
    wire = FaultWire()
    await opened(wire, nursery)
    await wire.close(1000, "")
    await wire.close(1000, "")
    assert wire.breaches == ["close was called again"]


async def test_who_recovers_answers(autojump_clock, nursery) -> None:
    wire = FaultWire("mute")
    await opened(wire, nursery)
    await trio.sleep(5)
    wire.ping()
    assert (wire.silent_since, len(wire.unanswered)) == (0, 1)
    await trio.sleep(1)
    wire.become("healthy")
    assert (wire.silent_since, wire.unanswered) == (6, [])


@pytest.mark.req("R23")
@pytest.mark.parametrize("cut", Cut)
async def test_a_pipe_is_cut_where_it_is_told_to_be(autojump_clock, cut: Cut) -> None:
    pipe = FaultPipe(b"abcd", cut, room=3, full=cut, dribble=3)
    assert await pipe.receive_some() == b"abc"
    assert await pipe.receive_some(10) == b"d"
    with trio.move_on_after(1) as scope:
        if cut is Cut.END:
            assert await pipe.receive_some() == b""
        else:
            with pytest.raises(trio.BrokenResourceError):
                await pipe.receive_some()
    assert scope.cancelled_caught is (cut is Cut.SILENCE)
    with trio.move_on_after(1) as scope, pytest.raises(trio.BrokenResourceError):
        await pipe.send_all(b"1234")
    assert pipe.outgoing == b"123"
    pipe.close()
    with pytest.raises(trio.ClosedResourceError):
        await pipe.receive_some()
