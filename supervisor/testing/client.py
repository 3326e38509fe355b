"""One HTTP request; and, from the client, WebSocket conversations that can be impolite."""

from __future__ import annotations

import json
import ssl
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlsplit

import h11

from ..client.socket import Stream, WebSocketClient, connect, open_stream

__all__ = ["WebSocketClient", "connect", "request"]


async def request(
    method: str,
    url: str,
    body: Any = None,
    *,
    headers: Mapping[str, str] | None = None,
    ssl_context: ssl.SSLContext | None = None,
) -> tuple[int, Any]:
    """One HTTP request; the status, and the JSON of the answer."""
    target = urlsplit(url)
    stream = await open_stream(url, ssl_context)
    content = b"" if body is None else json.dumps(body).encode()
    fields = {"Host": target.netloc, "Content-Length": str(len(content)), "Connection": "close", **(headers or {})}
    conversation = h11.Connection(h11.CLIENT)
    target_path = f"{target.path or '/'}?{target.query}" if target.query else target.path or "/"
    async with stream:
        head = h11.Request(method=method, target=target_path, headers=list(fields.items()))
        for outgoing in (head, h11.Data(content), h11.EndOfMessage()):
            await stream.send_all(conversation.send(outgoing) or b"")
        return await _response(stream, conversation)


async def _response(stream: Stream, conversation: h11.Connection) -> tuple[int, Any]:
    status, answer = 0, b""
    while True:
        event = conversation.next_event()
        if event is h11.NEED_DATA:
            conversation.receive_data(bytes(await stream.receive_some()))
        elif isinstance(event, h11.Response):
            status = event.status_code
        elif isinstance(event, h11.Data):
            answer += bytes(event.data)
        else:
            return status, json.loads(answer)
