"""The engine: one connection to what all nodes share, a Redis or a Valkey. Knows nothing of what is said to it."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.resources
import logging
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from typing import Any, Protocol
from urllib.parse import parse_qs, unquote, urlsplit

import attrs
import coredis.exceptions
import trio
from coredis.connection import (
    BaseConnection,
    TCPConnection,
    TCPLocation,
    UnixDomainSocketConnection,
    UnixDomainSocketLocation,
)

_BODY = importlib.resources.files(__package__).joinpath("engine.lua").read_text()
#: Refused as a whole when the server has no memory left, and not in the middle; and one for what frees some.
_SCRIPTS = {frugal: f"#!lua{' flags=allow-oom' if frugal else ''}\n{_BODY}" for frugal in (False, True)}
_DIGESTS = {frugal: hashlib.sha1(script.encode()).hexdigest().encode() for frugal, script in _SCRIPTS.items()}  # noqa: S324 - the name that Redis gives a script

Argument = str | bytes | int
#: What an engine pushes: a channel and a payload.
Push = tuple[bytes, bytes]
logging.getLogger("coredis").setLevel(logging.CRITICAL)  # what it has to say, it raises, too


class EngineLost(Exception):
    """The connection is of no use any more, or the engine does not want to work."""


class Engine(Protocol):
    """One connection. Whatever is wrong with it is `EngineLost`; then another is opened."""

    @property
    def run(self) -> str:
        """Which start of the server this is."""
        ...

    async def call(self, arguments: Sequence[Argument], *, frugal: bool) -> list[Any]:
        """Have the script done. A call that is cancelled may have been done, or not.

        `frugal`: it needs no memory, so it is done also when there is none.
        """
        ...

    def subscribe(self, channels: Sequence[str]) -> None:
        """Hear these, too; from a moment on that comes before the answer to whatever is called next."""
        ...

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """Do not hear these any more."""
        ...

    def pushes(self) -> AsyncIterator[Push]:
        """What is heard, in order."""
        ...


OpenEngine = Callable[[], AbstractAsyncContextManager[Engine]]


@attrs.define(eq=False)
class Redis:
    """An `Engine` through coredis' connection, which is used by itself: no pool, and no object for subscriptions."""

    connection: BaseConnection
    patience: float
    run: str = ""

    async def call(self, arguments: Sequence[Argument], *, frugal: bool) -> list[Any]:
        """See `Engine.call`; the script is loaded where it is not known, or not any more."""
        try:
            answer: Any = await self._ask(b"EVALSHA", _DIGESTS[frugal], 0, *arguments)
        except coredis.exceptions.NoScriptError:
            answer = await self._ask(b"EVAL", _SCRIPTS[frugal], 0, *arguments)
        return list(answer)

    async def _ask(self, command: bytes, *arguments: Argument) -> Any:
        request = self.connection.create_request(command, *arguments, decode=False, timeout=self.patience)
        return await request

    def subscribe(self, channels: Sequence[str]) -> None:
        """See `Engine.subscribe`."""
        self.connection.send_command(b"SUBSCRIBE", *channels)

    def unsubscribe(self, channels: Sequence[str]) -> None:
        """See `Engine.unsubscribe`."""
        self.connection.send_command(b"UNSUBSCRIBE", *channels)

    async def pushes(self) -> AsyncIterator[Push]:
        """See `Engine.pushes`."""
        async for push in self.connection.push_messages:
            if push[0] == b"message":
                _, channel, payload = push
                assert isinstance(channel, bytes)
                assert isinstance(payload, bytes)
                yield channel, payload

    async def look(self) -> None:
        """Learn which start of the server this is."""
        told = await self._ask(b"INFO", b"server")
        text = told.decode() if isinstance(told, bytes) else str(told)
        self.run = next(line[7:] for line in text.splitlines() if line.startswith("run_id:"))


@attrs.frozen
class Place:
    """Where an engine is."""

    #: A connection that is not open yet.
    connection: Callable[[], BaseConnection]
    #: A stream, if somebody listens there.
    knock: Callable[[], Awaitable[trio.SocketStream]]


@contextlib.asynccontextmanager
async def open_redis(place: Place, patience: float) -> AsyncGenerator[Engine, None]:
    """A connection to the server at `place`, for the length of a block.

    An answer that does not come within `patience` seconds, a connection that is lost, a server that says no: all of
    that leaves the block as `EngineLost`.
    """
    try:
        with trio.fail_after(patience):  # a connection of coredis' that fails to open leaves streams unclosed
            await trio.aclose_forcefully(await place.knock())
        connection = place.connection()
        async with trio.open_nursery() as nursery:
            await nursery.start(connection.run)
            engine = Redis(connection, patience)
            await engine.look()
            yield engine
            nursery.cancel_scope.cancel()
    except BaseException as error:  # noqa: ASYNC103 - what is not the engine's fault is raised again as it is
        fault, rest = _split(error)
        if fault is None or rest is not None:
            raise
        raise EngineLost(str(fault) or type(fault).__name__) from None  # noqa: ASYNC104 - whoever is cancelled, too, sees it next


def _split(error: BaseException) -> tuple[BaseException | None, BaseException | None]:
    """What the engine is to blame for, the first of it, and what else there is."""
    faults = (coredis.exceptions.RedisError, OSError, EngineLost, TimeoutError, trio.TooSlowError)
    if not isinstance(error, BaseExceptionGroup):
        return (error, None) if isinstance(error, faults) else (None, error)
    mine, rest = error.split(faults)
    fault: BaseException | None = mine
    while isinstance(fault, BaseExceptionGroup):
        fault = fault.exceptions[0]
    return fault, None if rest is None else rest.split(trio.Cancelled)[1]


def parse_url(url: str, patience: float) -> Place:
    """``redis://[user:password@]host[:port][/db]``, ``rediss://`` with TLS, or ``unix:///path[?db=n]``.

    ValueError for anything else.
    """
    parts = urlsplit(url)
    options: dict[str, Any] = {
        "connect_timeout": patience,
        "username": parts.username and unquote(parts.username),
        "password": parts.password and unquote(parts.password),
    }
    try:
        if parts.scheme == "unix" and parts.path:
            options["db"] = int(parse_qs(parts.query).get("db", ["0"])[0])
            file = UnixDomainSocketLocation(parts.path)
            return Place(
                partial(UnixDomainSocketConnection, file, **options), partial(trio.open_unix_socket, parts.path)
            )
        if parts.scheme in ("redis", "rediss") and parts.hostname:
            options["db"] = int(parts.path.strip("/") or 0)
            if parts.scheme == "rediss":
                options["ssl_context"] = ssl.create_default_context()
            host, port = parts.hostname, parts.port or 6379
            location = TCPLocation(host, port)
            return Place(partial(TCPConnection, location, **options), partial(trio.open_tcp_stream, host, port))
    except ValueError:
        pass
    raise ValueError(f"an engine is redis://host[:port][/db], rediss://... or unix:///path, not {parts.scheme!r}")
