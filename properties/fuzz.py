"""Conversations gone wrong, by the thousand: ``python -m properties.fuzz COUNT [FIRST]``.

Each seed is one peer's half of a conversation: an opening handshake and frames, good ones mostly, mutated. It is played
in memory, on virtual time, through everything that a real socket goes through: lobby, head, handshake, engine, hub.
Nothing may escape, nothing may stay, and what we write must be HTTP and then frames that RFC 6455 allows.

What has led to something new is kept in ``corpus.json``, and played and mutated again; ``--keep`` adds to it.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
import random
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote

import attrs
import trio

from supervisor import Identity, JwtAuthenticator, Limits, Options, Server, Timeouts, events, hub, open_supervisor
from supervisor._server.lobby import Lobby
from supervisor._server.server import open_engine
from supervisor._server.signals import Shutdown
from supervisor.testing.model import left_behind
from supervisor.testing.pipe import Cut, FaultPipe
from supervisor.testing.schedule import run

#: Which engine is tried.
ENGINE = os.environ.get("WS_SUPERVISOR_ENGINE", "trio-websocket")
CORPUS = Path(__file__).parent / "corpus.json"
#: Conversations that go on at once, in one run.
CROWD = 50
LIMITS = Limits(
    per_user=1000,
    total=10_000,
    max_message_size=2000,
    max_fragments=50,
    idle_ttl=20.0,
    outbox_bytes=100_000,
    message_rate="200/10s",
)
SECRET = "a secret of the fuzzer, of 32 bytes at least"
_MOST_KEPT = 600
_SENDABLE = {1000, 1001, 1002, 1003, 1007, 1008, 1009, 1011, 1012, 1013}


# -- what a peer may say ---------------------------------------------------------------------------------------

OPERATIONS = [
    '{"op":"join","room":"r"}',
    '{"op":"leave","room":"r"}',
    '{"op":"publish","room":"r","data":{"a":[1,2.5,null,true]}}',
    '{"op":"send","user":"ann","data":"x","ref":7}',
    '{"op":"presence","room":"r"}',
    '{"op":"ping","ref":"r"}',
    '{"op":"refresh","token":"a.b.c"}',
    '{"op":"ack","seq":9223372036854775808}',
]
TEXTS = [
    b"",
    b"hello",
    "ü\N{GRINNING FACE}".encode(),
    b"\xff",
    b"\xf0\x9f\x98",
    b"\xed\xa0\x80",
    b"[" * 1500,
    b"x" * 2000,
]
SIZES = [0, 1, 125, 126, 127, 65535, 65536, 2000, 2001, 2**31, 2**63 - 1, 2**63, 2**64 - 1]
HEADERS = [
    "Host: 127.0.0.1",
    "Upgrade: websocket",
    "Connection: Upgrade",
    "Sec-WebSocket-Key: AAECAwQFBgcICQoLDA0ODw==",
    "Sec-WebSocket-Version: 13",
]
MORE_HEADERS = [
    "Sec-WebSocket-Protocol: supervisor.v1.json",
    "Sec-WebSocket-Protocol: supervisor.v1.json, bearer.aaa.bbb.ccc",
    "Sec-WebSocket-Extensions: permessage-deflate",
    "Origin: http://127.0.0.1",
    "Origin: null",
    "Authorization: Bearer aaa.bbb.ccc",
    "Content-Length: 0",
    "Content-Length: 10",
    "Transfer-Encoding: chunked",
    "Expect: 100-continue",
    "X-Forwarded-For: 192.0.2.1, \xff",
    "Cookie: \x00\xff",
]
TARGETS = [
    "/ws",
    "/ws?user=ann",
    "/ws?user=%ff",
    "/",
    "/healthz",
    "/api/statistics",
    "/api/disconnect",
    "/nowhere",
    "*",
]


def _frame(choose: random.Random) -> bytes:
    opcode = choose.choice([1, 1, 1, 1, 2, 0, 8, 9, 10, choose.randrange(16)])
    payload = choose.choice(OPERATIONS).encode() if choose.random() < 0.6 else choose.choice(TEXTS)
    if opcode == 8 and choose.random() < 0.8:
        payload = choose.choice([999, 1000, 1001, 1005, 1006, 1015, 3000, 4999, 5000]).to_bytes(2, "big") + payload[:60]
    size = len(payload) if choose.random() < 0.9 else choose.choice(SIZES)
    first = (
        (0x80 if choose.random() < 0.8 else 0) | opcode | (choose.randrange(8) << 4 if choose.random() < 0.03 else 0)
    )
    form = choose.choice([7, 7, 7, 16, 64]) if size < 126 else 16 if size < 65536 else 64
    length = {
        7: bytes((0x80 | size & 0x7F,)),
        16: b"\xfe" + size.to_bytes(8, "big")[-2:],
        64: b"\xff" + size.to_bytes(8, "big"),
    }
    mask = choose.randbytes(4)
    masked = bytes(octet ^ mask[place % 4] for place, octet in enumerate(payload))
    return bytes((first,)) + length[form] + mask + masked


def _head(choose: random.Random) -> bytes:
    target = (
        "/ws?user=" + quote(choose.choice(["ann", "bob", "\r\n", "ü" * 40]))
        if choose.random() < 0.85
        else choose.choice(TARGETS)
    )
    headers = list(HEADERS)
    if choose.random() < 0.2:
        headers += choose.sample(MORE_HEADERS, choose.randint(1, 3))
    if choose.random() < 0.05:
        headers.pop(choose.randrange(len(headers)))
    method = "GET" if choose.random() < 0.97 else choose.choice(["POST", "HEAD", "OPTIONS", "get", "\xff"])
    return "\r\n".join([f"{method} {target} HTTP/1.1", *headers, "", ""]).encode("latin-1")


def _mutate(octets: bytes, choose: random.Random) -> bytes:
    """Something small is wrong with it now."""
    data = bytearray(octets or b"\0")
    start = choose.randrange(len(data))
    end = min(len(data), start + choose.choice([1, 1, 2, 4, 16, 200]))
    match choose.randrange(7):
        case 0:
            data[start] ^= 1 << choose.randrange(8)
        case 1:
            data[start] = choose.choice([0, 10, 13, 32, 126, 127, 128, 255, choose.randrange(256)])
        case 2:
            del data[start:end]
        case 3:
            data[start:start] = data[start:end] * choose.choice([1, 2, 50])
        case 4:
            data[start:start] = choose.randbytes(choose.choice([1, 4, 30]))
        case 5:
            del data[start:]
        case _:
            data[start:end] = data[start:end][::-1]
    return bytes(data)


@attrs.frozen
class Conversation:
    """What a peer says before the answer to its handshake, and after; and how it falls silent."""

    head: bytes
    frames: bytes
    cut: Cut
    dribble: int

    @classmethod
    def of(cls, seed: int, corpus: list[Conversation]) -> Conversation:
        """The same for the same seed and corpus."""
        choose = random.Random(seed)
        if corpus and choose.random() < 0.3:
            head, frames = choose.choice(corpus).head, choose.choice(corpus).frames
        else:
            head, frames = _head(choose), b"".join(_frame(choose) for _ in range(choose.randrange(8)))
        if choose.random() < 0.25:
            head = _mutate(head, choose)
        for _ in range(choose.choice([0, 0, 1, 1, 2, 5])):
            frames = _mutate(frames, choose)
        return cls(head, frames, choose.choice(list(Cut)), choose.choice([65_536, 65_536, 100, 3, 1]))


@attrs.define(eq=False)
class Peer(FaultPipe):
    """Says its frames only once it has been answered, as everybody does who is not refused."""

    frames: bytes = b""

    async def gone(self) -> None:
        """Wait until the other side has closed."""
        await self._changed.wait()

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        """See `FaultPipe.receive_some`."""
        if not self.incoming and self.outgoing:
            self.incoming, self.frames = self.frames, b""
        return await FaultPipe.receive_some(self, max_bytes)


# -- what must become of it ------------------------------------------------------------------------------------


def judge(written: bytes) -> str:
    """What we have answered, in a few words. AssertionError if nobody may answer like that."""
    if not written:
        return "nothing"
    head, _, rest = written.partition(b"\r\n\r\n")
    status = head[9:12].decode()
    assert head.startswith(b"HTTP/1.1 "), written[:100]
    if status != "101":
        return status
    said: list[str] = []
    while rest:
        first, size, at = rest[0], rest[1], 2
        assert first & 0x30 == 0, "reserved bits"
        assert not first & 0x40 or b"permessage-deflate" in head, "compressed without having agreed on it"
        assert size < 128, "we have masked a frame"
        if size > 125:
            width = 2 if size == 126 else 8
            size, at = int.from_bytes(rest[2 : 2 + width], "big"), 2 + width
        opcode, payload, rest = first & 0x0F, rest[at : at + size], rest[at + size :]
        assert opcode in (1, 2, 8, 9, 10), f"opcode {opcode}"
        if first & 0x40:
            payload = zlib.decompressobj(wbits=-15).decompress(payload + b"\0\0\xff\xff")
        said.append(_said(opcode, payload))
        assert opcode != 8 or not rest, "something after the close frame"
    return " ".join(["101", *said[:4], *said[4:][-1:]])


def _said(opcode: int, payload: bytes) -> str:
    if opcode == 1:
        answer = json.loads(payload)
        return f"{answer['type']}:{answer.get('code', '')}"
    if opcode == 8 and payload:
        code = int.from_bytes(payload[:2], "big")
        assert code in _SENDABLE or 3000 <= code <= 4999, f"close code {code}"
        payload[2:].decode()
        return f"close:{code}"
    return {2: "binary", 8: "close", 9: "ping", 10: "pong"}[opcode]


class Escaped(AssertionError):
    """What must not be: something has come out, or has stayed."""


async def _play(conversations: list[Conversation]) -> list[str]:
    """Have them all at once with one server; what each was answered."""
    complaints: list[str] = []

    def listen(event: events.Event) -> None:
        if isinstance(event, events.Failed):
            complaints.append(f"{event.what}: {event.exception!r}")

    timeouts, answers = Timeouts(), []
    compression = ENGINE == "websockets"
    async with (
        open_engine(ENGINE, compression=compression) as engine,
        open_supervisor(limits=LIMITS, timeouts=timeouts) as supervisor,
    ):
        supervisor.subscribe(listen)
        options = Options(authenticate=_Sometimes())
        server = Server(supervisor, hub, options, [], Shutdown(timeouts), engine, None)
        supervisor.authority = server
        lobby = Lobby(lambda: 1000, timeouts.handshake, None, server.dispatch, server.turned_away, server.failed)
        async with trio.open_nursery() as nursery:
            peers = [Peer(it.head, it.cut, dribble=it.dribble, frames=it.frames) for it in conversations]
            for peer in peers:
                nursery.start_soon(lobby.greet, peer, "127.0.0.1")
        for peer in peers:
            await peer.gone()
        await trio.testing.wait_all_tasks_blocked()
        complaints += left_behind(supervisor)
        for peer in peers:
            try:
                answers.append(judge(bytes(peer.outgoing)))
            except (AssertionError, ValueError, KeyError) as error:
                complaints.append(f"answered {bytes(peer.outgoing)!r}: {error!r}")
    if complaints:
        raise Escaped("; ".join(complaints[:3]))
    return answers


@attrs.frozen
class _Sometimes:
    """Believes names, and looks at tokens where there are some."""

    tokens: JwtAuthenticator = attrs.field(factory=lambda: JwtAuthenticator(secret=SECRET))

    async def __call__(self, request) -> Identity:
        user = request.query("user")
        return await self.tokens(request) if user is None else Identity(user=user or "nobody")


def play(seed: int, conversations: list[Conversation]) -> list[str]:
    """One run of Trio, on virtual time."""
    return run(seed, _play, conversations, instruments=[])


def load() -> list[Conversation]:
    """The corpus."""
    return [
        Conversation(bytes.fromhex(head), bytes.fromhex(frames), Cut(cut), dribble)
        for head, frames, cut, dribble in json.loads(CORPUS.read_text())
    ]


def save(corpus: list[Conversation]) -> None:
    """Keep it."""
    lines = [json.dumps([it.head.hex(), it.frames.hex(), it.cut.value, it.dribble]) for it in corpus]
    CORPUS.write_text("[\n" + ",\n".join(lines) + "\n]\n")


def fuzz(first: int, count: int, corpus: list[Conversation], new: Callable[[Conversation, str], None]) -> Counter[str]:
    """Play the seeds from `first` on; how often each answer came. `Escaped` names the seed that it takes to see it."""
    seen: Counter[str] = Counter()
    for start in range(first, first + count, CROWD):
        seeds = range(start, min(start + CROWD, first + count))
        conversations = [Conversation.of(seed, corpus) for seed in seeds]
        try:
            answers = play(start, conversations)
        except BaseException as error:
            raise Escaped(f"seed {_culprit(seeds, conversations)}: {error!r}") from error
        for conversation, answer in zip(conversations, answers, strict=True):
            if answer not in seen:
                new(conversation, answer)
            seen[answer] += 1
    return seen


def _culprit(seeds: range, conversations: list[Conversation]) -> str:
    for seed, conversation in zip(seeds, conversations, strict=True):
        with contextlib.suppress(Exception):
            play(seed, [conversation])
            continue
        return f"{seed}, alone"
    return f"{seeds.start} to {seeds.stop - 1}, only together"


def main(count: str, first: str = "", *flags: str) -> int:
    logging.getLogger("supervisor").setLevel(logging.CRITICAL + 1)
    corpus, started = load(), time.monotonic()
    known = set(play(0, corpus)) if corpus else set()
    kept = list(corpus)

    def new(conversation: Conversation, answer: str) -> None:
        if answer not in known and len(conversation.head + conversation.frames) <= _MOST_KEPT:
            known.add(answer)
            kept.append(conversation)

    begin = int(first) if first else random.randrange(10**12)
    seen = fuzz(begin, int(count), corpus, new)
    if "--keep" in flags:
        save(kept)
    figures = {
        "conversations": sum(seen.values()),
        "first": begin,
        "answers": len(seen),
        "new": len(kept) - len(corpus),
    }
    opened = sum(times for answer, times in seen.items() if answer.startswith("101"))
    json.dump({**figures, "opened": opened, "seconds": round(time.monotonic() - started, 1)}, sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
