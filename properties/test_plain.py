"""The second engine takes plain messages off by itself: nobody can tell from what comes out of it."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import attrs
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from supervisor import CloseReason, Limits
from supervisor._engines.intake import Intake
from tests.serving import frame

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


class Thorough(Intake):
    """Leaves everything to the protocol."""

    def _take_plain(self, data: bytes | bytearray, now: float) -> int:
        return 0


@attrs.define
class Heard:
    messages: list[str | bytes]
    pings: list[bytes]
    verdict: object
    peers_close: bytes | None
    done: bool


def pieces(octets: bytes, cuts: list[int]) -> Iterator[bytes]:
    places = sorted({0, len(octets), *(cut % (len(octets) + 1) for cut in cuts)})
    for start, end in pairwise(places):
        yield octets[start:end]


def hear(kind: type[Intake], octets: bytes, cuts: list[int]) -> Heard:
    intake = kind(LIMITS)
    for piece in pieces(octets, cuts):
        if not intake.done:
            intake.take_in(piece, 0.0)
    messages = [message for message, _ in intake.messages]
    assert intake.unread == sum(size for _, size in intake.messages)
    verdict = None if intake.verdict is None else intake.verdict[:2]
    return Heard(messages, intake.pings, verdict, intake.close_payload, intake.done)


@pytest.mark.req("R37")
def test_pings_beyond_their_rate_are_not_kept() -> None:
    intake = Intake(LIMITS)
    intake.take_in(frame(9, b"?") * 10_000, 0.0)
    assert (len(intake.pings), intake.verdict[0]) == (4, CloseReason.TOO_MANY_MESSAGES)
    intake.pings, intake.closing = [], True
    intake.take_in(frame(9, b"?") * 10, 0.0)
    assert intake.pings == []


@pytest.mark.req("R38")
def test_the_shortcut_is_not_to_be_noticed() -> None:
    @settings(max_examples=1000, deadline=None)
    @given(octets=OCTETS, cuts=st.lists(st.integers(0, 30), max_size=4))
    def holds(octets: bytes, cuts: list[int]) -> None:
        assert hear(Intake, octets, cuts) == hear(Thorough, octets, cuts)

    holds()
