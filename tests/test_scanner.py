"""What goes by: sizes, fragments, the close frame; however the bytes are cut."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from supervisor import CloseReason, Limits
from supervisor._engines.meters import Meters
from supervisor._engines.scanner import Scanner
from tests.serving import frame


def scan(data: bytes, *, at_most: int = 1000, fragments: int = 5000, piece: int = 1 << 20) -> Scanner:
    scanner = Scanner(Meters(Limits(max_message_size=at_most, max_fragments=fragments)))
    for start in range(0, len(data), piece):
        scanner.feed(data[start : start + piece], 0.0)
    return scanner


@pytest.mark.parametrize("piece", [1, 2, 3, 5, 7, 1 << 20])
def test_a_message_may_have_exactly_its_bound(piece: int) -> None:
    assert scan(frame(2, b"x" * 1000), piece=piece).meters.violation is None
    too_big = scan(frame(2, b"x" * 1001), piece=piece)
    assert too_big.meters.violation == (CloseReason.TOO_BIG, "message exceeds 1000 bytes")


def test_bytes_count_and_not_characters() -> None:
    assert scan(frame(1, "\N{GRINNING FACE}".encode() * 250)).meters.violation is None
    assert scan(frame(1, "\N{GRINNING FACE}".encode() * 251)).meters.violation is not None


def test_a_huge_header_is_enough() -> None:
    header = b"\x82\xff" + (1 << 62).to_bytes(8, "big") + b"\0\0\0\0"
    assert scan(header).meters.violation == (CloseReason.TOO_BIG, "message exceeds 1000 bytes")


@pytest.mark.parametrize("payload", [b"", b"x"])
def test_fragments_are_bounded_per_message_also_empty_ones(payload: bytes) -> None:
    def message(fragments: int) -> bytes:
        first, rest = frame(1, payload, fin=False), frame(0, payload, fin=False)
        return first + rest * (fragments - 2) + frame(0, payload)

    assert scan(message(10) * 5, fragments=10).meters.violation is None
    assert scan(message(11), fragments=10).meters.violation == (
        CloseReason.POLICY_VIOLATION,
        "message exceeds 10 fragments",
    )


@pytest.mark.req("R38")
def test_what_is_complete_counts_until_it_is_read() -> None:
    data = frame(2, bytes(300), fin=False) + frame(9, b"ping") + frame(0, bytes(200)) + frame(1) + frame(2, bytes(100))
    scanner = scan(data + frame(2, bytes(50), fin=False))
    assert (list(scanner.unread), scanner.unread_bytes) == ([500, 0, 100], 600)
    scanner.read()
    assert (list(scanner.unread), scanner.unread_bytes) == ([0, 100], 100)
    for _ in range(3):
        scanner.read()
    assert scanner.unread_bytes == 0


def test_control_frames_between_fragments_do_not_count() -> None:
    data = frame(1, b"a", fin=False) + frame(9, b"ping") * 50 + frame(0, b"b")
    assert scan(data, fragments=10).meters.violation is None


def test_pieces_of_a_message_are_bounded_as_fragments_are() -> None:
    message = frame(2, b"x" * 100)
    assert scan(message * 5, fragments=10, piece=20).meters.violation is None
    dripped = scan(message, fragments=10, piece=2)
    assert dripped.meters.violation == (CloseReason.POLICY_VIOLATION, "message exceeds 10 fragments")


def test_a_close_frame_that_is_too_long_to_be_one_is_not_kept() -> None:
    scanner = scan(frame(8, b"x" * 126) + b"y" * 100_000, piece=1000)
    assert scanner.close_payload is None
    assert scanner._close is None


@pytest.mark.parametrize("piece", [1, 3, 1 << 20])
@pytest.mark.parametrize("mask", [b"\1\2\3\4", None])
def test_the_close_frame_is_read(piece: int, mask: bytes | None) -> None:
    payload = (4321).to_bytes(2, "big") + "adieu é".encode()
    scanner = scan(frame(1, b"hello") + frame(8, payload, mask=mask) + b"what follows is nothing", piece=piece)
    assert scanner.close_payload == payload
    assert scan(frame(8, b"", mask=mask), piece=piece).close_payload == b""


@given(st.lists(st.tuples(st.sampled_from([1, 2, 9, 10]), st.binary(max_size=300))), st.integers(1, 50))
def test_any_cutting_gives_the_same(messages: list[tuple[int, bytes]], piece: int) -> None:
    data = b"".join(frame(opcode, payload[:125] if opcode > 8 else payload) for opcode, payload in messages)
    whole, cut = scan(data, at_most=200), scan(data, at_most=200, piece=piece)
    assert (whole.meters.violation, whole.close_payload) == (cut.meters.violation, cut.close_payload)
    sizes = [len(payload) for opcode, payload in messages if opcode < 8]
    assert list(whole.unread) == list(cut.unread) == sizes
    assert whole.unread_bytes == cut.unread_bytes == sum(sizes)
    too_big = any(opcode < 8 and len(payload) > 200 for opcode, payload in messages)
    assert (whole.meters.violation is not None) is too_big
