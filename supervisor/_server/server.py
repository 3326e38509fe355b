"""The server: one port for WebSocket, HTTP and the page; sockets in, connections of a supervisor out."""

from __future__ import annotations

import contextlib
import importlib.resources
import inspect
from collections.abc import Callable

import attrs
import trio

from .._engines.trio_websocket import TrioWebSocket
from .._mechanisms.supervisor import Handler, Supervisor, open_supervisor
from .._words.closing import CloseReason
from .._words.errors import NotFound, Refused
from .._words.identity import Identity
from .._words.limits import Limits, Policies, Timeouts
from .._words.profiles import Profile
from .accept import accept_forever
from .api import MethodNotAllowed, answer_api
from .exchange import Exchange
from .head import Request, Upgrade, judge_upgrade
from .health import not_ready
from .hub import hub
from .identify import identify_anonymous
from .lobby import Lobby
from .options import Options
from .signals import Shutdown, watch_signals

_PAGE = {
    "/": ("page.html", "text/html; charset=utf-8"),
    "/page.css": ("page.css", "text/css; charset=utf-8"),
    "/page.svg": ("page.svg", "image/svg+xml"),
    "/page.js": ("page.js", "text/javascript; charset=utf-8"),
}
_PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'",
    "Referrer-Policy": "no-referrer",
}


@attrs.define(eq=False)
class Server:
    """A running server. `nursery.start(serve, ...)` returns one."""

    supervisor: Supervisor
    handler: Handler
    options: Options
    listeners: list[trio.SocketListener]
    shutdown: Shutdown

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
        try:
            if request.path == "/ws":
                await self._upgrade(exchange, request, known)
                return True
            known()
            await self._answer(exchange, request)
        except NotFound as nothing:
            await exchange.answer_json(404, {"error": "not_found", "detail": str(nothing)})
        except Refused as refusal:
            await exchange.refuse(refusal)
        return False

    async def failed(self, exchange: Exchange, exception: Exception) -> None:
        """One request has failed, by our own doing: say so, here and there."""
        self.supervisor.report("request", exception)
        await exchange.answer_json(500, {"error": "failed", "detail": "internal error"})

    async def _upgrade(self, exchange: Exchange, request: Request, known: Callable[[], None]) -> None:
        """Judge, identify, admit; everything that is refused is refused here, before the upgrade."""
        options = self.options
        upgrade = judge_upgrade(
            request,
            trailing=exchange.trailing,
            allowed_origins=options.allowed_origins,
            require_origin=options.require_origin,
        )
        identity = None
        with trio.move_on_after(self.supervisor.timeouts.handshake):
            identity = await self._identify(request)
        if identity is None:
            raise Unavailable("it took too long to say who this is")
        known()
        await self.supervisor.start(self._wire(exchange, upgrade), identity, self.handler)

    async def _identify(self, request: Request) -> Identity:
        authenticate = self.options.authenticate
        if authenticate is None:
            return identify_anonymous(request, allow_anonymous=self.options.allow_anonymous)
        answer = authenticate(request)
        return await answer if inspect.isawaitable(answer) else answer

    def _wire(self, exchange: Exchange, upgrade: Upgrade) -> TrioWebSocket:
        limits = self.supervisor.limits
        return TrioWebSocket(
            exchange.stream,
            exchange.peer,
            upgrade.key,
            upgrade.subprotocol,
            limits.max_message_size,
            limits.max_fragments,
            self.supervisor.timeouts.write_progress,
        )

    async def _answer(self, exchange: Exchange, request: Request) -> None:
        if request.path.startswith("/api/"):
            status, body = await answer_api(self.supervisor, self.options, exchange, request)
            await exchange.answer_json(status, body)
        elif request.method not in ("GET", "HEAD"):
            raise MethodNotAllowed(f"{request.path} is for GET")
        elif request.path == "/healthz":
            await exchange.answer_json(200, {"status": "ok"})
        elif request.path == "/readyz":
            complaints = not_ready(self.supervisor)
            status = 503 if complaints else 200
            await exchange.answer_json(status, {"ready": not complaints, "because": list(complaints)})
        elif request.path in _PAGE:
            name, content_type = _PAGE[request.path]
            content = importlib.resources.files(__package__).joinpath(name).read_bytes()
            await exchange.answer(200, content, {"Content-Type": content_type, **_PAGE_HEADERS})
        else:
            raise NotFound(f"nothing at {request.path!r}")


class Unavailable(Refused):
    """Our own side was too slow."""

    reason = CloseReason.OVERLOAD
    status = 503
    retry_after = 1.0


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
    listeners = await trio.open_tcp_listeners(options.port, host=options.host)
    shutdown = Shutdown(timeouts)
    try:
        with watch_signals(shutdown) if signals else contextlib.nullcontext():
            async with (
                open_supervisor(limits=limits, timeouts=timeouts, policies=policies, profile=profile) as supervisor,
                trio.open_nursery() as nursery,
            ):
                server = Server(supervisor, handler, options, listeners, shutdown)
                lobby = Lobby(limits.lobby, timeouts.handshake, tls, server.dispatch, server.failed)
                for listener in listeners:
                    nursery.start_soon(accept_forever, listener, lobby, nursery, timeouts)
                task_status.started(server)
                await shutdown.wait(supervisor)
                nursery.cancel_scope.cancel()
    finally:
        for listener in listeners:
            listener.socket.close()
