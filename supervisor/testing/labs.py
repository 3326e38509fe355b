"""Where subjects are made: in memory on virtual time, on real sockets, or somewhere else, as they are."""

from __future__ import annotations

import contextlib
import math
import ssl
import weakref
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterator, Mapping
from functools import partial
from typing import Any, ClassVar, TypeVar
from urllib.parse import quote, urlsplit

import attrs
import trio

from .._mechanisms.connection import Connection
from .._mechanisms.supervisor import Handler, Supervisor, open_supervisor
from .._server.hub import hub
from .._server.options import Options
from .._server.server import Server, serve
from .._words.closing import CloseReason
from .._words.errors import NotFound, Refused
from .._words.identity import Identity
from .._words.limits import Limits
from .._words.profiles import choose_profile
from . import client, schedule
from .leaks import LeakTracker
from .subject import Finding, NotHere, Settings, expect
from .wire import FaultWire, Peer

T = TypeVar("T")


async def _within(seconds: float, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
    try:
        with trio.fail_after(seconds):
            return await async_fn(*args)
    except trio.TooSlowError:
        raise Finding(f"nothing happens any more: not done after {seconds:g} s") from None


# -- ours, in memory ---------------------------------------------------------------------------------------------


@attrs.define(eq=False)
class MemoryClient:
    """A client of a supervisor in memory: the peer's side of a fault wire."""

    wire: FaultWire
    status: int = 0
    text: str = ""
    code: int | None = None
    known: trio.Event = attrs.field(factory=trio.Event)
    ended: trio.Event = attrs.field(factory=trio.Event)

    @property
    def refused(self) -> bool:
        """See `Client.refused`."""
        return self.status != 101

    async def say(self, message: str | bytes) -> None:
        """See `Client.say`."""
        self.wire.deliver(message)
        await trio.lowlevel.checkpoint()

    async def over(self) -> int:
        """See `Client.over`."""
        await self.ended.wait()
        assert self.code is not None
        return self.code

    async def leave(self) -> None:
        """See `Client.leave`."""
        self.wire.hang_up()
        await self.ended.wait()

    def vanish(self) -> None:
        """See `Client.vanish`."""
        self.wire.hang_up(CloseReason.PEER_LOST)


@attrs.frozen
class Seen:
    """The connections that a handler has been given, and that something still holds."""

    _refs: list[weakref.ref[Connection]] = attrs.field(factory=list, init=False)

    def by(self, handler: Handler) -> Handler:
        """`handler`, whose connections are seen from now on."""

        async def seeing(conn: Connection) -> None:
            self._refs.append(weakref.ref(conn))
            await handler(conn)

        return seeing

    def __iter__(self) -> Iterator[Connection]:
        return (conn for ref in self._refs if (conn := ref()) is not None)


@attrs.define(eq=False)
class Supervised:
    """A supervisor in this process, whoever lets people in to it."""

    limits: Limits
    supervisor: Supervisor
    tracker: LeakTracker
    seen: Seen = attrs.field(factory=Seen)

    async def count(self, user: str | None = None) -> int:
        """See `Subject.count`."""
        await trio.lowlevel.checkpoint()
        return len(self.supervisor.connections(user=user))

    async def census(self) -> Mapping[str, int]:
        """See `Subject.census`."""
        await trio.lowlevel.checkpoint()
        orphans = self.supervisor.audit()
        expect(not orphans, f"{len(orphans)} orphans: {'; '.join(orphans[:3])}")
        figures = self.supervisor.statistics()
        names = ("connections", "users", "rooms", "waiting", "leaving", "closing", "stuck", "seats")
        return {name: getattr(figures, name) for name in names}

    async def disconnect(self, user: str, session: str | None = None) -> int:
        """See `Subject.disconnect`."""
        try:
            return len(await self.supervisor.disconnect_user(user, session=session))
        except NotFound:
            return 0

    def held(self) -> tuple[Connection, ...]:
        """The connections that are gone, and that something still holds."""
        return tuple(conn for conn in self.seen if conn.closed is not None)


@attrs.define(eq=False)
class InMemory(Supervised):
    """Its clients are fault wires."""

    handler: Handler = attrs.field(kw_only=True)
    callers: trio.Nursery = attrs.field(kw_only=True)

    async def connect(self, user: str, *, session: str | None = None, peer: Peer = Peer.HEALTHY) -> MemoryClient:
        """See `Subject.connect`."""
        guest = MemoryClient(FaultWire(peer))
        self.callers.start_soon(self._supervise, guest, Identity(user=user, session=session))
        await guest.known.wait()
        return guest

    async def _supervise(self, guest: MemoryClient, identity: Identity) -> None:
        async def handler(conn: Connection) -> None:
            guest.status = 101
            guest.known.set()
            await self.seen.by(self.handler)(conn)

        try:
            conn = await self.supervisor.start(guest.wire, identity, handler)
            await conn.wait_gone()
            assert conn.end is not None
            guest.status, guest.code, guest.text = 101, conn.end.code, conn.end.text
        except Refused as refusal:
            guest.status, guest.code, guest.text = refusal.status, refusal.reason.code, str(refusal)
        finally:
            guest.known.set()
            guest.ended.set()


def _records(settings: Settings) -> dict[str, Any]:
    """As a supervisor takes them; without background tasks, its audit never comes again."""
    profile = choose_profile()
    if not settings.background:
        profile = attrs.evolve(profile, audit_interval=math.inf)
    records = {name: getattr(settings, name) for name in ("limits", "timeouts", "policies")}
    return {**records, "profile": profile}


@attrs.frozen
class Memory:
    """Supervisors on virtual time, and fault wires."""

    handler: Handler = hub
    door: ClassVar[str] = "memory"

    def run(self, seed: int, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """See `Lab.run`. Whoever does not come to an end in a week of virtual time never will."""
        return schedule.run(seed, partial(_within, 7 * 86400, async_fn, *args), instruments=[])

    @contextlib.asynccontextmanager
    async def open(self, settings: Settings = Settings()) -> AsyncGenerator[InMemory, None]:
        """See `Lab.open`."""
        async with trio.open_nursery() as callers, open_supervisor(**_records(settings)) as supervisor:
            tracker = LeakTracker(settings.timeouts.close)
            supervisor.subscribe(tracker)
            yield InMemory(settings.limits, supervisor, tracker, handler=self.handler, callers=callers)


# -- ours, on sockets --------------------------------------------------------------------------------------------


@attrs.define
class Guests:
    """Those who have come over sockets: held, so that none of them goes before it is told to."""

    clients: list[client.WebSocketClient] = attrs.field(factory=list)

    def __enter__(self) -> Guests:
        return self

    def __exit__(self, *_: object) -> None:
        for guest in self.clients:
            guest.vanish()

    def hold(self, guest: client.WebSocketClient) -> client.WebSocketClient:
        """Hold one more, and let go of those who have left."""
        self.clients = [other for other in self.clients if other.code is None]
        if not guest.refused:
            self.clients.append(guest)
        return guest


@attrs.define(eq=False)
class OnSockets(Supervised):
    """A server in this process; its clients come over the loopback."""

    url: str = attrs.field(kw_only=True)
    guests: Guests = attrs.field(kw_only=True)

    async def connect(
        self, user: str, *, session: str | None = None, peer: Peer = Peer.HEALTHY
    ) -> client.WebSocketClient:
        """See `Subject.connect`."""
        url = _url_for(self.url, user, session)
        return self.guests.hold(await client.connect(url, receive_buffer=_window(peer)))


def _url_for(url: str, user: str, session: str | None) -> str:
    query = f"user={quote(user)}" + (f"&session={quote(session)}" if session is not None else "")
    return f"{url}{'&' if urlsplit(url).query else '?'}{query}"


def _window(peer: Peer) -> int | None:
    """A client of ours is mute, and never reads, simply by being left alone."""
    if peer in (Peer.HEALTHY, Peer.MUTE):
        return None
    if peer is Peer.NEVER_READS:
        return 4096
    raise NotHere(f"on sockets nobody {peer.value}")


@attrs.frozen
class Sockets:
    """Real servers, real sockets, real time."""

    handler: Handler = hub
    door: ClassVar[str] = "sockets"

    def run(self, seed: int, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """See `Lab.run`; real sockets keep to no schedule, and two minutes are enough for each check."""
        return trio.run(partial(_within, 120, async_fn, *args))

    @contextlib.asynccontextmanager
    async def open(self, settings: Settings = Settings()) -> AsyncGenerator[OnSockets, None]:
        """See `Lab.open`."""
        seen = Seen()
        async with trio.open_nursery() as nursery:
            served = partial(serve, seen.by(self.handler), Options(port=0), signals=False, **_records(settings))
            server: Server = await nursery.start(served)
            tracker = LeakTracker(settings.timeouts.close)
            server.supervisor.subscribe(tracker)
            with Guests() as guests:
                url = f"ws://{server.address}/ws"
                yield OnSockets(settings.limits, server.supervisor, tracker, seen, url=url, guests=guests)
            nursery.cancel_scope.cancel()


# -- somebody's, somewhere ---------------------------------------------------------------------------------------


@attrs.define(eq=False)
class Far:
    """A server of which only the doors are known: ``/ws``, and ``/api`` for those who have its token."""

    url: str
    token: str | None
    limits: Limits
    ssl_context: ssl.SSLContext | None
    guests: Guests

    async def connect(
        self, user: str, *, session: str | None = None, peer: Peer = Peer.HEALTHY
    ) -> client.WebSocketClient:
        """See `Subject.connect`."""
        url = _url_for(self.url, user, session)
        guest = await client.connect(
            url, headers=self.headers, ssl_context=self.ssl_context, receive_buffer=_window(peer)
        )
        return self.guests.hold(guest)

    @property
    def headers(self) -> dict[str, str]:
        """What shows who is asking."""
        return {} if self.token is None else {"Authorization": f"Bearer {self.token}"}

    async def count(self, user: str | None = None) -> int:
        """See `Subject.count`."""
        if user is None:
            return int((await self.census())["connections"])
        return int((await self._ask("GET", f"/api/connections?user={quote(user)}"))["total"])

    async def census(self) -> Mapping[str, int]:
        """See `Subject.census`; of a server that others use too, this is more than nothing."""
        figures = await self._ask("GET", "/api/statistics")
        return {name: figures[name] for name in ("connections", "users", "rooms", "leaving", "closing", "stuck")}

    async def disconnect(self, user: str, session: str | None = None) -> int:
        """See `Subject.disconnect`."""
        body = {"user": user} if session is None else {"user": user, "session": session}
        answer = await self._ask("POST", "/api/disconnect", body, missing=True)
        return int(answer.get("closed", 0))

    async def _ask(self, method: str, path: str, body: Any = None, *, missing: bool = False) -> Any:
        target = urlsplit(self.url)
        scheme = "https" if target.scheme == "wss" else "http"
        url = f"{scheme}://{target.netloc}{path}"
        status, answer = await client.request(method, url, body, headers=self.headers, ssl_context=self.ssl_context)
        if status in (401, 403):
            raise NotHere(f"{path} wants another token")
        if status != 200 and not (missing and status == 404):
            raise Finding(f"{method} {path} answers {status}: {answer}")
        return answer


@attrs.frozen
class Deployed:
    """One server, as it is, wherever it is."""

    url: str
    token: str | None = attrs.field(default=None, repr=False)
    ssl_context: ssl.SSLContext | None = None
    door: ClassVar[str] = "deployed"

    def run(self, seed: int, async_fn: Callable[..., Awaitable[T]], *args: Any) -> T:
        """See `Lab.run`; two minutes are enough for each check."""
        return trio.run(partial(_within, 120, async_fn, *args))

    @contextlib.asynccontextmanager
    async def open(self, settings: Settings = Settings()) -> AsyncGenerator[Far, None]:
        """See `Lab.open`: its settings are its own, and only the defaults can be asked for."""
        if settings != Settings():
            raise NotHere("its settings cannot be changed from here")
        with Guests() as guests:
            far = Far(self.url, self.token, settings.limits, self.ssl_context, guests)
            try:
                figures = await far._ask("GET", "/api/statistics")
            except (OSError, ValueError) as error:
                raise NotHere(f"nobody answers as a supervisor does: {error}") from error
            far.limits = Limits(per_user=figures["per_user_limit"], total=figures["total_limit"])
            yield far
