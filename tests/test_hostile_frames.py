"""Attacks made of frames: on real sockets, beside a neighbour who must not notice."""

from __future__ import annotations

import contextlib

import pytest
import trio
import trio.lowlevel
import trio_websocket

from supervisor import Connection, Limits, Timeouts, hub
from tests.serving import connect, frame, tasks, upgrade_head
from tests.siege import besieged, closed, resident


@pytest.mark.req("A20", "R11")
@pytest.mark.parametrize("payload", [1001, 500_000])
async def test_oversize_and_then_silence(payload: int) -> None:
    async with besieged(limits=Limits(max_message_size=1000)) as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frame(2, bytes(payload)))
        started = trio.current_time()
        opcode, close = await raw.frame()
        assert (opcode, close[:2]) == (8, (1009).to_bytes(2, "big"))
        await raw.ended()  # though the close frame is never answered
        assert trio.current_time() - started <= 0.6


@pytest.mark.req("A22")
@pytest.mark.parametrize("payload", [b"", b"x"])
async def test_fragments_without_end(payload: bytes) -> None:
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


@pytest.mark.req("A19", "A24", "A35")
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
        assert (await raw.closed_with())[0] == code


async def test_a_close_without_a_code_is_answered_without_one() -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frame(8))
        assert await raw.frame() == (8, b"")


@pytest.mark.req("A19")
async def test_a_close_frame_of_many_megabytes_is_refused_and_not_kept() -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        before = resident()
        await raw.send(b"\x88\xff" + (100_000_000).to_bytes(8, "big") + bytes(4))
        with contextlib.suppress(trio.BrokenResourceError), trio.move_on_after(1):
            for _ in range(100):
                await raw.send(bytes(1_000_000))
        assert resident() - before < 4_000_000


@pytest.mark.req("A19")
@pytest.mark.parametrize(
    ("head", "codes"),
    [
        (b"\x82\xff" + (2**63).to_bytes(8, "big") + bytes(4), {1002, 1009}),
        (b"\x82\xff" + (2**63 - 1).to_bytes(8, "big") + bytes(4), {1009}),
        (b"\x82\xfe\x00\x05" + bytes(4) + b"12345", {1000, 1002}),  # a length that could have been shorter
        (b"\x82\xff" + (5).to_bytes(8, "big") + bytes(4) + b"12345", {1000, 1002}),
        (b"\x89\xfe\x00\x7e" + bytes(4) + bytes(126), {1002}),
        (b"\xf1\x80" + bytes(4), {1002}),
        (b"\x01\x80" + bytes(4) + b"\x81\x80" + bytes(4), {1002}),  # a message inside another
    ],
)
async def test_headers_that_are_wrong_or_absurd(head: bytes, codes: set[int]) -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        started = trio.current_time()
        await raw.send(head + frame(8, (1000).to_bytes(2, "big")))
        code, _ = await raw.closed_with()
        assert code in codes
        assert trio.current_time() - started <= 0.5 + 0.1


@pytest.mark.req("A20")
@pytest.mark.parametrize("opcode", [1, 2])
async def test_one_byte_too_much_and_two_of_them_in_one_packet(opcode: int) -> None:
    async with besieged(limits=Limits(max_message_size=1000)) as server:
        async with connect(server) as raw:
            await raw.upgrade()
            await raw.send(frame(opcode, b"x" * 1000))
            assert await raw.frame() == (opcode, b"x" * 1000)
            await raw.send(frame(opcode, b"x" * 1001) * 2)
            assert await raw.closed_with() == (1009, "message exceeds 1000 bytes")
        async with connect(server) as raw:
            await raw.upgrade()
            await raw.send(frame(opcode, b"x" * 600, fin=False) + frame(0, b"x" * 401))
            assert (await raw.closed_with())[0] == 1009


@pytest.mark.req("A21")
async def test_a_text_is_as_long_as_its_bytes() -> None:
    async with besieged(limits=Limits(max_message_size=1000)) as server:
        for length, end in ((250, None), (251, 1009)):
            async with connect(server) as raw:
                await raw.upgrade()
                await raw.send(frame(1, "\N{GRINNING FACE}".encode() * length))
                if end is None:
                    assert (await raw.frame())[0] == 1
                else:
                    assert (await raw.closed_with())[0] == end


@pytest.mark.req("A22")
async def test_fragments_are_counted_anew_for_each_message() -> None:
    message = frame(1, b"a", fin=False) + frame(0, b"b", fin=False) * 3998 + frame(0, b"c")
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        for _ in range(3):
            await raw.send(message)
            opcode, payload = await raw.frame()
            assert (opcode, len(payload)) == (1, 4000)
        await raw.send(frame(1, b"a", fin=False) + frame(0, b"b", fin=False) * 4096)
        assert (await raw.closed_with())[0] == 1008


@pytest.mark.req("A23")
async def test_half_a_message_and_then_silence() -> None:
    async with besieged(limits=Limits(idle_ttl=0.5)) as server, connect(server) as raw:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raw.upgrade)
        started = trio.current_time()
        await raw.send(frame(1, b"half", fin=False) + frame(0, b"a message")[:9])
        assert await raw.closed_with() == (4001, "idle")
        assert trio.current_time() - started <= 1.1


@pytest.mark.req("A24")
@pytest.mark.parametrize(
    "frames",
    [
        frame(1, b"\xc3\x28"),
        frame(1, b"\xed\xa0\x80"),
        frame(1, b"\xf4\x90\x80\x80"),
        frame(1, b"\xc0\xaf"),
        frame(1, b"\xce", fin=False) + frame(0, b"\xce"),
        frame(1, b"ok", fin=False) + frame(9) + frame(0, b"\xff"),
        frame(1, b"ends early \xf0\x9f\x98"),
        frame(8, b"\x03\xe8\xff"),
    ],
)
async def test_what_is_not_utf_8(frames: bytes) -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frames)
        assert (await raw.closed_with())[0] == 1007


@pytest.mark.req("A24")
async def test_a_character_may_be_split_over_fragments() -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frame(1, b"\xf0\x9f", fin=False) + frame(0, b"\x98", fin=False) + frame(0, b"\x80"))
        assert await raw.frame() == (1, b"\xf0\x9f\x98\x80")


@pytest.mark.req("A25")
@pytest.mark.parametrize("offer", ["permessage-deflate", "permessage-deflate; server_no_context_takeover", "x-webkit"])
async def test_compression_is_not_negotiated(offer: str) -> None:
    async with besieged() as server, connect(server) as raw:
        await raw.send(upgrade_head(Sec_WebSocket_Extensions=offer))
        status, headers, _ = await raw.response()
        assert (status, headers.get("sec-websocket-extensions")) == (101, None)
        await raw.send(frame(1, b"x", rsv=0x40))
        assert (await raw.closed_with())[0] == 1002


@pytest.mark.req("A26")
async def test_pings_of_somebody_who_never_reads_the_answers() -> None:
    """The answers fill its window, and then we do not read it any more; what it sends stays with it."""
    timeouts, limits = Timeouts(write_progress=0.4), Limits(control_rate=None)
    async with besieged(limits=limits, timeouts=timeouts) as server, connect(server, receive_buffer=4096) as raw:
        await raw.upgrade()
        before = resident()
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await raw.send(frame(9, bytes(125)) * 100)
        assert resident() - before < 4_000_000
        assert await closed(server) == {"too_slow": 1}


@pytest.mark.req("A26", "A27", "A28")
@pytest.mark.parametrize("opcode", [1, 9, 10])
async def test_floods_end_and_leave_nothing(opcode: int) -> None:
    limits = Limits(message_rate="1000/10s")
    async with besieged(limits=limits) as server, connect(server) as raw:
        await raw.upgrade()
        before, running = resident(), tasks()
        with contextlib.suppress(trio.BrokenResourceError):  # it may be too busy to hear what it is told
            for _ in range(100):
                await raw.send(frame(opcode, b"x") * 1000)
                assert tasks() <= running + 3
        assert await closed(server) == {"too_many_messages": 1}
        assert resident() - before < 4_000_000


@pytest.mark.req("A27")
async def test_a_hundred_thousand_pongs_where_they_are_allowed() -> None:
    async with besieged(limits=Limits(control_rate=None)) as server, connect(server) as raw:
        await raw.upgrade()
        before, running = resident(), tasks()
        for _ in range(100):
            await raw.send(frame(10, b"unsolicited") * 1000)
            assert tasks() <= running + 3
        await raw.send(frame(1, b"and now"))
        assert await raw.frame() == (1, b"and now")
        assert resident() - before < 4_000_000


NESTED = "[" * 100_000 + "]" * 100_000
HOSTILE_JSON = [
    NESTED,
    '{"a":' * 20_000 + "1" + "}" * 20_000,
    '{"op":"ping","ref":' + "9" * 1_000_000 + "}",
    '{"op":"publish","room":"r","data":1e999}',
    '{"op":"publish","room":"r","data":NaN}',
    '{"op":"publish","room":"r","data":-Infinity}',
    '{"op":"join","room":"\\ud800"}',
    '{"op":"join","room":"' + "x" * 100_000 + '"}',
    '{"op":"join","op":"leave","room":"r"}',
    '{"op":["join"]}',
    '{"op":{"__proto__":1}}',
    '{"op":"join","room":{"toString":"x"}}',
    '{"op":"join","room":null}',
    '{"op":"join","room":""}',
    '{"__proto__":{"op":"join"}}',
    '{"op":"join"',
    "",
    "\x00",
    "\N{BYTE ORDER MARK}{}",
    "nul",
    "[]",
    '"op"',
    "1",
    '{"op":"join",}',
    "{'op':'join'}",
    '{"op":"join" "room":"r"}',
    '{"op":"\\x"}',
    '{"op":"join","room":"r"}{"op":"ping"}',
]


@pytest.mark.req("A29")
async def test_json_that_is_none_or_too_much_gets_an_error() -> None:
    async with besieged(hub) as server, connect(server) as raw:
        await raw.upgrade()
        await raw.message()
        for text in HOSTILE_JSON:
            await raw.send(frame(1, text.encode("utf-8", "surrogatepass")))
            answer = await raw.message()
            good = text in ('{"op":"join","room":"\\ud800"}', '{"op":"join","op":"leave","room":"r"}')
            assert answer["type"] == "error" or good, (text[:80], answer)
        await raw.say(op="ping", ref=1)
        assert (await raw.message())["type"] == "reply"


class Odd(BaseException):
    """Not an Exception, and nobody's business."""


@pytest.mark.req("A30")
@pytest.mark.parametrize(
    "raised",
    [
        ValueError("handler"),
        ExceptionGroup("handlers", [KeyError("a"), ExceptionGroup("more", [OSError(5)])]),
        BaseExceptionGroup("odd", [Odd()]),
        Odd("odd"),
        StopAsyncIteration(),
        GeneratorExit(),
        RecursionError("deep"),
        MemoryError(),
        trio.Cancelled._create(source="unknown"),
        BaseExceptionGroup("stray", [trio.Cancelled._create(source="unknown")]),
        trio.TooSlowError(),
        trio.BrokenResourceError(),
        trio_websocket.ConnectionClosed(None),
    ],
    ids=repr,
)
async def test_whatever_a_handler_raises_ends_its_own_connection(raised: BaseException) -> None:
    async def handler(conn: Connection) -> None:
        await conn.receive()
        raise raised

    async with besieged(handler, errors=("failed what=handler",)) as server, connect(server) as raw:
        await raw.upgrade()
        await raw.send(frame(1, b"now"))
        assert (await raw.closed_with())[0] == 1011
        assert server.supervisor.statistics().failures == {"handler": 1}
        raised.__traceback__ = None
