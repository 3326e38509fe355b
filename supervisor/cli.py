"""The command line: ``ws-supervisor`` and ``python -m supervisor``. Flags are the fields of the records."""

from __future__ import annotations

import faulthandler
import importlib
import json
import logging
import sys
import time
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Annotated, Literal

import trio

from . import __version__
from ._mechanisms.supervisor import Handler
from ._server.collector import THRESHOLDS, tune_collector
from ._server.hub import echo, hub
from ._server.options import Authenticate, Options
from ._server.server import Server, serve
from ._words.limits import Limits, Policies, Timeouts
from ._words.profiles import choose_profile

try:
    import cyclopts
    from cyclopts import App, Parameter
except ImportError:  # pragma: no cover - the core does not need it
    sys.exit("the command line needs an extra: pip install 'websocket-supervisor[cli]'")

#: Seconds after which a check is taken for endless; the longest take four.
HUNG = 180.0
APPS: dict[str, Handler] = {"hub": hub, "echo": echo}

app = App(
    name="ws-supervisor",
    help="A WebSocket server in which every user is a nursery and every connection a child task.",
    version=__version__,
    config=cyclopts.config.Env("WS_SUPERVISOR_", command=False),
)


class LogLine(logging.Formatter):
    """One JSON object per line: time, level, message, the event's fields, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Spell one record."""
        line = {"at": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "event", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=repr)


def log_to_stderr(form: Literal["text", "json"], level: str) -> None:
    """Write the log of the supervisor, and what else there is to say, to standard error."""
    handler = logging.StreamHandler()
    text = logging.Formatter("%(asctime)s %(levelname)-8s %(message)s")
    handler.setFormatter(LogLine() if form == "json" else text)
    logging.basicConfig(level=level.upper(), handlers=[handler], force=True)
    logging.getLogger("trio-websocket").setLevel(logging.WARNING)


def find_handler(name: str) -> Handler:
    """``hub``, ``echo``, or ``package.module:handler``. ValueError if there is no such thing."""
    if name in APPS:
        return APPS[name]
    module, colon, attribute = name.partition(":")
    if not colon:
        raise ValueError(f"--app must be {', '.join(APPS)} or package.module:handler, not {name!r}")
    sys.path.insert(0, "")
    try:
        found = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ValueError(f"--app {name}: {error}") from error
    if not callable(found):
        raise ValueError(f"--app {name}: not a function")
    return found  # type: ignore[no-any-return]  # whether it is a handler is only known when it is called


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
    print(token)  # noqa: T201 - the answer of a command line


@app.command(name="serve")
def serve_command(
    *,
    app: str = "hub",
    host: str = "127.0.0.1",
    port: int = 8765,
    engine: Literal["trio-websocket", "websockets"] = "trio-websocket",
    compression: bool = False,
    certfile: str | None = None,
    keyfile: str | None = None,
    allowed_origins: tuple[str, ...] = (),
    require_origin: bool = False,
    allow_anonymous: bool = False,
    forwarded_allow_ips: tuple[str, ...] = (),
    admin_token: str | None = None,
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
    admin_token
        What /api asks for as a bearer token; without it, only this machine may ask.
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
    options = Options(
        host=host,
        port=port,
        engine=engine,
        compression=compression,
        certfile=certfile,
        keyfile=keyfile,
        allowed_origins=allowed_origins,
        require_origin=require_origin,
        allow_anonymous=allow_anonymous,
        forwarded_allow_ips=forwarded_allow_ips,
        admin_token=admin_token,
        authenticate=find_authenticator(jwt_secret, jwt_keys, jwt_algorithms, jwt_audience, jwt_issuer),
    )
    profile = choose_profile(env)
    served = partial(serve, find_handler(app), options, limits=limits, timeouts=timeouts, policies=policies)
    trio.run(_announce, partial(served, profile=profile), options.tls() is not None)


@app.command(name="verify")
def verify_command(
    *words: str,
    app: str | None = None,
    examples: int = 20,
    seed: int = 0,
    door: Literal["memory", "sockets"] | None = None,
    url: str | None = None,
    token: str | None = None,
    fail_fast: bool = False,
    report: Path | None = None,
    env: str | None = None,
) -> int:
    """Put a handler, or a server somewhere, to the test; 0 if it is acquitted.

    Parameters
    ----------
    words
        What to verify: limits, ttl, memory, cleanup, stress, scenarios, all (the default); unit, integration, e2e,
        regression; or the name of one check, with underscores.
    app
        Whose connections are tested: hub, echo, or package.module:handler. The hub by default.
    examples
        How many random worlds and sequences each random check tries.
    seed
        Where randomness begins; the same seed is the same test.
    door
        Only in memory, on virtual time; or only on real sockets. Both by default.
    url
        Verify this server instead, as it is: ws://host:port/ws or wss://.
    token
        What it asks for, as a bearer token.
    fail_fast
        End at the first finding.
    report
        Write everything there, as JSON.
    env
        The environment profile, for the thresholds of memory and stress.
    """
    try:
        from .testing.labs import Deployed, Memory, Sockets
        from .testing.subject import Lab
        from .testing.verdict import line_of, verdict
        from .testing.verify import verify
    except ImportError as missing:
        raise ValueError(f"verify needs an extra: pip install 'websocket-supervisor[testing]' ({missing})") from missing

    def watch(check: str) -> None:
        """A handler that never waits cannot be interrupted; then say where it is, and end."""
        if sys.stderr.isatty():
            print(f"… {check}", end="\r", file=sys.stderr, flush=True)  # noqa: T201 - the answer of a command line
        faulthandler.dump_traceback_later(HUNG, exit=True)

    logging.getLogger("supervisor").setLevel(logging.CRITICAL + 1)  # what fails on purpose need not be read
    handler = find_handler(app or "hub")
    ours: list[Lab] = [lab for lab in (Memory(handler), Sockets(handler)) if door in (None, lab.door)]
    found = verify(
        ours if url is None else [Deployed(url, token)],
        words or ("all",),
        examples=examples,
        seed=seed,
        fail_fast=fail_fast,
        profile=choose_profile(env),
        begin=watch,
        progress=lambda row: print(line_of(row), flush=True),  # noqa: T201 - the answer of a command line
    )
    faulthandler.cancel_dump_traceback_later()
    print("\n".join(verdict(found, app=app, url=url)))  # noqa: T201 - the answer of a command line
    if report is not None:
        report.write_text(found.as_json())
    return 0 if found.acquitted else 1


async def _announce(served: Callable[..., Awaitable[None]], secure: bool) -> None:  # noqa: FBT001 - trio.run passes by position
    """Serve, and say where once somebody can connect."""
    async with trio.open_nursery() as nursery:
        server: Server = await nursery.start(served)
        tune_collector()
        log = logging.getLogger("supervisor")
        log.info("serving on %s://%s/", "https" if secure else "http", server.address)
        log.info("the cycle collector is tuned: thresholds %s", THRESHOLDS)


def main() -> None:
    """The console script. Bad input gets one line, and status 2."""
    try:
        app()
    except (ValueError, OSError) as error:
        sys.exit(_complain(error))
    except ExceptionGroup as group:
        complaints, rest = group.split((ValueError, OSError))
        if complaints is None or rest is not None:
            raise
        sys.exit(_complain(complaints))


def _complain(error: BaseException) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    print(f"ws-supervisor: {error}", file=sys.stderr)  # noqa: T201 - the answer of a command line
    return 2
