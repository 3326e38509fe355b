"""The server: one port for WebSocket, HTTP and the page; sockets in, connections of a supervisor out."""

from __future__ import annotations

import contextlib
import inspect
import socket
from collections.abc import AsyncGenerator, Callable
from functools import partial
from typing import TYPE_CHECKING

import attrs
import trio

from .._decisions.bulletin import Subscriber
from .._decisions.rates import RateBook
from .._engines.ear import open_ear
from .._engines.link import Stream
from .._engines.trio_websocket import TrioWebSocket
from .._mechanisms.recorder import Recorder
from .._mechanisms.supervisor import Handler, Supervisor, open_supervisor
from .._words.errors import BadRequest, NotFound, RateLimited, Refused, Unavailable
from .._words.events import Event, LimitsChanged, TurnedAway
from .._words.identity import Identity, InvalidName
from .._words.limits import Limits, Policies, Timeouts
from .._words.profiles import Profile
from .._words.upgrade import Upgrade
from .._words.wire import Wire
from .accept import accept_forever
from .api import Api, MethodNotAllowed, authorize, parse_body
from .credentials import carrying
from .elsewhere import Elsewhere
from .everywhere import Everywhere
from .exchange import Exchange
from .feed import Feed
from .forwarded import behind_proxies, group_of
from .head import Request, judge_upgrade
from .health import not_ready
from .hub import hub
from .identify import identify_anonymous, takeover
from .lobby import Lobby
from .options import ENGINES, Options, Revokes
from .pages import Pages
from .pressure import Pressure
from .signals import Shutdown, watch_signals

if TYPE_CHECKING:
    from .._cluster.cluster import Cluster
    from .metrics import Metrics
    from .tracing import Tracing

#: Makes a wire of a stream, its peer's address, what was agreed on, limits and ``timeouts.write_progress``.
Engine = Callable[[Stream, str, Upgrade, Limits, float], Wire]


@attrs.define(eq=False)
class Server:
    """A running server. `nursery.start(serve, ...)` returns one."""

    supervisor: Supervisor
    handler: Handler
    options: Options
    listeners: list[trio.SocketListener]
    shutdown: Shutdown
    engine: Engine
    #: Attempts from each address; None without ``limits.connect_rate_address``.
    attempts: RateBook | None
    #: What ``/metrics`` answers; None without its extra.
    metrics: Metrics | None = None
    pressure: Pressure = attrs.field(factory=Pressure)
    recorder: Recorder = attrs.field(factory=Recorder)
    cluster: Cluster | None = None
    elsewhere: Elsewhere | None = attrs.field(init=False)
    feed: Feed = attrs.field(init=False)
    everywhere: Everywhere = attrs.field(init=False)
    pages: Pages = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self.elsewhere = None if self.cluster is None else Elsewhere(self.supervisor, self.cluster)
        self.feed = Feed(self.supervisor, self.elsewhere)
        self.everywhere = Everywhere(Api(self.supervisor, self.recorder), self.cluster, self.elsewhere)
        self.pages = Pages(self.options.page)

    @property
    def port(self) -> int:
        """The port it listens on, also if it was chosen by the system."""
        return int(self.listeners[0].socket.getsockname()[1])

    @property
    def address(self) -> str:
        """Where it listens, as ``host:port``."""
        host = self.options.host
        return f"[{host}]:{self.port}" if ":" in host else f"{host}:{self.port}"

    def stop(self) -> None:
        """Drain, then end: what SIGTERM does. A second call cuts. `serve` returns afterwards."""
        self.shutdown.signal()

    async def dispatch(self, exchange: Exchange, request: Request, known: Callable[[], None]) -> bool:
        """Do what one request wants, and call `known` when it is known who wants it.

        True if its socket now belongs to a connection.
        """
        request = behind_proxies(request, self.options.forwarded_allow_ips)
        try:
            if request.path != "/ws":
                known()
                await self._answer(exchange, request)
                return False
            upgrade, identity = await self._identify(exchange, request)
        except NotFound as nothing:
            await exchange.answer_json(404, {"error": "not_found", "detail": str(nothing)})
            return False
        except Refused as refusal:
            self.turned_away(request.peer, refusal, request.id)
            await exchange.refuse(refusal)
            return False
        known()
        return await self._admit(exchange, self._wire(exchange, request.peer, upgrade), identity)

    async def _admit(self, exchange: Exchange, wire: Wire, identity: Identity) -> bool:
        try:
            await self.supervisor.start(wire, identity, self.handler)
        except Refused as refusal:  # before the upgrade, so over HTTP
            await exchange.refuse(refusal)
            return False
        return True

    def turned_away(self, peer: str, refusal: Refused, request: str | None = None) -> None:
        """A request is refused before it is known whose it is."""
        self.supervisor.post(
            TurnedAway(
                at=trio.current_time(),
                peer=peer,
                status=refusal.status,
                error=refusal.error,
                text=str(refusal),
                request=request,
            )
        )

    async def failed(self, exchange: Exchange, exception: Exception) -> None:
        """One request has failed, by our own doing: say so, here and there."""
        self.supervisor.report("request", exception)
        await exchange.answer_json(500, {"error": "failed", "detail": "internal error"})

    async def _identify(self, exchange: Exchange, request: Request) -> tuple[Upgrade, Identity]:
        """What the request wants, and whose it is; nothing that costs anything is done for who comes too often."""
        options = self.options
        if self.pressure.high():
            raise Unavailable("memory is about to run out")
        if self.attempts is not None:
            retry_after = self.attempts.spend(group_of(request.peer), trio.current_time())
            if retry_after:
                raise RateLimited(f"address {request.peer}", self.attempts.rate, retry_after)
        upgrade = judge_upgrade(
            request,
            trailing=exchange.trailing,
            allowed_origins=options.allowed_origins,
            require_origin=options.require_origin,
        )
        identity = await self._authenticate(request)
        return upgrade, attrs.evolve(
            identity,
            request=identity.request or request.id,
            takes_over=identity.takes_over or takeover(request),
        )

    async def _authenticate(self, request: Request) -> Identity:
        """Whose request it is, in as much time as a handshake has."""
        authenticate = self.options.authenticate
        try:
            if authenticate is None:
                return identify_anonymous(request, allow_anonymous=self.options.allow_anonymous)
            answer = authenticate(request)
            if not inspect.isawaitable(answer):
                return answer
            with trio.move_on_after(self.supervisor.timeouts.handshake):
                return await answer
        except InvalidName as error:
            raise BadRequest(str(error)) from None
        raise Unavailable("it took too long to say who this is")

    async def identify(self, token: str, peer: str) -> Identity:
        """See `Authority.identify`."""
        return await self._authenticate(carrying(token, peer, secure=self.options.tls_wanted))

    def revoke(self, user: str) -> None:
        """See `Authority.revoke`; a hook that has a method ``revoke(user)`` is told."""
        hook: object = self.options.authenticate
        if isinstance(hook, Revokes):
            hook.revoke(user)

    def follow(self, event: Event) -> None:
        """A subscriber: other limits are other limits for addresses, too."""
        if isinstance(event, LimitsChanged) and event.before.connect_rate_address != event.after.connect_rate_address:
            self.attempts = RateBook.of(event.after.connect_rate_address)

    def _wire(self, exchange: Exchange, peer: str, upgrade: Upgrade) -> Wire:
        supervisor = self.supervisor
        return self.engine(
            exchange.stream,
            peer,
            upgrade,
            supervisor.limits,
            supervisor.timeouts.write_progress,
        )

    async def _expose(self, exchange: Exchange, request: Request) -> None:
        if self.metrics is None:
            raise NotFound("metrics need an extra: pip install 'websocket-supervisor[metrics]'")
        body, content_type = self.metrics.expose(request.header("accept") or "")
        await exchange.answer(200, body, {"Content-Type": content_type})

    async def _answer(self, exchange: Exchange, request: Request) -> None:
        if request.path == "/metrics" or request.path.startswith("/api/"):
            authorize(request, self.options)
        if request.path == "/metrics":
            if request.method not in ("GET", "HEAD"):
                raise MethodNotAllowed(request.path, "GET")
            await self._expose(exchange, request)
        elif request.path == "/api/events":
            if request.method != "GET":
                raise MethodNotAllowed(request.path, "GET")
            await self.feed.show(exchange)
        elif request.path.startswith("/api/"):
            given = parse_body(await exchange.read_body()) if request.method == "POST" else {}
            status, body = await self.everywhere.answer(request, given)
            await exchange.answer_json(status, body)
        elif request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(request.path, "GET")
        elif request.path == "/healthz":
            await exchange.answer_json(200, {"status": "ok"})
        elif request.path == "/readyz":
            complaints = not_ready(self.supervisor)
            status = 503 if complaints else 200
            await exchange.answer_json(status, {"ready": not complaints, "because": list(complaints)})
        else:
            await exchange.answer(200, *self.pages.find(request.path))


def open_tracing(options: Options) -> tuple[Tracing, ...]:
    """The subscriber for spans, if they are wanted. ValueError if what it needs is not installed."""
    if not options.tracing:
        return ()
    try:
        from .tracing import Tracing
    except ImportError as missing:
        needed = "pip install 'websocket-supervisor[opentelemetry]'"
        raise ValueError(f"tracing needs an extra: {needed}") from missing
    return (Tracing(),)


def open_metrics(supervisor: Supervisor) -> Metrics | None:
    """What ``/metrics`` answers; None without the extra ``metrics``."""
    try:
        from .metrics import Metrics
    except ImportError:
        return None
    return Metrics(supervisor)


async def open_listeners(options: Options) -> list[trio.SocketListener]:
    """Sockets that listen: our own, or those that we have inherited."""
    if not options.fds:
        return await trio.open_tcp_listeners(options.port, host=options.host)
    inherited = [socket.socket(fileno=fd) for fd in options.fds]
    return [trio.SocketListener(trio.socket.from_stdlib_socket(sock)) for sock in inherited]


@contextlib.asynccontextmanager
async def open_nodes(supervisor: Supervisor, options: Options) -> AsyncGenerator[Cluster | None, None]:
    """Be one of several nodes, if that is wanted. ValueError if what it needs is not installed."""
    if options.cluster is None:
        yield None
        return
    try:
        from .._cluster.cluster import open_cluster
    except ImportError as missing:
        raise ValueError("several nodes need an extra: pip install 'websocket-supervisor[redis]'") from missing
    async with open_cluster(supervisor, options.cluster) as cluster:
        yield cluster


@contextlib.asynccontextmanager
async def open_engine(name: str, *, compression: bool = False) -> AsyncGenerator[Engine, None]:
    """What makes wires. ValueError if what it needs is not installed."""
    if name == ENGINES[0]:
        yield TrioWebSocket
        return
    try:
        from .._engines.sans_io import SansIo
    except ImportError as missing:
        raise ValueError(f"this engine needs an extra: pip install 'websocket-supervisor[{name}]'") from missing
    async with open_ear() as ear:
        yield partial(SansIo, ear=ear, compression=compression)


async def serve(
    handler: Handler = hub,
    options: Options = Options(),
    *,
    limits: Limits = Limits(),
    timeouts: Timeouts = Timeouts(),
    policies: Policies = Policies(),
    profile: Profile | None = None,
    signals: bool = True,
    task_status: trio.TaskStatus[Server] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve WebSocket connections on ``/ws``, each one supervised and given to `handler`, until told to stop.

    With `signals`, SIGTERM and SIGINT are told to stop: the first drains (nobody is admitted, connections get 1012,
    at most ``timeouts.drain``), a second cuts. If stuck handlers keep the process from ending for ``timeouts.exit``
    longer, it reports them and exits with status 1. Signals can only be watched in the main thread; pass False for
    a server that is a part of something larger, and call `Server.stop`.

    ``await nursery.start(serve, handler)`` returns the `Server` once it listens. Cancelled, it closes everything
    within ``timeouts.close`` (1001), stuck handlers excepted. Raises OSError if it cannot listen, ssl.SSLError for a
    bad certificate.
    """
    tls = options.tls()
    listeners = await open_listeners(options)
    shutdown = Shutdown(timeouts)
    try:
        with watch_signals(shutdown) if signals else contextlib.nullcontext():
            async with (
                open_engine(options.engine, compression=options.compression) as engine,
                open_supervisor(limits=limits, timeouts=timeouts, policies=policies, profile=profile) as supervisor,
                open_nodes(supervisor, options) as cluster,
                trio.open_nursery() as nursery,
            ):
                metrics = open_metrics(supervisor)
                if metrics is not None:
                    nursery.start_soon(metrics.watch_lag, name="lag")
                attempts = RateBook.of(limits.connect_rate_address)
                server = Server(
                    supervisor, handler, options, listeners, shutdown, engine, attempts, metrics, cluster=cluster
                )
                subscribers: list[Subscriber] = [server.recorder, server.feed, server.follow, *open_tracing(options)]
                for subscriber in subscribers:
                    supervisor.subscribe(subscriber)
                nursery.start_soon(server.feed.run, name="feed")
                if server.elsewhere is not None:
                    supervisor.subscribe(server.elsewhere)
                    nursery.start_soon(server.feed.watch_others, server.elsewhere, name="elsewhere")
                if options.authenticate is not None:
                    supervisor.authority = server
                lobby = Lobby(
                    lambda: supervisor.limits.lobby,
                    timeouts.handshake,
                    tls,
                    server.dispatch,
                    server.turned_away,
                    server.failed,
                )
                for listener in listeners:
                    nursery.start_soon(accept_forever, listener, lobby, nursery, timeouts)
                task_status.started(server)
                await shutdown.wait(supervisor)
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.socket.close()
