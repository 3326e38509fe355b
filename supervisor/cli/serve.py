"""``serve`` and ``token``. Flags are the fields of the records."""

from __future__ import annotations

import importlib
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from types import ModuleType
from typing import Annotated, Literal

import trio
from cyclopts import Parameter

from .._server.collector import THRESHOLDS, tune_collector
from .._server.options import Authenticate, Options
from .._server.server import Server, serve
from .._words.cluster import ClusterOptions
from .._words.limits import Limits, Policies, Timeouts
from .._words.profiles import choose_profile
from .app import app
from .handlers import find_handler
from .log import log_to_stderr
from .workers import run_workers


def find_authenticator(
    secret: str | None, keys: str | None, algorithms: tuple[str, ...], audience: str | None, issuer: str | None
) -> Authenticate | None:
    """What judges tokens, if that is wanted. ValueError for what cannot be."""
    if secret is keys is audience is issuer is None and not algorithms:
        return None
    tokens = import_tokens()
    rules = tokens.ClaimRules(audience=audience, issuer=issuer)
    authenticator: Authenticate = tokens.JwtAuthenticator(secret=secret, keys=keys, algorithms=algorithms, rules=rules)
    return authenticator


def import_tokens() -> ModuleType:
    """What knows JSON Web Tokens; it needs what not everybody has."""
    try:
        return importlib.import_module("supervisor._server.tokens")
    except ImportError as missing:
        raise ValueError(f"tokens need an extra: pip install 'websocket-supervisor[jwt]' ({missing})") from missing


@app.command(name="token")
def token_command(user: str, *, jwt_secret: str, session: str | None = None, seconds: float = 3600.0) -> None:
    """Print a JSON Web Token, for development: whoever has it is this user, until it expires.

    Parameters
    ----------
    user
        Whose token it is (sub).
    jwt_secret
        What the server has been given as --jwt-secret; better as WS_SUPERVISOR_JWT_SECRET, which no list of processes
        shows.
    session
        Of which session (sid).
    seconds
        How long it is good for.
    """
    token = import_tokens().issue(jwt_secret, user, session=session, seconds=seconds, now=time.time())
    print(token)


@app.command(name="serve")
def serve_command(
    *,
    app: str = "hub",
    host: str = "127.0.0.1",
    port: int = 8765,
    workers: int = 1,
    fd: tuple[int, ...] = (),
    engine: Literal["trio-websocket", "websockets"] = "trio-websocket",
    compression: bool = False,
    certfile: str | None = None,
    keyfile: str | None = None,
    allowed_origins: tuple[str, ...] = (),
    require_origin: bool = False,
    allow_anonymous: bool = False,
    forwarded_allow_ips: tuple[str, ...] = (),
    page: str | None = None,
    admin_token: str | None = None,
    tracing: bool = False,
    redis_url: str | None = None,
    redis_prefix: str = "ws-supervisor:",
    without_redis: Literal["local", "refuse"] = "local",
    node_lease: float = 5.0,
    jwt_secret: str | None = None,
    jwt_keys: str | None = None,
    jwt_algorithms: tuple[str, ...] = (),
    jwt_audience: str | None = None,
    jwt_issuer: str | None = None,
    env: str | None = None,
    log_format: Literal["text", "json"] = "text",
    log_level: Literal["debug", "info", "warning", "error"] = "info",
    limits: Annotated[Limits, Parameter(name="*", group="Limits")] = Limits(),
    timeouts: Annotated[Timeouts, Parameter(name="*", group="Timeouts, in seconds")] = Timeouts(),
    policies: Annotated[Policies, Parameter(name="*", group="Policies")] = Policies(),
) -> None:
    """Serve until told to stop: SIGTERM drains, a second one cuts.

    Every flag is also an environment variable: WS_SUPERVISOR_PER_USER for --per-user.

    Parameters
    ----------
    app
        What connections are given to: hub, echo, or package.module:handler.
    host
        The address to listen on.
    port
        The port to listen on; 0 lets the system choose.
    workers
        Processes on this port, each of them a node; needs --redis-url.
    fd
        Sockets that listen already, as file descriptors, instead of --host and --port. May be repeated.
    engine
        What speaks the WebSocket protocol.
    compression
        Compress messages with clients that offer it; with the engine websockets only.
    certfile
        A TLS certificate chain (PEM).
    keyfile
        Its key, if that is not in the same file.
    allowed_origins
        Origins whose pages may connect besides our own: scheme://host[:port]. May be repeated.
    require_origin
        Refuse clients that send no Origin, which are not browsers.
    allow_anonymous
        Believe ?user= from anywhere, not only from this machine.
    forwarded_allow_ips
        Proxies whose X-Forwarded-For and X-Forwarded-Proto are believed: addresses or networks, * for all. May be
        repeated.
    page
        A folder whose files are served at / instead of the live page, which stays at /page/.
    admin_token
        What /api asks for as a bearer token; without it, only this machine may ask.
    tracing
        A span for each connection, given to OpenTelemetry's global provider (see opentelemetry-instrument).
    redis_url
        Share limits, messages and presence with all other servers that are given the same one: redis://host[:port][/db],
        rediss://..., or unix:///path.
    redis_prefix
        What the keys there begin with, for several clusters that share one.
    without_redis
        While it cannot be reached: let newcomers in by the limits of this node alone, or refuse them.
    node_lease
        Seconds after which a server that is not heard of is lost, and its seats are free.
    jwt_secret
        Let in whoever has a JSON Web Token signed with this secret; at least 32 bytes. See the command token.
    jwt_keys
        Or signed by one of these keys: a file with a public key (PEM) or a JWK set, or the URL of a JWK set.
    jwt_algorithms
        The algorithms that tokens may be signed by; HS256 for a secret, RS256, PS256, ES256 and EdDSA for keys. May be
        repeated.
    jwt_audience
        Whom tokens must be for (aud).
    jwt_issuer
        Whom tokens must be from (iss).
    env
        The environment profile: development, test, ci, staging or production.
    log_format
        Lines of text, or of JSON.
    log_level
        The least that is worth a line.
    """
    log_to_stderr(log_format, log_level)
    if workers < 1 or (workers > 1 and redis_url is None):
        raise ValueError(
            "--workers is at least 1, and more than one need --redis-url, by which they share their limits"
        )
    if workers > 1:
        sys.exit(run_workers(workers, host, port))
    options = Options(
        host=host,
        port=port,
        fds=fd,
        engine=engine,
        compression=compression,
        certfile=certfile,
        keyfile=keyfile,
        allowed_origins=allowed_origins,
        require_origin=require_origin,
        allow_anonymous=allow_anonymous,
        forwarded_allow_ips=forwarded_allow_ips,
        page=page,
        admin_token=admin_token,
        tracing=tracing,
        cluster=None
        if redis_url is None
        else ClusterOptions(
            url=redis_url,
            lease=node_lease,
            patience=min(1.0, node_lease / 2),
            without=without_redis,
            prefix=redis_prefix,
        ),
        authenticate=find_authenticator(jwt_secret, jwt_keys, jwt_algorithms, jwt_audience, jwt_issuer),
    )
    profile = choose_profile(env)
    served = partial(serve, find_handler(app), options, limits=limits, timeouts=timeouts, policies=policies)
    trio.run(_announce, partial(served, profile=profile), options.tls() is not None)


async def _announce(served: Callable[..., Awaitable[None]], secure: bool) -> None:  # noqa: FBT001 - trio.run passes by position
    """Serve, and say where once somebody can connect."""
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(served)
        tune_collector()
        log = logging.getLogger("supervisor")
        log.info("serving on %s://%s/", "https" if secure else "http", server.address)
        log.info("the cycle collector is tuned: thresholds %s", THRESHOLDS)
