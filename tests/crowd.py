"""A crowd of clients in a process of their own: ``python tests/crowd.py PORT < plan``, answers as JSON lines.

The plan is a JSON object: ``users`` (a list of names, one connection each), ``deaf`` (never read after the upgrade).
One line says how the handshakes ended; after standard input has ended, one more says how the connections did.
"""

from __future__ import annotations

import json
import resource
import socket
import sys
from collections import Counter
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


if __name__ == "__main__":
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    plan = json.loads(sys.stdin.readline())
    trio.run(Crowd(int(sys.argv[1]), plan["users"], deaf=plan.get("deaf", False)).run)
