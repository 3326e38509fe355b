"""One HTTP request's head, judged before anything comes of it. Pure: bytes have become a `Request` by h11."""

from __future__ import annotations

import base64
import binascii
import ipaddress
import re
import secrets
from functools import cached_property
from urllib.parse import parse_qs, urlsplit

import attrs

from .._words.errors import BadRequest, Forbidden
from .._words.upgrade import Upgrade

MAX_HEAD = 16_384
MAX_HEADERS = 100
SUBPROTOCOL = "supervisor.v1.json"


#: How nearly everybody writes it; to parse an address takes a while.
_LOOPBACK = ("127.0.0.1", "::1")
_ID = re.compile(r"[A-Za-z0-9_.:@/+=-]{1,128}", re.ASCII)
_FORWARDED = frozenset({"forwarded", "x-forwarded-for", "x-real-ip"})


class UpgradeRequired(BadRequest):
    """A WebSocket endpoint, and a request that is none."""

    status = 426


class TooManyHeaders(BadRequest):
    """More headers than anybody needs."""

    status = 431


@attrs.frozen(kw_only=True)
class Request:
    """A request head: what `authenticate` hooks are given."""

    method: str
    #: The path, still percent-encoded.
    path: str
    query_string: str = attrs.field(repr=False)  # may carry a token
    http_version: str
    #: Names in lower case, values as Latin-1, in order.
    headers: tuple[tuple[str, str], ...] = attrs.field(repr=False)
    #: The peer's address, taken when the socket was accepted.
    peer: str
    secure: bool
    #: What logs call it: its ``X-Request-ID``, if that is a plain word of 1 to 128 characters, or one of ours.
    id: str = attrs.Factory(lambda self: _id_of(self.headers), takes_self=True)

    @cached_property
    def _values(self) -> dict[str, list[str]]:
        values: dict[str, list[str]] = {}
        for name, value in self.headers:
            values.setdefault(name, []).append(value)
        return values

    @cached_property
    def _parameters(self) -> dict[str, list[str]]:
        try:
            return parse_qs(self.query_string, keep_blank_values=True, max_num_fields=50, errors="strict")
        except ValueError:
            raise BadRequest("the query string cannot be understood") from None

    def all(self, name: str) -> list[str]:
        """Every value of one header, in order; `name` in lower case."""
        return self._values.get(name, [])

    def header(self, name: str) -> str | None:
        """The value of a header that must not be repeated; `BadRequest` if it is."""
        values = self.all(name)
        if len(values) > 1:
            raise BadRequest(f"repeated header: {name}")
        return values[0] if values else None

    def tokens(self, name: str) -> list[str]:
        """A header that is a comma-separated list, however it was split."""
        joined = ",".join(self.all(name))
        return [token for part in joined.split(",") if (token := part.strip(" \t"))]

    def query(self, name: str) -> str | None:
        """One query parameter, None if it is absent; `BadRequest` if it is repeated or not UTF-8."""
        found = self._parameters.get(name, [])
        if len(found) > 1:
            raise BadRequest(f"repeated query parameter: {name}")
        return found[0] if found else None

    @property
    def upgrades(self) -> bool:
        """Whether the peer says that this is to become a WebSocket."""
        return "websocket" in (token.lower() for token in self.tokens("upgrade"))

    @property
    def is_local(self) -> bool:
        """Whether it comes from this machine, to a name of this machine.

        The name matters: a page of another site can make its own name resolve to 127.0.0.1, but not send ours.
        """
        if not _is_loopback(self.peer) or not _FORWARDED.isdisjoint(self._values):
            return False  # a proxy on this machine speaks for somebody else
        try:
            host = urlsplit(f"//{self.header('host') or ''}").hostname or ""
        except ValueError:
            return False
        return host == "localhost" or _is_loopback(host)


def _id_of(headers: tuple[tuple[str, str], ...]) -> str:
    given = [value for name, value in headers if name == "x-request-id"]
    return given[0] if len(given) == 1 and _ID.fullmatch(given[0]) else secrets.token_hex(8)


def _is_loopback(address: str) -> bool:
    if address in _LOOPBACK:
        return True
    try:
        return ipaddress.ip_address(address).is_loopback
    except ValueError:
        return False


def judge_upgrade(
    request: Request, *, trailing: bool, allowed_origins: frozenset[str], require_origin: bool
) -> Upgrade:
    """The opening handshake as RFC 6455 section 4.2.1 wants it, or a `Refused` that says what is wrong."""
    for name in ("host", "upgrade", "connection", "origin"):
        if not all(value.isascii() for value in request.all(name)):
            raise BadRequest(f"non-ASCII bytes in header: {name}")
    if any(not v.isascii() for k, v in request.headers if k.startswith("sec-websocket-")):
        raise BadRequest("non-ASCII bytes in a Sec-WebSocket header")
    if not request.upgrades or "upgrade" not in (token.lower() for token in request.tokens("connection")):
        raise UpgradeRequired("this is a WebSocket endpoint")
    if request.method != "GET" or request.http_version != "1.1":
        raise BadRequest("a WebSocket upgrade is a GET of HTTP/1.1")
    if request.header("sec-websocket-version") != "13":
        raise UpgradeRequired("Sec-WebSocket-Version must be 13")
    if trailing or request.header("content-length") not in (None, "0") or request.all("transfer-encoding"):
        raise BadRequest("nothing may follow the head before it is answered")
    if not origin_allowed(request, allowed_origins, require_origin=require_origin):
        raise Forbidden("origin not allowed")
    offered = request.tokens("sec-websocket-protocol")
    extensions = ", ".join(request.all("sec-websocket-extensions"))
    return Upgrade(_key(request), SUBPROTOCOL if SUBPROTOCOL in offered else None, extensions)


def _key(request: Request) -> str:
    key = request.header("sec-websocket-key") or ""
    try:
        valid = len(base64.b64decode(key, validate=True)) == 16
    except (binascii.Error, ValueError):
        valid = False
    if not valid:
        raise BadRequest("Sec-WebSocket-Key must be 16 bytes in base64")
    return key


def origin_allowed(request: Request, allowed: frozenset[str], *, require_origin: bool) -> bool:
    """Absent (not a browser), same-origin, or listed exactly; everything else is somebody else's page."""
    origins = request.all("origin")
    if len(origins) != 1:
        return not origins and not require_origin
    origin = origins[0]
    return origin in allowed or _is_same_origin(origin, request)


def _is_same_origin(origin: str, request: Request) -> bool:
    scheme = "https" if request.secure else "http"
    host = (request.header("host") or "").lower()
    default_port = ":443" if request.secure else ":80"
    own = {host, host.removesuffix(default_port)}
    return bool(host) and origin.lower() in {f"{scheme}://{name}" for name in own}
