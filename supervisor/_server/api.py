"""``/api``: asking and telling the supervisor over HTTP. One function for each question and each order."""

from __future__ import annotations

import hmac
import json
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from .._mechanisms.connection import Connection
from .._mechanisms.supervisor import Supervisor
from .._words.closing import CloseReason
from .._words.errors import BadRequest, Forbidden, NotFound, Unauthorized
from .._words.events import Closed
from .exchange import Exchange
from .head import Request, origin_allowed
from .options import Options

Answer = tuple[int, dict[str, Any]]
Question = Callable[[Supervisor, Request], Answer]
Order = Callable[[Supervisor, dict[str, Any]], Awaitable[Answer]]
MAX_LISTED = 1000
MAX_NUMBER = 1e9


class MethodNotAllowed(BadRequest):
    """The other of GET and POST."""

    status = 405


async def answer_api(supervisor: Supervisor, options: Options, exchange: Exchange, request: Request) -> Answer:
    """Authorize and perform one request below ``/api``; raises `Refused` or `NotFound`."""
    authorize(request, options)
    question, order = GET.get(request.path), POST.get(request.path)
    if question is None and order is None:
        raise NotFound(f"no such resource: {request.path!r}")
    if question is not None and request.method in ("GET", "HEAD"):
        return question(supervisor, request)
    if order is not None and request.method == "POST":
        return await order(supervisor, _object(await exchange.read_body()))
    raise MethodNotAllowed(f"{request.path} is for {'GET' if order is None else 'POST'}")


def authorize(request: Request, options: Options) -> None:
    """The admin token; without one configured, this machine only, and not a page of another origin."""
    if options.admin_token is not None:
        given = (request.header("authorization") or "").removeprefix("Bearer ")
        if not hmac.compare_digest(given.encode(), options.admin_token.encode()):
            raise Unauthorized("the admin token is missing or wrong")
    elif not request.is_local:
        raise Forbidden("without an admin token, only this machine may ask")
    if not origin_allowed(request, frozenset(), require_origin=False):
        raise Forbidden("origin not allowed")


def _object(body: bytes) -> dict[str, Any]:
    try:
        parsed = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(parsed, dict):
        raise BadRequest("the body is not a JSON object")
    return parsed


# -- asking ----------------------------------------------------------------------------------------------------


def statistics(supervisor: Supervisor, request: Request) -> Answer:
    """How things stand."""
    return 200, attrs.asdict(supervisor.statistics(), value_serializer=lambda _, __, value: _plain(value))


def _plain(value: Any) -> Any:
    return value if isinstance(value, int | float | str | bool) else dict(value)


def audit(supervisor: Supervisor, request: Request) -> Answer:
    """Every inconsistency there is, recomputed now; and how the periodic audit does."""
    health = supervisor.audit_health
    return 200, {"orphans": list(supervisor.audit()), "runs": health.runs, "failures": health.failures}


def connections(supervisor: Supervisor, request: Request) -> Answer:
    """Some of the connections: of a user, of a session, in a room, or the first so many."""
    user, session, room = request.query("user"), request.query("session"), request.query("room")
    limit = request.query("limit")
    if user is session is room is limit is None:
        raise BadRequest("say which: ?user=, ?session=, ?room= or ?limit=")
    if limit is not None and not (limit.isascii() and limit.isdigit() and len(limit) < 10):
        raise BadRequest("limit must be a whole number")
    count = min(MAX_LISTED, MAX_LISTED if limit is None else int(limit))
    chosen = supervisor.connections(user=user, session=session)
    if room is not None:
        members = set(supervisor.room(room).members)
        chosen = tuple(conn for conn in chosen if conn in members)
    return 200, {"connections": [_card(conn) for conn in chosen[:count]], "total": len(chosen)}


def _card(conn: Connection) -> dict[str, Any]:
    now = trio.current_time()
    return {
        "connection": conn.id,
        "user": conn.user,
        "session": conn.identity.session,
        "peer": conn.peer,
        "rooms": [str(room) for room in conn.rooms],
        "age": round(now - conn.opened_at, 3),
        "idle": round(now - conn.last_active, 3),
    }


# -- telling ---------------------------------------------------------------------------------------------------


async def disconnect(supervisor: Supervisor, body: dict[str, Any]) -> Answer:
    """End one connection, one user (or one of their sessions), or everything: exactly one of the three."""
    if len(body.keys() & {"connection", "user", "all"}) != 1:
        raise BadRequest('give exactly one of "connection", "user" and "all"')
    if "connection" in body:
        return _closed((await supervisor.disconnect(_text(body, "connection")),))
    if "user" in body:
        session = _text(body, "session") if "session" in body else None
        return _closed(await supervisor.disconnect_user(_text(body, "user"), session=session))
    if body["all"] is not True:
        raise BadRequest('"all" must be true')
    return _closed(await supervisor.disconnect_all(CloseReason.KICKED))


async def revoke(supervisor: Supervisor, body: dict[str, Any]) -> Answer:
    """Believe no token any more that one user has had until now, and end their connections; there may be none."""
    return _closed(await supervisor.revoke(_text(body, "user")))


async def expire(supervisor: Supervisor, body: dict[str, Any]) -> Answer:
    """End everything that has been idle for so many seconds."""
    return _closed(await supervisor.expire_idle(_number(body, "older_than")))


async def shed(supervisor: Supervisor, body: dict[str, Any]) -> Answer:
    """Emergency cleanup."""
    return _closed(await supervisor.shed())


async def drain(supervisor: Supervisor, body: dict[str, Any]) -> Answer:
    """Admit nobody any more and end everything, at a rate, within a deadline. The server itself goes on."""
    rate = _number(body, "rate") if "rate" in body else float("inf")
    deadline = _number(body, "deadline") if "deadline" in body else None
    try:
        return _closed(await supervisor.drain(rate, deadline))
    except ValueError as error:
        raise BadRequest(str(error)) from None


def _closed(records: tuple[Closed, ...]) -> Answer:
    return 200, {"closed": len(records), "connections": [_record(record) for record in records[:MAX_LISTED]]}


def _record(record: Closed) -> dict[str, Any]:
    return {
        "connection": record.connection,
        "user": record.identity.user,
        "session": record.identity.session,
        "reason": record.reason.name.lower(),
        "code": record.end.code,
        "cleanup": round(record.cleanup, 4),
        "stuck_at": record.stuck_at,
    }


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise BadRequest(f'"{field}" must be a non-empty string')
    return value


def _number(body: dict[str, Any], field: str) -> float:
    value = body.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_NUMBER:
        raise BadRequest(f'"{field}" must be a number from 0 to {MAX_NUMBER:g}')
    return float(value)


GET: dict[str, Question] = {
    "/api/statistics": statistics,
    "/api/audit": audit,
    "/api/connections": connections,
}
POST: dict[str, Order] = {
    "/api/disconnect": disconnect,
    "/api/revoke": revoke,
    "/api/expire": expire,
    "/api/shed": shed,
    "/api/drain": drain,
}
