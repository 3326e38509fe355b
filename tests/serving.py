"""A real server for tests, and clients that are not ours, down to single bytes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import socket
import ssl
import struct
import subprocess
import sys
import time
from collections.abc import AsyncIterator
from functools import partial
from pathlib import Path
from typing import Any

import attrs
import trio
import trustme

from supervisor import Options, Server, Supervisor, hub, serve

KEY = base64.b64encode(bytes(range(16))).decode()


@contextlib.asynccontextmanager
async def open_server(handler=hub, options: Options | None = None, **kwargs: Any) -> AsyncIterator[Server]:
    """A server on a port of the system's choice, in this task's own event loop; cut at the end of the block."""
    options = attrs.evolve(
        options or Options(), port=0, engine=os.environ.get("WS_SUPERVISOR_ENGINE", "trio-websocket")
    )
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(partial(serve, handler, options, signals=False, **kwargs))
        try:
            yield server
        finally:
            nursery.cancel_scope.cancel()


def file_descriptors() -> int:
    """How many this process has open."""
    return len(os.listdir("/proc/self/fd"))


def tasks() -> int:
    """How many tasks Trio runs."""
    return int(trio.lowlevel.current_statistics().tasks_living)


async def settled(supervisor: Supervisor) -> None:
    """Wait until nobody is here, in no stage; a test's own time-out bounds it."""
    while any((it := supervisor.statistics()) and (it.users, it.connections, it.closing, it.leaving)):
        await trio.sleep(0.005)


# -- a client made of bytes ------------------------------------------------------------------------------------


def upgrade_head(path: str = "/ws?user=ann", *extra: str, **headers: str) -> bytes:
    """An opening handshake; keyword arguments replace headers, None removes one."""
    chosen = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": KEY,
        "Sec-WebSocket-Version": "13",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in chosen.items() if value is not None)]
    return "\r\n".join([*lines, *extra, "", ""]).encode("latin-1")


def frame(
    opcode: int, payload: bytes = b"", *, fin: bool = True, mask: bytes | None = b"\1\2\3\4", rsv: int = 0
) -> bytes:
    """A frame as a client sends it, well-formed or not."""
    first = (0x80 if fin else 0) | rsv | opcode
    bit = 0 if mask is None else 0x80
    if len(payload) < 126:
        head = bytes((first, bit | len(payload)))
    elif len(payload) < 65536:
        head = struct.pack("!BBH", first, bit | 126, len(payload))
    else:
        head = struct.pack("!BBQ", first, bit | 127, len(payload))
    if mask is None:
        return head + payload
    key = (mask * (len(payload) // 4 + 1))[: len(payload)]
    masked = int.from_bytes(payload, "big") ^ int.from_bytes(key, "big")
    return head + mask + masked.to_bytes(len(payload), "big")


@attrs.define
class Raw:
    """A TCP connection that speaks whatever a test says."""

    stream: trio.SocketStream
    buffer: bytearray = attrs.field(factory=bytearray)

    async def send(self, data: bytes) -> None:
        await self.stream.send_all(data)

    async def read_until(self, marker: bytes) -> bytes:
        while marker not in self.buffer:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError(bytes(self.buffer))
            self.buffer += data
        end = self.buffer.index(marker) + len(marker)
        taken = bytes(self.buffer[:end])
        del self.buffer[:end]
        return taken

    async def read_exactly(self, count: int) -> bytes:
        while len(self.buffer) < count:
            data = await self.stream.receive_some()
            if not data:
                raise EOFError(bytes(self.buffer))
            self.buffer += data
        taken = bytes(self.buffer[:count])
        del self.buffer[:count]
        return taken

    async def response(self) -> tuple[int, dict[str, str], bytes]:
        """Status, headers and body of an HTTP answer."""
        head = (await self.read_until(b"\r\n\r\n")).decode("latin-1").split("\r\n")
        headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head[1:] if line)}
        body = await self.read_exactly(int(headers.get("content-length", "0")))
        return int(head[0].split()[1]), headers, body

    async def upgrade(self, path: str = "/ws?user=ann", **headers: str) -> None:
        await self.send(upgrade_head(path, **headers))
        status, _, body = await self.response()
        assert status == 101, (status, body)

    async def frame(self) -> tuple[int, bytes]:
        """Opcode and payload of the next frame."""
        first, size = await self.read_exactly(2)
        if size == 126:
            size = int.from_bytes(await self.read_exactly(2), "big")
        elif size == 127:
            size = int.from_bytes(await self.read_exactly(8), "big")
        return first & 0x0F, await self.read_exactly(size)

    async def message(self) -> Any:
        """The next text frame, as JSON."""
        opcode, payload = await self.frame()
        assert opcode == 1, (opcode, payload)
        return json.loads(payload)

    async def say(self, **fields: Any) -> None:
        await self.send(frame(1, json.dumps(fields).encode()))

    async def closed_with(self) -> tuple[int, str]:
        """Skip to the close frame, and see the socket end after it is answered."""
        while True:
            opcode, payload = await self.frame()
            if opcode == 8:
                with contextlib.suppress(trio.BrokenResourceError):
                    await self.send(frame(8, payload[:2]))
                await self.ended()
                return int.from_bytes(payload[:2], "big"), payload[2:].decode()

    async def ended(self) -> None:
        """Read until the server has closed, politely or not; what came is in the buffer."""
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await self.stream.receive_some():
                self.buffer += data

    async def reset(self) -> None:
        """Close with a TCP reset."""
        self.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        await trio.aclose_forcefully(self.stream)


def tls_pair() -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's side for 127.0.0.1, and a client's that believes it."""
    authority = trustme.CA()
    server_side = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    authority.issue_cert("127.0.0.1").configure_cert(server_side)
    client_side = ssl.create_default_context()
    authority.configure_trust(client_side)
    return server_side, client_side


@contextlib.asynccontextmanager
async def connect(server: Server | int, *, receive_buffer: int | None = None) -> AsyncIterator[Raw]:
    """A raw connection to a server, or a port; with a small receive buffer its window fills quickly."""
    port = server if isinstance(server, int) else server.port
    with trio.socket.socket() as sock:
        if receive_buffer is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        await sock.connect(("127.0.0.1", port))
        yield Raw(trio.SocketStream(sock))


async def request(server: Server, method: str, path: str, body: Any = None, **headers: str) -> tuple[int, Any]:
    """One HTTP request; the answer's status and JSON."""
    encoded = b"" if body is None else json.dumps(body).encode()
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", f"Content-Length: {len(encoded)}"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    async with connect(server) as raw:
        await raw.send("\r\n".join([*lines, "", ""]).encode() + encoded)
        status, _, answer = await raw.response()
        return status, json.loads(answer)


# -- a process of its own --------------------------------------------------------------------------------------


class Process:
    """``ws-supervisor serve`` as a process; says on which port, and how it ended."""

    def __init__(self, *args: str, port: int = 0, cwd: Path | None = None) -> None:
        command = [sys.executable, "-X", "dev", "-m", "supervisor", "serve", "--port", str(port), *args]
        self.process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, cwd=cwd)
        self.lines: list[str] = []
        self.port = int(self.wait_for("serving on").rsplit(":", 1)[1].strip("/\n"))

    def __enter__(self) -> Process:
        return self

    def __exit__(self, *_: object) -> None:
        self.process.kill()
        self.process.wait()
        self.process.stderr.close()

    def wait_for(self, text: str) -> str:
        for line in self.process.stderr:
            self.lines.append(line)
            if text in line:
                return line
        raise AssertionError("".join(self.lines))

    def end(self, *signals: int, pause: float = 0.2) -> tuple[int, float, str]:
        """Send signals; exit status, seconds taken, and what was said meanwhile."""
        started = time.monotonic()
        for number in signals:
            self.process.send_signal(number)
            time.sleep(pause)
        said = self.process.stderr.read()
        return self.process.wait(30), time.monotonic() - started, said
