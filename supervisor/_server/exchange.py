"""One HTTP request and its answer on one stream, spelled by h11."""

from __future__ import annotations

import http.client
import json
import math
from collections.abc import Mapping
from typing import Any

import attrs
import h11
import trio

from .._engines.link import Stream
from .._words.errors import BadRequest, Refused
from .head import MAX_HEAD, MAX_HEADERS, Request, TooManyHeaders

MAX_BODY = 65_536
_READ = 4096
#: How long writing an answer may take.
_ANSWER = 5.0
#: How long an answered peer may take to hang up before we do.
_LINGER = 0.4
_ALWAYS = {"Cache-Control": "no-store", "Connection": "close", "X-Content-Type-Options": "nosniff"}


class Hangup(Exception):
    """The peer left before it had said everything."""


class RequestTimeout(BadRequest):
    """The request did not arrive in time."""

    status = 408


class BodyTooLarge(BadRequest):
    """The body is larger than anything that is asked here."""

    status = 413


class _Malformed(BadRequest):
    def __init__(self, error: h11.RemoteProtocolError) -> None:
        super().__init__(str(error))
        self.status = error.error_status_hint


@attrs.define(eq=False)
class Exchange:
    """Reads a head, perhaps a body, and writes one answer. There is no second request: the answer closes."""

    stream: Stream
    peer: str
    #: Seconds that a body may take to arrive.
    patience: float
    secure: bool
    #: Something has arrived: a peer that is too late is told so, one that never spoke is not.
    spoken: bool = False
    _wants_body: bool = True
    _request: Request | None = None
    _http: h11.Connection = attrs.field(factory=lambda: h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD))

    async def read_head(self) -> Request:
        """The request head. Raises `Hangup`, or `BadRequest` with the status that fits."""
        event = await self._next_event()
        if not isinstance(event, h11.Request):
            raise Hangup
        if len(event.headers) > MAX_HEADERS:
            raise TooManyHeaders(f"more than {MAX_HEADERS} headers")
        target = event.target.decode("latin-1")
        path, _, query_string = target.partition("?")
        self._wants_body = event.method != b"HEAD"
        request = Request(
            method=event.method.decode("ascii"),
            path=path,
            query_string=query_string.partition("#")[0],
            http_version=event.http_version.decode("ascii"),
            headers=tuple((name.decode("ascii"), value.decode("latin-1")) for name, value in event.headers),
            peer=self.peer,
            secure=self.secure,
        )
        self._request = request
        return request

    @property
    def _said_id(self) -> dict[str, str]:
        """What the log calls this request, so that whoever was refused can say it."""
        return {} if self._request is None else {"X-Request-ID": self._request.id}

    @property
    def trailing(self) -> bool:
        """Whether bytes have arrived that do not belong to the head."""
        return bool(self._http.trailing_data[0])

    async def read_body(self) -> bytes:
        """The request's body, in bounded time and size: `RequestTimeout`, `BodyTooLarge`."""
        body = b""
        with trio.move_on_after(self.patience):
            while True:
                event = await self._next_event()
                if isinstance(event, h11.EndOfMessage):
                    return body
                if not isinstance(event, h11.Data):
                    raise Hangup
                body += event.data
                if len(body) > MAX_BODY:
                    raise BodyTooLarge(f"body exceeds {MAX_BODY} bytes")
        raise RequestTimeout(f"no complete body within {self.patience:g} s")

    async def _next_event(self) -> object:
        try:
            while (event := self._http.next_event()) is h11.NEED_DATA:
                data = await self.stream.receive_some(_READ)
                self.spoken = self.spoken or bool(data)
                self._http.receive_data(bytes(data))
        except h11.RemoteProtocolError as error:
            raise (_Malformed(error) if self.spoken else Hangup()) from None
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            raise Hangup from None
        return event

    async def refuse(self, refusal: Refused) -> None:
        """Say why, in JSON, and when to come back."""
        headers: dict[str, str] = {}
        if refusal.retry_after is not None and math.isfinite(refusal.retry_after):
            headers["Retry-After"] = str(max(1, math.ceil(refusal.retry_after)))
        if refusal.status == http.HTTPStatus.UPGRADE_REQUIRED:
            headers |= {"Upgrade": "websocket", "Sec-WebSocket-Version": "13"}
        if allowed := getattr(refusal, "allowed", ""):
            headers |= {"Allow": allowed}
        if refusal.status == http.HTTPStatus.UNAUTHORIZED:
            headers |= {"WWW-Authenticate": "Bearer"}
        body = {
            "error": refusal.error,
            "detail": str(refusal),
            "close_code": refusal.reason.code,
            "retry_after": int(headers["Retry-After"]) if "Retry-After" in headers else None,
        }
        await self.answer_json(refusal.status, body, headers)

    async def answer_json(self, status: int, body: Any, headers: Mapping[str, str] | None = None) -> None:
        """Answer with JSON."""
        encoded = (json.dumps(body, allow_nan=False) + "\n").encode()
        await self.answer(status, encoded, {"Content-Type": "application/json", **(headers or {})})

    async def answer(self, status: int, body: bytes, headers: Mapping[str, str]) -> None:
        """Write the answer, and give the peer a moment to take it and hang up. Never raises what a peer can cause."""
        try:
            with trio.move_on_after(_ANSWER):
                await self.stream.send_all(self._spell(status, body, headers))
                with trio.move_on_after(_LINGER):
                    await self._hang_up()
        except (trio.BrokenResourceError, trio.ClosedResourceError, h11.LocalProtocolError):
            return

    async def begin_stream(self, content_type: str) -> None:
        """Begin an answer that has no end yet; `send_part` goes on with it."""
        headers = {**_ALWAYS, "Content-Type": content_type, **self._said_id}
        head = self._http.send(h11.Response(status_code=200, headers=list(headers.items()), reason=b"OK"))
        await self._send(head or b"")

    async def send_part(self, data: bytes) -> None:
        """More of it. `Hangup` if the peer has gone, or does not take it in time."""
        await self._send(self._http.send(h11.Data(data=data)) or b"" if self._wants_body else b"")

    async def _send(self, octets: bytes) -> None:
        with trio.move_on_after(_ANSWER) as patience:
            try:
                await self.stream.send_all(octets)
            except (trio.BrokenResourceError, trio.ClosedResourceError):
                raise Hangup from None
        if patience.cancelled_caught:
            raise Hangup

    async def wait_hangup(self, scope: trio.CancelScope) -> None:
        """Cancel `scope` when the peer has gone, or says anything more."""
        try:
            await self.stream.receive_some(_READ)
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            pass  # gone all the same
        scope.cancel()

    def _spell(self, status: int, body: bytes, headers: Mapping[str, str]) -> bytes:
        all_headers = {**_ALWAYS, "Content-Length": str(len(body)), **self._said_id, **headers}
        reason = http.client.responses.get(status, "").encode()
        head = self._http.send(h11.Response(status_code=status, headers=list(all_headers.items()), reason=reason))
        data = self._http.send(h11.Data(data=body)) if self._wants_body else b""
        return (head or b"") + (data or b"")

    async def _hang_up(self) -> None:
        """Closing with unread bytes would reset the connection, and could take the answer with it."""
        if isinstance(self.stream, trio.SocketStream):
            await self.stream.send_eof()
            left = MAX_BODY
            while left > 0 and (data := await self.stream.receive_some(_READ)):
                left -= len(data)
