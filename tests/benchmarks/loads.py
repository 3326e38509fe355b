"""What servers are put to: a crowd of plain sockets on one epoll, cheap enough not to be what is measured."""

from __future__ import annotations

import math
import os
import select
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import attrs

from tests.serving import frame, upgrade_head

_TICKS = os.sysconf("SC_CLK_TCK")
_PAGE = os.sysconf("SC_PAGE_SIZE")
PATIENCE = 60.0


class GaveUp(Exception):
    """A server has hung up, or has not answered for as long as anybody would wait."""


@attrs.frozen
class Subject:
    """One server under test, seen from the operating system."""

    name: str
    pid: int
    port: int

    def cpu(self) -> float:
        """Seconds of CPU it has used."""
        fields = Path(f"/proc/{self.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / _TICKS

    def memory(self) -> int:
        """Bytes it has in use."""
        return int(Path(f"/proc/{self.pid}/statm").read_text().split()[1]) * _PAGE


@attrs.define(eq=False)
class Crowd:
    """Connections that say the same at once, and wait for so many bytes each."""

    subject: Subject
    socks: list[socket.socket] = attrs.field(factory=list)
    _poll: select.epoll = attrs.field(factory=select.epoll)

    def __enter__(self) -> Crowd:
        return self

    def __exit__(self, *_: object) -> None:
        self._poll.close()
        for sock in self.socks:
            sock.close()

    @property
    def talks_socketio(self) -> bool:
        return self.subject.name == "socketio"

    def join(self, count: int, per_user: int = 5, receive_buffer: int | None = None) -> None:
        """So many more, one after another."""
        for number in range(len(self.socks), len(self.socks) + count):
            sock = socket.socket()
            if receive_buffer is not None:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.connect(("127.0.0.1", self.subject.port))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            path = "/socket.io/?EIO=4&transport=websocket" if self.talks_socketio else f"/ws?user=u{number // per_user}"
            sock.sendall(upgrade_head(path))
            answer = b""
            while b"\r\n\r\n" not in answer:
                answer += sock.recv(4096)
            assert answer.startswith(b"HTTP/1.1 101"), answer[:200]
            if self.talks_socketio:
                sock.sendall(frame(1, b"40"))
                while b'40{"sid"' not in answer:
                    answer += sock.recv(4096)
            sock.setblocking(False)
            self._poll.register(sock.fileno(), select.EPOLLIN)
            self.socks.append(sock)

    def message(self, size: int, *, shout: bool = False) -> tuple[bytes, int]:
        """A frame with so many bytes of payload, and how many bytes come back for it."""
        text = (b"!" if shout else b"x") + b"x" * (size - 1)
        if self.talks_socketio:
            payload = b'42["m","' + text + b'"]'
            return frame(1, payload), _overhead(len(payload)) + len(payload)
        return frame(2, text), _overhead(size) + size

    def p99_of_broadcasts(self, listeners: list[socket.socket], rounds: int) -> float:
        """Seconds until 99 of 100 listeners have what one of them has said to all."""
        octets, expected = self.message(64, shout=True)
        took: list[float] = []
        for _ in range(rounds):
            took += self.exchange(octets, expected, listeners[:1], listeners, patience=5.0)
        return statistics.quantiles(took, n=100)[-1]

    def exchange(
        self,
        octets: bytes,
        expected: int,
        talkers: list[socket.socket],
        listeners: list[socket.socket],
        patience: float = PATIENCE,
    ) -> list[float]:
        """Let `talkers` say it, and wait until each of `listeners` has so many bytes; after how long each had."""
        by_fd = {sock.fileno(): sock for sock in listeners}
        missing = dict.fromkeys(by_fd, expected)
        started, took = time.monotonic(), []
        last_moment = started + patience
        for sock in talkers:
            self._say(sock, octets, missing, by_fd)
        while missing:
            if time.monotonic() > last_moment:
                raise GaveUp(f"{self.subject.name}: {len(missing)} have not been answered")
            left = len(missing)
            self._listen(missing, by_fd)
            took += [time.monotonic() - started] * (left - len(missing))
        return took

    def _say(
        self, sock: socket.socket, octets: bytes, missing: dict[int, int], by_fd: dict[int, socket.socket]
    ) -> None:
        left = memoryview(octets)
        while left:
            try:
                left = left[sock.send(left) :]
            except BlockingIOError:
                self._listen(missing, by_fd)

    def _listen(self, missing: dict[int, int], by_fd: dict[int, socket.socket]) -> None:
        for fd, _ in self._poll.poll(1.0):
            data = by_fd[fd].recv(1 << 18) if fd in by_fd else b"?"
            if not data:
                raise GaveUp(f"{self.subject.name} has hung up")
            if fd in missing:
                missing[fd] -= len(data)
                if missing[fd] <= 0:
                    del missing[fd]


def _overhead(size: int) -> int:
    return 2 if size < 126 else 4 if size < 65536 else 10


@contextmanager
def cpu_of(subject: Subject) -> Iterator[list[float]]:
    """The CPU seconds that the block has cost."""
    spent: list[float] = []
    before = subject.cpu()
    yield spent
    spent.append(subject.cpu() - before)


def echo(subject: Subject, *, size: int, connections: int, messages: int) -> float:
    """CPU seconds per message returned, all connections at once."""
    with Crowd(subject) as crowd:
        crowd.join(connections)
        octets, expected = crowd.message(size)
        crowd.exchange(octets, expected, crowd.socks, crowd.socks)
        rounds = max(1, messages // connections)
        with cpu_of(subject) as spent:
            for _ in range(rounds):
                crowd.exchange(octets, expected, crowd.socks, crowd.socks)
        return spent[0] / (rounds * connections)


def churn(subject: Subject, *, lives: int) -> float:
    """CPU seconds per connection opened, and closed politely, one after another."""
    goodbye = frame(8, (1000).to_bytes(2, "big"))
    with cpu_of(subject) as spent:
        for _ in range(lives):
            with Crowd(subject) as crowd:
                crowd.join(1)
                sock = crowd.socks[0]
                sock.setblocking(True)
                sock.sendall(goodbye)
                while sock.recv(4096):
                    pass
    return spent[0] / lives


def broadcast(subject: Subject, *, receivers: int, rounds: int, size: int = 64) -> float:
    """CPU seconds per delivery of one message to everybody."""
    with Crowd(subject) as crowd:
        crowd.join(receivers)
        octets, expected = crowd.message(size, shout=True)
        crowd.exchange(octets, expected, crowd.socks[:1], crowd.socks)
        with cpu_of(subject) as spent:
            for _ in range(rounds):
                crowd.exchange(octets, expected, crowd.socks[:1], crowd.socks)
        return spent[0] / (rounds * receivers)


def stalls(subject: Subject, *, receivers: int, stalled: int, rounds: int) -> float:
    """How much longer a broadcast takes to those who read, p99, when `stalled` others have stopped; inf: for ever."""
    with Crowd(subject) as crowd:
        crowd.join(receivers - stalled)
        readers = list(crowd.socks)
        before = crowd.p99_of_broadcasts(readers, rounds)
        crowd.join(stalled, receive_buffer=4096)
        for sock in crowd.socks[receivers - stalled :]:
            crowd._poll.unregister(sock.fileno())
        try:
            octets, expected = crowd.message(65_000, shout=True)
            for _ in range(10):  # their windows are full then
                crowd.exchange(octets, expected, readers[:1], readers, patience=5.0)
            return crowd.p99_of_broadcasts(readers, rounds) / before
        except GaveUp:
            return math.inf


def memory(subject: Subject, *, connections: int, per_user: int) -> float:
    """Bytes per idle connection."""
    with Crowd(subject) as crowd:
        crowd.join(100, per_user)  # what is made once is made now
        before = subject.memory()
        crowd.join(connections, per_user)
        time.sleep(0.2)
        return (subject.memory() - before) / connections
