"""Compression: only where it was asked for on both sides, and bounded on what comes out of it."""

from __future__ import annotations

import tracemalloc
import zlib
from random import Random

import pytest
import trio
import trio.testing
from websockets.sync.client import connect as peer_connect

from supervisor import Connection, Frame, Limits, Options, echo, hub
from supervisor._engines.deflate import agree
from supervisor._words.frames import deflate
from tests.serving import Raw, connect, frame, open_server, upgrade_head

OFFER = "permessage-deflate; client_max_window_bits"
COMPRESSED = 0x40
OPTIONS = Options(engine="websockets", compression=True)


@pytest.fixture(autouse=True)
def second_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WS_SUPERVISOR_ENGINE", "websockets")


async def agree_with(raw: Raw) -> None:
    await raw.send(upgrade_head(Sec_WebSocket_Extensions=OFFER))
    assert b"permessage-deflate" in await raw.read_until(b"\r\n\r\n")


def inflate(payload: bytes) -> bytes:
    return zlib.decompressobj(wbits=-15).decompress(payload + b"\0\0\xff\xff")


def test_it_is_off_and_the_default_engine_has_none() -> None:
    assert not Options().compression
    with pytest.raises(ValueError, match="does not compress"):
        Options(compression=True)


@pytest.mark.parametrize(
    ("offers", "answer"),
    [
        (OFFER, "permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
        ("x-other, " + OFFER, "permessage-deflate; server_no_context_takeover; client_no_context_takeover"),
        (
            "permessage-deflate; server_max_window_bits=10, permessage-deflate",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover",
        ),
        (
            "permessage-deflate; client_max_window_bits=10",
            "permessage-deflate; server_no_context_takeover; client_no_context_takeover; client_max_window_bits=10",
        ),
        ("permessage-deflate; server_max_window_bits=10", None),
        ("permessage-deflate; nonsense=1", None),
        ("permessage-deflate; client_max_window_bits=99", None),
        ("x-other", None),
        (";;;", None),
        ("", None),
    ],
)
def test_what_is_agreed_on(offers: str, answer: str | None) -> None:
    agreed = agree(offers)
    assert (None if agreed is None else agreed[0]) == answer


def test_a_frame_is_compressed_once_and_only_if_that_is_shorter() -> None:
    long = Frame("how much wood would a woodchuck chuck " * 100)
    assert long.deflated is long.deflated
    assert long.deflated[0] == 0xC1
    assert inflate(long.deflated[2:] if long.deflated[1] < 126 else long.deflated[4:]).decode() == long.message
    for kept in (Frame("short"), Frame(Random(1).randbytes(500))):
        assert kept.deflated is kept.octets


@pytest.mark.parametrize("asked", [True, False])
async def test_a_client_that_compresses_is_understood(asked: bool) -> None:
    """One that is not ours."""

    def talk(url: str) -> list[str | bytes]:
        with peer_connect(url, compression="deflate" if asked else None) as peer:
            assert bool(peer.response.headers.get("Sec-WebSocket-Extensions")) is asked
            answers = []
            for message in ("x" * 10_000, "", "é" * 300, b"\0" * 70_000, "short"):
                peer.send(message)
                answers.append(peer.recv() == message)
            peer.ping().wait(5)
            return answers

    async with open_server(echo, options=OPTIONS) as server:
        answers = await trio.to_thread.run_sync(talk, f"ws://127.0.0.1:{server.port}/ws?user=ann")
        assert answers == [True] * 5


async def test_one_compressed_message_serves_everybody() -> None:
    async with open_server(hub, options=OPTIONS) as server, connect(server) as with_it, connect(server) as without:
        await agree_with(with_it)
        await without.upgrade()
        for raw in (with_it, without):
            await raw.frame()
        published = Frame("again " * 200)
        assert server.supervisor.user("ann").publish(published) == 2
        opcode, payload = await with_it.frame()
        assert (opcode & 0x0F, inflate(payload).decode()) == (1, published.message)
        assert await without.frame() == (1, published.message.encode())


@pytest.mark.req("R38", "A25")
@pytest.mark.parametrize("pieces", [1, 40])
async def test_a_bomb_is_stopped_before_it_goes_off(pieces: int) -> None:
    """100 MB of nothing are 100 kB; what is inflated counts, and no more than may be is inflated."""

    async def deaf(conn: Connection) -> None:
        await trio.sleep_forever()

    bomb = deflate(bytes(100_000_000))
    size = len(bomb) // pieces + 1
    parts = [bomb[start : start + size] for start in range(0, len(bomb), size)]
    frames = b"".join(
        frame(0 if at else 2, part, fin=at == len(parts) - 1, rsv=0 if at else COMPRESSED)
        for at, part in enumerate(parts)
    )
    limits = Limits(max_message_size=1_000_000)
    async with open_server(deaf, options=OPTIONS, limits=limits) as server, connect(server) as raw:
        await agree_with(raw)
        tracemalloc.start(1)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(raw.send, frames)
            code, _ = await raw.closed_with()
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert code == 1009
        assert most <= 4_000_000


@pytest.mark.req("R38", "A25")
async def test_small_packets_that_become_large_messages_are_bounded_too() -> None:
    """Each becomes as large as a message may be; one read of plain octets would hold sixty of them."""

    async def deaf(conn: Connection) -> None:
        await trio.sleep_forever()

    limits = Limits(max_message_size=1_000_000)
    async with open_server(deaf, options=OPTIONS, limits=limits) as server, connect(server) as raw:
        await agree_with(raw)
        tracemalloc.start(1)
        await raw.send(frame(2, deflate(bytes(999_000)), rsv=COMPRESSED) * 60)
        await trio.testing.wait_all_tasks_blocked(0.1)
        held = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert held <= 4_000_000
        assert server.supervisor.statistics().connections == 1


@pytest.mark.req("A25")
@pytest.mark.parametrize("asked", [True, False])
async def test_what_was_not_agreed_on_is_an_error(asked: bool) -> None:
    options = OPTIONS if asked else Options(engine="websockets")
    async with open_server(echo, options=options) as server, connect(server) as raw:
        offers = {} if asked else {"Sec-WebSocket-Extensions": OFFER}
        await raw.send(upgrade_head(**offers))
        assert b"Extensions" not in await raw.read_until(b"\r\n\r\n")
        await raw.send(frame(1, deflate(b"x" * 500), rsv=COMPRESSED))
        opcode, payload = await raw.frame()
        assert (opcode, int.from_bytes(payload[:2], "big")) == (8, 1002)


async def test_what_cannot_be_inflated_is_an_error() -> None:
    async with open_server(echo, options=OPTIONS) as server, connect(server) as raw:
        await agree_with(raw)
        await raw.send(frame(1, b"\xff" * 50, rsv=COMPRESSED))
        opcode, payload = await raw.frame()
        assert (opcode, int.from_bytes(payload[:2], "big")) == (8, 1002)
