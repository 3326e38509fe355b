"""``/api``: asking and telling the supervisor over HTTP. One method for each question and each order."""

from __future__ import annotations

import hmac
import json
import math
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import trio

from .._mechanisms.recorder import Recorder
from .._mechanisms.supervisor import Supervisor
from .._words.closing import CloseReason
from .._words.errors import BadRequest, Forbidden, NotFound, OutcomeUnknown, Refused, Unauthorized, Unavailable
from .._words.events import Closed, Ordered
from .._words.identity import MAX_NAME
from .._words.limits import Limits
from .cards import card, ended, figures, spelled, story
from .head import Request, origin_allowed
from .options import Options

Body = dict[str, Any]
Answer = tuple[int, dict[str, Any]]
MAX_LISTED = 1000
MAX_NUMBER = 1e9
#: What of an order is written down; not what is published.
_KNOWN = frozenset(
    {"connection", "user", "session", "all", "older_than", "rate", "deadline", "room", *attrs.fields_dict(Limits)}
)
#: Limits whose absence, in JSON, means that there is none.
_ENDLESS = ("idle_ttl", "lifetime")


class MethodNotAllowed(BadRequest):
    """Another method than those that there are."""

    status = 405

    def __init__(self, path: str, *allowed: str) -> None:
        super().__init__(f"{path} is for {' and '.join(allowed)}")
        self.allowed = ", ".join(allowed)


def authorize(request: Request, options: Options) -> None:
    """The admin token; without one configured, this machine only, and not a page of another origin."""
    if options.admin_token is not None:
        scheme, _, given = (request.header("authorization") or "").partition(" ")
        if scheme.lower() != "bearer" or not hmac.compare_digest(given.encode(), options.admin_token.encode()):
            raise Unauthorized("the admin token is missing or wrong")
    elif not request.is_local:
        raise Forbidden("without an admin token, only this machine may ask")
    if not origin_allowed(request, frozenset(), require_origin=False):
        raise Forbidden("origin not allowed")


@attrs.frozen
class Api:
    """What may be asked, and told."""

    supervisor: Supervisor
    recorder: Recorder

    async def perform(self, request: Request, body: Body) -> Answer:
        """Do what one authorized request below ``/api`` wants; raises `Refused` or `NotFound`. Orders become events."""
        question, order = GET.get(request.path), POST.get(request.path)
        if question is None and order is None:
            raise NotFound(f"no such resource: {request.path!r}")
        if question is not None and request.method in ("GET", "HEAD"):
            return question(self, request)
        if order is not None and request.method == "POST":
            return await self._obey(request, order, body)
        raise MethodNotAllowed(request.path, *(["GET"] if question else []), *(["POST"] if order else []))

    async def _obey(self, request: Request, order: Order, body: Body) -> Answer:
        status, outcome = 500, "failed"
        try:
            status, answer = await order(self, body)
            outcome = ", ".join(f"{name} {value}" for name, value in answer.items() if isinstance(value, int))
        except (Refused, NotFound) as refusal:
            status, outcome = refusal.status if isinstance(refusal, Refused) else 404, str(refusal)
            raise
        finally:
            self.supervisor.post(
                Ordered(
                    at=trio.current_time(),
                    peer=request.peer,
                    order=request.path.removeprefix("/api/"),
                    body=json.dumps({name: _short(value) for name, value in body.items() if name in _KNOWN}),
                    status=status,
                    outcome=outcome,
                    request=request.id,
                )
            )
        return status, answer

    # -- asking ------------------------------------------------------------------------------------------------

    def statistics(self, request: Request) -> Answer:
        """How things stand."""
        return 200, figures(self.supervisor.statistics())

    def audit(self, request: Request) -> Answer:
        """Every inconsistency there is, recomputed now; and how the periodic audit does."""
        health = self.supervisor.audit_health
        return 200, {"orphans": list(self.supervisor.audit()), "runs": health.runs, "failures": health.failures}

    def limits(self, request: Request) -> Answer:
        """The limits in force; a time that is switched off is null."""
        return 200, {"limits": spelled(self.supervisor.limits)}

    def connections(self, request: Request) -> Answer:
        """Some of the connections: of a user, of a session, in a room, or the first so many."""
        user, session, room = request.query("user"), request.query("session"), request.query("room")
        limit = request.query("limit")
        if user is session is room is limit is None:
            raise BadRequest("say which: ?user=, ?session=, ?room= or ?limit=")
        if limit is not None and not (limit.isascii() and limit.isdigit() and len(limit) < 10):
            raise BadRequest("limit must be a whole number")
        count = min(MAX_LISTED, MAX_LISTED if limit is None else int(limit))
        chosen = self.supervisor.connections(user=user, session=session)
        if room is not None:
            members = set(self.supervisor.room(room).members)
            chosen = tuple(conn for conn in chosen if conn in members)
        return 200, {"connections": [card(conn) for conn in chosen[:count]], "total": len(chosen)}

    def why(self, request: Request) -> Answer:
        """What has happened lately to one connection, or to those of one user; here or gone."""
        user, connection = request.query("user"), request.query("connection")
        if (user is None) is (connection is None):
            raise BadRequest("say whose: ?user= or ?connection=")
        if user is not None:
            here, events = self.supervisor.connections(user=user), self.recorder.of_user(user)
        else:
            assert connection is not None
            here = tuple(conn for conn in self.supervisor.connections() if conn.id == connection)
            events = self.recorder.of_connection(connection)
        if not here and not events:
            whom = connection if user is None else user
            raise NotFound(f"nothing is known of {whom!r}; only the last ones are kept")
        return 200, {"here": [card(conn) for conn in here], "story": story(events)}

    # -- telling -----------------------------------------------------------------------------------------------

    async def disconnect(self, body: Body) -> Answer:
        """End one connection, one user (or one of their sessions), or everything: exactly one of the three."""
        if len(body.keys() & {"connection", "user", "all"}) != 1:
            raise BadRequest('give exactly one of "connection", "user" and "all"')
        if "connection" in body:
            return _closed((await self.supervisor.disconnect(_text(body, "connection")),))
        if "user" in body:
            session = _text(body, "session") if "session" in body else None
            return _closed(await self.supervisor.disconnect_user(_text(body, "user"), session=session))
        if body["all"] is not True:
            raise BadRequest('"all" must be true')
        return _closed(await self.supervisor.disconnect_all(CloseReason.KICKED))

    async def revoke(self, body: Body) -> Answer:
        """Believe no token any more that one user has had until now, and end their connections; there may be none."""
        return _closed(await self.supervisor.revoke(_text(body, "user")))

    async def expire(self, body: Body) -> Answer:
        """End everything that has been idle for so many seconds."""
        return _closed(await self.supervisor.expire_idle(_number(body, "older_than")))

    async def shed(self, body: Body) -> Answer:
        """Emergency cleanup."""
        return _closed(await self.supervisor.shed())

    async def drain(self, body: Body) -> Answer:
        """Admit nobody any more and end everything, at a rate, within a deadline. The server itself goes on."""
        rate = _number(body, "rate") if "rate" in body else float("inf")
        deadline = _number(body, "deadline") if "deadline" in body else None
        try:
            return _closed(await self.supervisor.drain(rate, deadline))
        except ValueError as error:
            raise BadRequest(str(error)) from None

    async def set_limits(self, body: Body) -> Answer:
        """Change some limits; a time of null is switched off. All of them, or none."""
        changes = {name: math.inf if value is None and name in _ENDLESS else value for name, value in body.items()}
        if not changes or not changes.keys() <= attrs.fields_dict(Limits).keys():
            raise BadRequest(f"give some of {', '.join(attrs.fields_dict(Limits))}")
        try:
            closed = await self.supervisor.set_limits(**changes)
        except (TypeError, ValueError) as error:
            raise BadRequest(str(error)) from None
        status, answer = _closed(closed)
        return status, {"limits": spelled(self.supervisor.limits), **answer}

    async def publish(self, body: Body) -> Answer:
        """A message, as the hub's clients know it, to a room or to a user."""
        if len(body.keys() & {"room", "user"}) != 1 or "data" not in body:
            raise BadRequest('give "data", and exactly one of "room" and "user"')
        kind = "room" if "room" in body else "user"
        name = _text(body, kind)
        if len(name) > MAX_NAME:
            raise BadRequest(f'"{kind}" has at most {MAX_NAME} characters')
        message = {"type": "message", kind: name, "from": None, "data": body["data"]}
        audience = self.supervisor.room(name) if kind == "room" else self.supervisor.user(name)
        try:
            told = await audience.tell(message)
        except (ValueError, RecursionError):
            raise BadRequest("data cannot be represented in JSON") from None
        except OutcomeUnknown as unknown:
            raise Unavailable(f"it may have been told, or not: {unknown}") from None
        return 200, {kind: name, "delivered": told.delivered, "seq": told.seq}


Question = Callable[[Api, Request], Answer]
Order = Callable[[Api, Body], Awaitable[Answer]]

GET: dict[str, Question] = {
    "/api/statistics": Api.statistics,
    "/api/audit": Api.audit,
    "/api/limits": Api.limits,
    "/api/connections": Api.connections,
    "/api/why": Api.why,
}
POST: dict[str, Order] = {
    "/api/disconnect": Api.disconnect,
    "/api/revoke": Api.revoke,
    "/api/expire": Api.expire,
    "/api/shed": Api.shed,
    "/api/drain": Api.drain,
    "/api/limits": Api.set_limits,
    "/api/publish": Api.publish,
}


def _short(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | None) else str(value)[:MAX_NAME]


def parse_body(body: bytes) -> Body:
    try:
        parsed = json.loads(body) if body.strip() else {}
    except (ValueError, RecursionError):
        raise BadRequest("the body is not JSON") from None
    if not isinstance(parsed, dict):
        raise BadRequest("the body is not a JSON object")
    return parsed


def _closed(records: tuple[Closed, ...]) -> Answer:
    return 200, {"closed": len(records), "connections": [ended(closed) for closed in records[:MAX_LISTED]]}


def _text(body: Body, field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str) or not value:
        raise BadRequest(f'"{field}" must be a non-empty string')
    return value


def _number(body: Body, field: str) -> float:
    value = body.get(field)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= MAX_NUMBER:
        raise BadRequest(f'"{field}" must be a number from 0 to {MAX_NUMBER:g}')
    return float(value)
