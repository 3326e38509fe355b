"""The second engine takes plain messages off by itself: nobody can tell from what comes out of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import attrs
import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor import Limits
from supervisor._engines.sans_io import SansIo
from supervisor._words.upgrade import Upgrade
from supervisor.testing.pipe import FaultPipe
from tests.serving import frame

KEY = "AAAAAAAAAAAAAAAAAAAAAA=="
LIMITS = Limits(max_message_size=400, max_fragments=3, message_rate="8/s", control_rate="4/s")
#: What looks like a frame, where it is none.
HIDDEN = frame(1, b"!", mask=bytes(4))
PAYLOADS = st.one_of(
    st.text(max_size=6).map(str.encode), st.sampled_from([b"", b"\xff", HIDDEN, bytes(125), bytes(126), bytes(401)])
)
PLAIN = st.builds(frame, st.sampled_from([1, 2]), PAYLOADS, mask=st.sampled_from([b"\1\2\3\4", bytes(4)]))
MASKS = st.sampled_from([b"\1\2\3\4", bytes(4), bytes(4), None])
FRAMES = st.builds(
    lambda opcode, payload, fin, mask, rsv: frame(opcode, payload, fin=fin, mask=mask, rsv=rsv),
    st.sampled_from([1, 2, 1, 2, 0, 8, 9, 10, 3]),
    PAYLOADS,
    st.sampled_from([True, True, True, False]),
    MASKS,
    st.sampled_from([0, 0, 0, 0, 0x40]),
)
#: A length may be written longer than it has to be.
LONG = st.sampled_from([b"\x81\xfe\x00\x02\0\0\0\0ok", b"\x82\xff\0\0\0\0\0\0\0\x02\0\0\0\0ok"])
OCTETS = st.lists(st.one_of(PLAIN, PLAIN, PLAIN, FRAMES, LONG), max_size=6).map(b"".join)


class Thorough(SansIo):
    """Leaves everything to the protocol."""

    def _take_plain(self, data: bytes | bytearray, now: float) -> int:
        return 0


@attrs.define
class Heard:
    messages: list[str | bytes]
    verdict: object
    peers_close: bytes | None
    done: bool


def pieces(octets: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({0, len(octets), *(cut % (len(octets) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        yield octets[start:end]


async def hear(kind: type[SansIo], octets: bytes, cuts: list[int]) -> Heard:
    wire = kind(FaultPipe(b""), "memory", Upgrade(KEY), LIMITS, 10.0, None)
    for piece in pieces(octets, cuts):
        if not wire._peer_is_done:
            wire._take_in(piece)
    messages = [message for message, _ in wire._messages]
    assert wire._unread == sum(size for _, size in wire._messages)
    verdict = None if wire._verdict is None else wire._verdict[:2]
    heard = Heard(messages, verdict, wire._peers_close, wire._peer_is_done)
    wire._let_go()
    return heard


@pytest.mark.req("R38")
def test_the_shortcut_is_not_to_be_noticed() -> None:
    @settings(max_examples=1000, deadline=None)
    @given(octets=OCTETS, cuts=st.lists(st.integers(0, 30), max_size=4))
    def holds(octets: bytes, cuts: list[int]) -> None:
        assert trio.run(hear, SansIo, octets, cuts) == trio.run(hear, Thorough, octets, cuts)

    holds()
