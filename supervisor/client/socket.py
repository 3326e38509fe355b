"""One WebSocket conversation over real sockets, polite or not, that does nothing by itself: who does not read, does not
answer.

It speaks through wsproto, which knows nothing of what it talks to.
"""

from __future__ import annotations

import contextlib
import socket
import ssl
import struct
from collections import deque
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import urlsplit

import attrs
import trio
import wsproto
import wsproto.connection
from wsproto import events as ws

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]
_ABNORMAL = 1006
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)


@attrs.define(eq=False)
class WebSocketClient:
    """One side of a conversation; `connect` opens it."""

    stream: Stream
    protocol: wsproto.WSConnection
    #: 101, or the HTTP status of the refusal.
    status: int = 0
    #: What a refusal said, or a close frame.
    text: str = ""
    #: The close code, once it is over; 1006 without one.
    code: int | None = None
    messages: deque[str | bytes] = attrs.field(factory=deque)
    _parts: list[Any] = attrs.field(factory=list)
    #: One frame after another, whoever writes them.
    _writing: trio.Lock = attrs.field(factory=trio.Lock)

    @property
    def refused(self) -> bool:
        """Whether it was not let in."""
        return self.status != 101

    async def say(self, message: str | bytes) -> None:
        """Send a message; nothing happens if the other side has gone."""
        if self.protocol.state is not wsproto.connection.ConnectionState.OPEN:
            return
        event = ws.TextMessage(data=message) if isinstance(message, str) else ws.BytesMessage(data=message)
        await self._write(self.protocol.send(event))

    async def hear(self) -> str | bytes:
        """The next message. EOFError if there will be none."""
        while not self.messages:
            if self.code is not None:
                raise EOFError(self.code)
            await self.read()
        return self.messages.popleft()

    async def over(self) -> int:
        """Read until it is over; the close code."""
        while self.code is None:
            await self.read()
        return self.code

    async def leave(self) -> None:
        """Say goodbye, and wait for the answer."""
        if self.code is None and not self.refused:
            await self._write(self.protocol.send(ws.CloseConnection(code=1000)))
            await self.over()
        await trio.aclose_forcefully(self.stream)

    def vanish(self) -> None:
        """Be gone without a word, as if switched off: with a reset."""
        transport = self.stream.transport_stream if isinstance(self.stream, trio.SSLStream) else self.stream
        with contextlib.suppress(OSError):
            transport.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        transport.socket.close()
        self.code = _ABNORMAL if self.code is None else self.code

    async def read(self) -> None:
        """Read once, and answer what wants an answer."""
        try:
            data = await self.stream.receive_some()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            data = b""
        if not data:
            self.code = _ABNORMAL if self.code is None else self.code
            await trio.aclose_forcefully(self.stream)
            return
        self.protocol.receive_data(bytes(data))
        for event in self.protocol.events():
            await self._handle(event)
        if self.code is not None:
            await trio.aclose_forcefully(self.stream)

    async def _handle(self, event: ws.Event) -> None:
        match event:
            case ws.AcceptConnection():
                self.status = 101
            case ws.RejectConnection(status_code=status):
                self.status = status
            case ws.RejectData(data=data):
                self.text += bytes(data).decode("utf-8", "replace")
            case ws.Ping():
                await self._write(self.protocol.send(event.response()))
            case ws.CloseConnection(code=code, reason=reason):
                self.code, self.text = code, reason or ""
                if self.protocol.state is wsproto.connection.ConnectionState.REMOTE_CLOSING:
                    await self._write(self.protocol.send(event.response()))
            case ws.TextMessage() | ws.BytesMessage():
                self._parts.append(event.data)
                if event.message_finished:
                    whole = "".join(self._parts) if isinstance(event, ws.TextMessage) else b"".join(self._parts)
                    self.messages.append(whole)
                    self._parts = []

    async def _write(self, data: bytes) -> None:
        async with self._writing:
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.stream.send_all(data)


async def connect(
    url: str,
    *,
    headers: Mapping[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
    receive_buffer: int | None = None,
    subprotocols: Sequence[str] = (),
) -> WebSocketClient:
    """Open a conversation, or be refused: `WebSocketClient.status` says which. OSError if nobody listens.

    With a small `receive_buffer`, in bytes, a client that does not read fills its window quickly.
    """
    target = urlsplit(url)
    stream = await open_stream(url, ssl_context, receive_buffer)
    client = WebSocketClient(stream, wsproto.WSConnection(wsproto.ConnectionType.CLIENT))
    path = (target.path or "/") + (f"?{target.query}" if target.query else "")
    extra = [(name.encode(), value.encode()) for name, value in (headers or {}).items()]
    request = ws.Request(host=target.netloc, target=path, extra_headers=extra, subprotocols=list(subprotocols))
    try:
        await client._write(client.protocol.send(request))
        while client.status == 0 and client.code is None:
            await client.read()
        while client.refused and client.code is None:
            await client.read()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    if client.refused:
        await trio.aclose_forcefully(stream)
    return client


async def open_stream(url: str, ssl_context: ssl.SSLContext | None, receive_buffer: int | None = None) -> Stream:
    """A TCP or TLS connection to where `url` points."""
    target = urlsplit(url)
    secure = target.scheme in ("wss", "https")
    host, port = target.hostname or "", target.port or (443 if secure else 80)
    if secure:
        return await trio.open_ssl_over_tcp_stream(host, port, ssl_context=ssl_context)
    if receive_buffer is None:
        return await trio.open_tcp_stream(host, port)
    sock = trio.socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
    await sock.connect((host, port))
    return trio.SocketStream(sock)
