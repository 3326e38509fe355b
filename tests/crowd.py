"""A crowd of clients in a process of their own: ``python tests/crowd.py PORT < plan``, answers as JSON lines.

The plan is a JSON object: ``users`` (a list of names, one connection each), ``deaf`` (never read after the upgrade).
One line says how the handshakes ended; after standard input has ended, one more says how the connections did.

Or it is many short lives: ``lives`` (how many), ``users`` (names, in turns), ``ways`` of ending (``leave``, ``vanish``,
``reset``, ``nonsense``, ``oversize``, ``mute``, in turns), ``at_once``. One line says how the handshakes ended, and how
long they took: at worst, and in 99 of 100 cases.
"""

from __future__ import annotations

import json
import resource
import socket
import struct
import sys
from collections import Counter
from collections.abc import Iterator
from typing import Any
from urllib.parse import quote

import trio

HEAD = (
    "GET /ws?user={} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\nSec-WebSocket-Version: 13\r\n\r\n"
)


class Crowd:
    def __init__(self, port: int, users: list[str], *, deaf: bool) -> None:
        self.port, self.users, self.deaf = port, users, deaf
        self.statuses: Counter[int] = Counter()
        self.codes: Counter[int] = Counter()
        self.answered = trio.Event()

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            for user in self.users:
                nursery.start_soon(self.visit, user)
            await self.answered.wait()
            self.say(self.statuses)
            await trio.to_thread.run_sync(sys.stdin.read)
            await trio.sleep(0.1)  # what has been sent to them is still on its way
            nursery.cancel_scope.cancel()
        self.say(self.codes)

    @staticmethod
    def say(counts: Counter[int]) -> None:
        sys.stdout.write(json.dumps(counts) + "\n")
        sys.stdout.flush()

    async def visit(self, user: str) -> None:
        with trio.socket.socket() as sock:
            if self.deaf:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            await sock.connect(("127.0.0.1", self.port))
            stream = trio.SocketStream(sock)
            await stream.send_all(HEAD.format(quote(user)).encode())
            data = b""
            while b"\r\n\r\n" not in data and (more := await stream.receive_some()):
                data += more
            status = int(data.split()[1]) if data else 0
            self.statuses[status] += 1
            if self.statuses.total() == len(self.users):
                self.answered.set()
            if status == 101:
                await self.stay(stream, data.partition(b"\r\n\r\n")[2])

    async def stay(self, stream: trio.SocketStream, data: bytes) -> None:
        if self.deaf:
            await trio.sleep_forever()
        try:
            while b"\x88" not in data and (more := await stream.receive_some()):
                data += more
        except trio.BrokenResourceError:
            pass
        # Nothing but a welcome comes before a close frame here.
        close = data.rfind(b"\x88")
        self.codes[int.from_bytes(data[close + 2 : close + 4], "big") if close >= 0 else 1006] += 1


class Lives:
    """Many connections that come, say something, and go."""

    def __init__(self, port: int, plan: dict[str, Any]) -> None:
        self.port, self.plan = port, plan
        self.statuses: Counter[int] = Counter()
        self.seconds: list[float] = []

    async def run(self) -> None:
        numbers = iter(range(self.plan["lives"]))
        async with trio.open_nursery() as nursery:
            for _ in range(self.plan["at_once"]):
                nursery.start_soon(self.live, numbers)
        self.seconds.sort()
        figures = {"p99": self.seconds[int(len(self.seconds) * 0.99)], "worst": self.seconds[-1]}
        sys.stdout.write(json.dumps({"statuses": self.statuses, **figures}) + "\n")
        sys.stdout.flush()

    async def live(self, numbers: Iterator[int]) -> None:
        users, ways = self.plan["users"], self.plan["ways"]
        for number in numbers:
            async with await trio.open_tcp_stream("127.0.0.1", self.port) as stream:
                started = trio.current_time()
                status = await self.enter(stream, users[number % len(users)])
                self.seconds.append(trio.current_time() - started)
                self.statuses[status] += 1
                if status == 101:
                    await self.end(stream, ways[number % len(ways)])

    @staticmethod
    async def enter(stream: trio.SocketStream, user: str) -> int:
        await stream.send_all(HEAD.format(quote(user)).encode())
        data = b""
        while b"\r\n\r\n" not in data and (more := await stream.receive_some()):
            data += more
        return int(data.split()[1]) if data else 0

    @staticmethod
    async def end(stream: trio.SocketStream, way: str) -> None:
        try:
            await stream.send_all(masked(0x1, b'{"op":"join","room":"r"}'))
            match way:
                case "leave":
                    await stream.send_all(masked(0x8, b"\x03\xe8"))
                    while await stream.receive_some():
                        pass
                case "reset":
                    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                case "nonsense":
                    await stream.send_all(b"\xff\xff\xff\xff")
                case "oversize" | "mute":
                    if way == "oversize":
                        await stream.send_all(b"\x82\xfe\x07\xd0\0\0\0\0" + bytes(2000))
                    while await stream.receive_some():  # until we are cut: nothing is answered
                        pass
        except trio.BrokenResourceError:
            pass


def masked(opcode: int, payload: bytes) -> bytes:
    """A short frame, whose mask changes nothing."""
    return bytes((0x80 | opcode, 0x80 | len(payload), 0, 0, 0, 0)) + payload


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    plan = json.loads(sys.stdin.readline())
    port = int(sys.argv[1])
    people = Lives(port, plan) if "lives" in plan else Crowd(port, plan["users"], deaf=plan.get("deaf", False))
    trio.run(people.run)
