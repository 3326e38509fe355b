"""RFC 6455, clause by clause, on both engines: what an endpoint must echo, must answer, and must refuse."""

from __future__ import annotations

from collections.abc import Iterator

import attrs
import pytest
import trio

from supervisor import echo
from tests.serving import Raw, connect, frame, open_server

CONTINUED, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


@attrs.frozen
class Case:
    """What is said, and what must come back; `pieces` of so many octets, all at once if None."""

    name: str
    said: bytes
    heard: tuple[tuple[int, bytes], ...] = ()
    #: The code that it ends with; None if it goes on.
    code: int | None = None
    pieces: int | None = None


def close(code: int, reason: bytes = b"") -> bytes:
    return frame(CLOSE, code.to_bytes(2, "big") + reason)


def framing() -> Iterator[Case]:
    """Sections 5.2 and 5.6: every way to write a length, in one piece and in many."""
    for opcode in (TEXT, BINARY):
        for size in (0, 1, 125, 126, 127, 128, 65535, 65536):
            payload = b"x" * size
            yield Case(f"{size} octets as {opcode}", frame(opcode, payload), ((opcode, payload),))
    yield Case("in pieces", frame(TEXT, b"y" * 66000), ((TEXT, b"y" * 66000),), pieces=997)
    yield Case("octet by octet", frame(TEXT, b"z" * 130), ((TEXT, b"z" * 130),), pieces=1)
    yield Case("masked by nothing", frame(TEXT, b"plain", mask=bytes(4)), ((TEXT, b"plain"),))
    many = [b"%d" % number for number in range(20)]
    yield Case("many at once", b"".join(frame(TEXT, each) for each in many), tuple((TEXT, each) for each in many))
    yield Case("unmasked", frame(TEXT, b"x", mask=None), code=1002)


def reserved() -> Iterator[Case]:
    """Section 5.2: bits and opcodes that mean nothing yet."""
    for bits in range(1, 8):
        for opcode in (TEXT, PING, CLOSE):
            yield Case(f"reserved bits {bits} with {opcode}", frame(opcode, b"", rsv=bits << 4), code=1002)
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        yield Case(f"opcode {opcode}", frame(opcode, b"what"), code=1002)


def control() -> Iterator[Case]:
    """Section 5.5: pings are answered with what they say, and no control frame is long or in parts."""
    for payload in (b"", b"hello", b"\x00\xff\xfe\xfd", b"p" * 125):
        yield Case(f"ping {payload[:5]!r}", frame(PING, payload), ((PONG, payload),))
    yield Case("a ping octet by octet", frame(PING, b"q" * 125), ((PONG, b"q" * 125),), pieces=1)
    pings = [b"payload-%d" % number for number in range(10)]
    yield Case("ten pings", b"".join(frame(PING, each) for each in pings), tuple((PONG, each) for each in pings))
    yield Case("a pong that nobody wanted", frame(PONG, b"?") + frame(PING, b"!"), ((PONG, b"!"),))
    for opcode in (PING, PONG, CLOSE):
        yield Case(f"{opcode} that is too long", frame(opcode, b"\x03\xe8" + b"x" * 124), code=1002)
        yield Case(f"{opcode} in parts", frame(opcode, b"", fin=False), code=1002)


def fragments() -> Iterator[Case]:
    """Section 5.4: a message in several frames, with control frames between them."""
    first, middle, last = frame(TEXT, b"one ", fin=False), frame(CONTINUED, b"two ", fin=False), frame(CONTINUED, b"3")
    yield Case("two", first + last, ((TEXT, b"one 3"),))
    yield Case("three", first + middle + last, ((TEXT, b"one two 3"),))
    yield Case("three, octet by octet", first + middle + last, ((TEXT, b"one two 3"),), pieces=1)
    yield Case("empty ones", frame(TEXT, fin=False) + frame(CONTINUED, fin=False) + frame(CONTINUED), ((TEXT, b""),))
    yield Case("a ping between", first + frame(PING, b"?") + last, ((PONG, b"?"), (TEXT, b"one 3")))
    yield Case("nothing to continue", frame(CONTINUED, b"x"), code=1002)
    yield Case("nothing to continue, and more", frame(CONTINUED, b"x", fin=False), code=1002)
    yield Case("nothing left to continue", first + last + last, ((TEXT, b"one 3"),), code=1002)
    yield Case("another one begun", first + frame(TEXT, b"other"), code=1002)
    yield Case("another one begun in parts", first + frame(BINARY, b"other", fin=False), code=1002)


VALID = (
    "κόσμε",
    "Hello-µ@ßöäüàá-UTF-8!!",
    "\ud7ff\ue000",
    "\ufffe\uffff",
    "\U0010ffff",
    "\x00\x7f\x80\u07ff\u0800",
    "💩",
)
INVALID = (
    *(b"\x80", b"\xbf", b"\xc0\xaf", b"\xc1\xbf", b"\xe0\x80\xaf", b"\xe0\x9f\xbf", b"\xed\xa0\x80", b"\xed\xbf\xbf"),
    *(b"\xf0\x80\x80\xaf", b"\xf0\x8f\xbf\xbf", b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xf8\x88\x80\x80\x80"),
    *(
        b"\xfe",
        b"\xff",
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce",
        b"\xe1\xbd",
        b"\xf0\x9f\x92",
        b"\xed\xa0\x80edited",
    ),
)


def text() -> Iterator[Case]:
    """Section 8.1: text is UTF-8, wherever it was cut."""
    for message in VALID:
        octets = message.encode()
        yield Case(f"valid {message!a}", frame(TEXT, octets), ((TEXT, octets),))
        cut = [frame(TEXT if at == 0 else CONTINUED, octets[at : at + 1], fin=False) for at in range(len(octets))]
        yield Case(f"valid {message!a} in parts", b"".join(cut) + frame(CONTINUED), ((TEXT, octets),))
    for octets in INVALID:
        yield Case(f"invalid {octets!r}", frame(TEXT, octets), code=1007)
        yield Case(
            f"invalid {octets!r} in parts", frame(TEXT, octets[:1], fin=False) + frame(CONTINUED, octets[1:]), code=1007
        )
    yield Case("invalid, and binary", frame(BINARY, b"\xff\xfe"), ((BINARY, b"\xff\xfe"),))


def goodbyes() -> Iterator[Case]:
    """Sections 5.5.1 and 7.4: a close frame comes back with its code, or is wrong."""
    for code in (1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999):
        yield Case(f"code {code}", close(code, b"bye"), code=code)
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        yield Case(f"no code: {code}", close(code), code=1002)
    yield Case("without a code", frame(CLOSE), code=1005)
    yield Case("half a code", frame(CLOSE, b"\x03"), code=1002)
    yield Case("a reason as long as may be", close(1000, b"r" * 123), code=1000)
    yield Case("a reason that is no text", close(1000, b"\xce\xba\xff"), code=1007)
    yield Case("a ping after it", close(1000) + frame(PING, b"?"), code=1000)
    yield Case("a message before it", frame(TEXT, b"last") + close(1000), ((TEXT, b"last"),), code=1000)
    yield Case("half a message before it", frame(TEXT, b"half", fin=False) + close(1000), code=1000)


#: `websockets` takes a close in the middle of a message for an error; the code says so, and the end is the same.
DIFFERENT = {("websockets", "half a message before it"): 1002}
CASES = [case for clause in (framing, reserved, control, fragments, text, goodbyes) for case in clause()]


async def say(raw: Raw, case: Case) -> None:
    size = case.pieces or len(case.said)
    for start in range(0, len(case.said), size):
        await raw.send(case.said[start : start + size])


@pytest.mark.req("R38")
@pytest.mark.parametrize("engine", ["trio-websocket", "websockets"])
async def test_the_protocol(engine: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All cases, each on a connection of its own; what did not go as it must is told together."""
    monkeypatch.setenv("WS_SUPERVISOR_ENGINE", engine)
    wrong: list[str] = []
    async with open_server(echo) as server:
        for case in CASES:
            heard: list[tuple[int, bytes]] = []
            code, expected = None, DIFFERENT.get((engine, case.name), case.code)
            with trio.move_on_after(5) as patience:
                async with connect(server) as raw:
                    await raw.upgrade()
                    await say(raw, case)
                    while len(heard) < len(case.heard) or case.code is not None:
                        opcode, payload = await raw.frame()
                        if opcode == CLOSE:
                            code = int.from_bytes(payload[:2], "big") if payload else 1005
                            break
                        heard.append((opcode, payload))
            if patience.cancelled_caught or (tuple(heard), code) != (case.heard, expected):
                wrong.append(f"{case.name}: {[(opcode, payload[:20]) for opcode, payload in heard]}, {code}")
        assert server.supervisor.statistics().failures == {}
    assert wrong == []


def test_there_are_enough_of_them() -> None:
    assert len({case.name for case in CASES}) == len(CASES) >= 150
