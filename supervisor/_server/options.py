"""What the embedded server needs to know besides limits, time-outs and policies."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable, Iterable
from typing import Protocol, runtime_checkable

import attrs

from .._words.cluster import ClusterOptions
from .._words.identity import Identity
from .forwarded import Network, networks
from .head import Request

ENGINES = ("trio-websocket", "websockets")
Authenticate = Callable[[Request], Identity | Awaitable[Identity]]


@runtime_checkable
class Revokes(Protocol):
    """An `authenticate` hook that can be told to believe no credential any more that one user has had until now."""

    def revoke(self, user: str) -> None:
        """Forget them."""
        ...


def _origins(origins: Iterable[str]) -> frozenset[str]:
    return frozenset(origins)


@attrs.frozen(kw_only=True)
class Options:
    """Where to listen, and whom to let in. Frozen and validated."""

    host: str = "127.0.0.1"
    """The address to listen on; a host name may stand for several."""
    port: int = attrs.field(default=8765)
    """0 lets the system choose; see `Server.port`."""
    fds: tuple[int, ...] = ()
    """File descriptors of sockets that listen already, instead of ``host`` and ``port``: from systemd, say."""
    engine: str = attrs.field(default=ENGINES[0], validator=attrs.validators.in_(ENGINES))
    """What speaks the WebSocket protocol: ``trio-websocket``, or ``websockets`` (an extra of the same name)."""
    compression: bool = attrs.field(default=False)
    """Compress messages (permessage-deflate) with clients that offer it; engine ``websockets`` only. What a message
    becomes is bounded by ``limits.max_message_size``. Not for what holds secrets beside what others may choose."""
    certfile: str | None = None
    """A TLS certificate chain (PEM) and its key; None serves without TLS."""
    keyfile: str | None = None
    """None means that ``certfile`` holds the key too."""
    ssl_context: ssl.SSLContext | None = attrs.field(default=None, repr=False)
    """Takes precedence over ``certfile``, for those who need more than that."""
    allowed_origins: frozenset[str] = attrs.field(default=frozenset(), converter=_origins)
    """Origins, as ``scheme://host[:port]``, whose pages may connect besides our own."""
    require_origin: bool = False
    """Refuse clients that send no Origin, which are not browsers."""
    allow_anonymous: bool = False
    """Let clients from elsewhere than this machine choose their own user name. Without it, only loopback may."""
    authenticate: Authenticate | None = None
    """Makes an `Identity` of a request, or raises `Unauthorized`; None takes ``?user=`` at its word, see above. A name
    of a wrong length is a `BadRequest`; whatever else it raises is reported as a failure, and answered with 500."""
    forwarded_allow_ips: tuple[Network, ...] = attrs.field(default=(), converter=networks)
    """Proxies, as addresses or networks, whose ``X-Forwarded-For`` and ``-Proto`` are believed; ``*``: any."""
    page: str | None = None
    """A folder whose files are served at ``/``, with an ``index.html``, instead of the live page, which stays at
    ``/page/``. Nothing below it is served. The client for it is ``/page/hub.js``."""
    cluster: ClusterOptions | None = None
    """The other nodes, with which limits, messages and presence are shared; needs the extra ``redis``. None: there are
    none."""
    tracing: bool = False
    """A span for each connection, given to OpenTelemetry's global provider; needs the extra ``opentelemetry``."""
    admin_token: str | None = attrs.field(default=None, repr=False)
    """What ``/api`` asks for as ``Authorization: Bearer``; None lets only loopback in."""

    @admin_token.validator
    def _no_empty_token(self, _: object, value: str | None) -> None:
        if value is not None and not value.strip():
            raise ValueError("admin_token is empty; leave it out to let only this machine in")

    @port.validator
    def _valid_port(self, _: object, value: int) -> None:
        if not 0 <= value <= 65535:
            raise ValueError(f"port must be 0 to 65535, is {value!r}")

    @allowed_origins.validator
    def _valid_origins(self, _: object, value: frozenset[str]) -> None:
        for origin in value:
            if "://" not in origin or origin.endswith("/"):
                raise ValueError(f"an origin is scheme://host[:port] without a path, not {origin!r}")

    @compression.validator
    def _valid_compression(self, _: object, value: object) -> None:
        if value and self.engine == ENGINES[0]:
            raise ValueError(f"the engine {self.engine!r} does not compress")

    @property
    def tls_wanted(self) -> bool:
        """Whether this serves with TLS."""
        return self.ssl_context is not None or self.certfile is not None

    def tls(self) -> ssl.SSLContext | None:
        """The TLS context to serve with; None without TLS. Reads the files, so errors come before anybody connects."""
        if self.ssl_context is not None or self.certfile is None:
            return self.ssl_context
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(self.certfile, self.keyfile)
        return context
