"""Everywhere: a question or an order that is given to one node is given to all, and answered by all together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING

import attrs

from .._words.errors import BadRequest, NotFound, OutcomeUnknown, Refused, Unavailable
from .api import MAX_LISTED, Answer, Api, Body
from .elsewhere import Elsewhere, add
from .head import Request

if TYPE_CHECKING:
    from .._cluster.cluster import Cluster

#: Seconds that other nodes have: an order may close connections, which takes half a second.
_PATIENCE = 2.0
#: What concerns all nodes. A drain is of one; a message is told to all nodes in any case.
_SHARED = frozenset(
    {
        ("GET", "/api/statistics"),
        ("GET", "/api/audit"),
        ("GET", "/api/connections"),
        ("GET", "/api/why"),
        ("POST", "/api/disconnect"),
        ("POST", "/api/revoke"),
        ("POST", "/api/expire"),
        ("POST", "/api/shed"),
        ("POST", "/api/limits"),
    }
)


@attrs.frozen
class Everywhere:
    """One node's `Api` in front of all of them."""

    api: Api
    cluster: Cluster | None = None
    elsewhere: Elsewhere | None = None

    def __attrs_post_init__(self) -> None:
        if self.cluster is not None:
            self.cluster.orders.execute = self._obey

    async def answer(self, request: Request, body: Body) -> Answer:
        """What `Api.perform` answers; with ``nodes`` in it, and ``silent`` for those that have not answered in time."""
        if self.cluster is None or (request.method.replace("HEAD", "GET"), request.path) not in _SHARED:
            return await self.api.perform(request, body)
        own = await self._perform(request, body)
        order = {"method": request.method, "path": request.path, "query": request.query_string, "body": body}
        try:
            answers, silent = await self.cluster.orders.ask({**order, "request": request.id}, _PATIENCE)
        except (Unavailable, OutcomeUnknown) as unreachable:
            return self._merged(request, {self.cluster.node: own}, [str(unreachable)])
        return self._merged(request, {self.cluster.node: own, **answers}, sorted(silent))

    async def _perform(self, request: Request, body: Body) -> Body:
        try:
            _, answer = await self.api.perform(request, body)
        except NotFound as nothing:
            return {"error": "not_found", "detail": str(nothing)}
        return answer

    async def _obey(self, order: Body) -> Body:
        """What another node was asked; or what it is to show of this one."""
        if "feed" in order:
            assert self.elsewhere is not None
            return self.elsewhere.tell(str(order["feed"]), whole=bool(order["whole"]))
        request = Request(
            method=str(order["method"]),
            path=str(order["path"]),
            query_string=str(order["query"]),
            http_version="1.1",
            headers=(("x-request-id", str(order["request"])),),
            peer="another node",
            secure=True,
        )
        if (request.method.replace("HEAD", "GET"), request.path) not in _SHARED or not isinstance(order["body"], dict):
            raise BadRequest("an order that nodes do not give each other")
        try:
            return await self._perform(request, order["body"])
        except Refused as refusal:
            return {"error": refusal.error, "detail": str(refusal)}

    def _merged(self, request: Request, answers: dict[str, Body], silent: list[str]) -> Answer:
        good = {node: answer for node, answer in answers.items() if "error" not in answer}
        if not good:
            raise NotFound(next(iter(answers.values()))["detail"])
        assert self.cluster is not None
        figures = request.path == "/api/statistics"
        merged = add(good, self.cluster.standing) if figures else _lists(good.values())
        return 200, {**merged, "nodes": sorted(answers), **({"silent": silent} if silent else {})}


def _lists(answers: Iterable[Body]) -> Body:
    """Lists one after another, the first so many; numbers added up; anything else as the first has it."""
    merged: Body = {}
    for answer in answers:
        for name, value in answer.items():
            if isinstance(value, list):
                merged[name] = [*merged.get(name, []), *value][:MAX_LISTED]
            elif isinstance(value, int) and not isinstance(value, bool):
                merged[name] = merged.get(name, 0) + value
            else:
                merged.setdefault(name, value)
    if "story" in merged:
        merged["story"].sort(key=lambda event: event["at"])
    return merged
