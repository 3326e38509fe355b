"""The line: one connection after another, for as long as the server wants that."""

from __future__ import annotations

import contextlib
import json
import random
import ssl
import time
from collections.abc import Awaitable, Callable
from urllib.parse import quote

import attrs
import trio
import wsproto

from .._words.closing import CloseReason
from .._words.errors import SupervisorError
from . import returning
from .conversation import Conversation
from .happenings import Disconnected
from .inbox import Inbox
from .socket import WebSocketClient, connect

#: Seconds for a goodbye.
GOODBYE = 1.0
_LOST = CloseReason.PEER_LOST.code

Token = str | Callable[[], Awaitable[str]]


class Dismissed(SupervisorError):
    """There will be no connection any more: evicted, kicked, unauthorized, or closed by ourselves (1000)."""

    def __init__(self, code: int, text: str) -> None:
        super().__init__(f"{code} {text}")
        self.code = code
        self.text = text


@attrs.frozen
class End:
    """How one connection has ended: a close code, words, and for how many seconds the server wants to be left alone."""

    code: int
    text: str
    retry_after: float | None = None


@attrs.define(eq=False)
class Line:
    """Between a conversation and a server. The parameters are those of `open_client`."""

    talk: Conversation
    inbox: Inbox
    url: str
    token: Token | None
    session: str | None
    ssl_context: ssl.SSLContext | None
    heartbeat: float
    patience: float
    longest_pause: float
    rng: random.Random = attrs.field(factory=random.Random, repr=False)
    _tried: int = attrs.field(default=0, init=False)
    _wanted: trio.Event = attrs.field(factory=trio.Event, init=False)
    _heard_at: float = attrs.field(default=0.0, init=False)

    def wake(self) -> None:
        """There is something to be said; whoever waits for an answer may be the one who empties the inbox."""
        self._wanted.set()
        self.inbox.wake()

    def close(self, why: Dismissed) -> None:
        """There will be no connection any more."""
        if self.inbox.closed is None:
            self.inbox.close(why)
            self.talk.requests.give_up_all(why)

    async def hold(self) -> None:
        """Connect, and come back, until the server does not want that any more."""
        attempt = 0
        while True:
            began = trio.current_time()
            end = await self._converse()
            if trio.current_time() - began > returning.SUCCESS:
                attempt = 0
            wait = returning.pause(end.code, attempt, end.retry_after, longest=self.longest_pause, rng=self.rng)
            if wait is None:
                self.close(Dismissed(end.code, end.text))
                return
            attempt += 1
            self.inbox.put(Disconnected(end.code, end.text, wait))
            await trio.sleep(wait)

    async def _converse(self) -> End:
        try:
            with trio.fail_after(self.patience):
                socket = await self._connect()
        except trio.TooSlowError:
            return End(_LOST, "no answer")
        except (OSError, trio.BrokenResourceError, wsproto.utilities.ProtocolError) as error:
            return End(_LOST, str(error))
        if socket.refused:
            return _refusal(socket)
        try:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(self._write, socket)
                nursery.start_soon(self._watch, nursery.cancel_scope)
                await self._read(socket)
                nursery.cancel_scope.cancel()
            return End(socket.code or _LOST, socket.text)  # not what is answered to our own goodbye
        finally:
            self.talk.welcomed = False
            with trio.move_on_after(GOODBYE, shield=True):
                await socket.leave()
            await trio.aclose_forcefully(socket.stream)

    async def _connect(self) -> WebSocketClient:
        address, headers = self.url, {}
        if self.session is not None:  # an attempt that was given up must not take over from a later one
            self._tried = max(self._tried + 1, int(1000 * time.time()))
            address += f"{'&' if '?' in address else '?'}session={quote(self.session)}&takeover={self._tried}"
        if self.token is not None:
            headers["Authorization"] = f"Bearer {self.token if isinstance(self.token, str) else await self.token()}"
        return await connect(
            address, headers=headers, ssl_context=self.ssl_context, subprotocols=["supervisor.v1.json"]
        )

    async def _read(self, socket: WebSocketClient) -> None:
        with contextlib.suppress(EOFError, wsproto.utilities.ProtocolError):
            while True:
                message = await socket.hear()
                self._heard_at = trio.current_time()
                try:
                    self.talk.hear(json.loads(message))
                except (ValueError, TypeError, LookupError, AttributeError) as error:
                    socket.code, socket.text = CloseReason.UNSUPPORTED_DATA.code, f"this is no hub: {error!r}"
                    return
                self._wanted.set()
                while self.inbox.full and not self.talk.requests.waiting:
                    await self.inbox.wait_for_room()
                    self._heard_at = trio.current_time()

    async def _write(self, socket: WebSocketClient) -> None:
        while True:
            frame = self.talk.next_frame()
            if frame is None:
                self._wanted = trio.Event()
                await self._wanted.wait()
            else:
                await socket.say(json.dumps(frame))

    async def _watch(self, scope: trio.CancelScope) -> None:
        """A server that says nothing is asked; one that does not answer is gone, whatever TCP thinks."""
        self._heard_at = trio.current_time()
        while True:
            await trio.sleep_until(self._heard_at + self.heartbeat)
            asked_at = trio.current_time()
            if asked_at - self._heard_at < self.heartbeat:
                continue
            self.talk.ping()
            self._wanted.set()
            await trio.sleep(self.patience)
            if self.inbox.full:  # we do not listen
                self._heard_at = trio.current_time()
            elif self._heard_at < asked_at:
                scope.cancel()


def _refusal(socket: WebSocketClient) -> End:
    """What an HTTP answer means in close codes; a server's own is in its body, a proxy's must be guessed."""
    try:
        body = json.loads(socket.text)
        wait = body["retry_after"]
        return End(int(body["close_code"]), str(body["detail"]), None if wait is None else float(wait))
    except (ValueError, TypeError, KeyError):
        reason = CloseReason.UNAUTHORIZED if 400 <= socket.status < 500 else CloseReason.OVERLOAD
        return End(reason.code, f"HTTP {socket.status}")
