"""A running server, from outside: what ``/api`` answers."""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from typing import Annotated, Any, cast

import attrs
from cyclopts import Parameter

Answer = dict[str, Any]
#: Seconds without a byte after which nobody is there.
_PATIENCE = 60.0


class _Stay(urllib.request.HTTPRedirectHandler):
    """A token is for the server that it was given for: nobody else gets it, wherever that server points."""

    def redirect_request(self, *_: Any) -> None:
        """No."""


#: No proxy either, unless there is one at the address itself.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}), _Stay)


class Declined(Exception):
    """The server has said no."""


@attrs.frozen(kw_only=True)
class Target:
    """Which server, and how to ask it."""

    url: str = attrs.field(default="http://127.0.0.1:8765")
    """Where it listens; without a path."""
    admin_token: str | None = attrs.field(default=None, repr=False)
    """What it asks for; better as WS_SUPERVISOR_ADMIN_TOKEN, which no list of processes shows."""
    json: bool = False
    """Print the answer as it came."""

    @admin_token.validator
    def _can_be_sent(self, _: object, value: str | None) -> None:
        check_token(value)

    @url.validator
    def _is_http(self, _: object, value: str) -> None:
        try:
            parts = urllib.parse.urlsplit(value)
            fits = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
        except ValueError:
            fits = False
        if not fits or not value.isascii() or any(letter.isspace() for letter in value):
            raise ValueError(f"--url is http:// or https:// and a host, not {value!r}")

    def ask(self, path: str, **query: str | int | None) -> Answer:
        """One question."""
        given = urllib.parse.urlencode({name: value for name, value in query.items() if value is not None})
        return self._read(f"{path}?{given}" if given else path)

    def tell(self, path: str, body: Answer, patience: float | None = _PATIENCE) -> Answer:
        """One order; None waits for as long as it takes."""
        return self._read(path, json.dumps(body).encode(), patience)

    def _read(self, path: str, body: bytes | None = None, patience: float | None = _PATIENCE) -> Answer:
        with self._open(path, body, patience) as answer:
            try:
                read = json.load(answer)
            except (ValueError, OSError, http.client.HTTPException):
                read = None
        if not isinstance(read, dict):
            raise Declined(f"{self.url}: this is not what a supervisor answers")
        return cast("Answer", read)

    def text(self, path: str) -> str:
        """What is no JSON."""
        with self._open(path) as answer:
            return cast("str", answer.read().decode())

    def events(self) -> Iterator[tuple[str, Answer]]:
        """What happens there: first the house, then its changes."""
        kind = ""
        for line in self._open("/api/events"):
            name, _, value = line.decode().rstrip("\n").partition(": ")
            if name == "event":
                kind = value
            elif name == "data":
                yield kind, json.loads(value)

    def _open(self, path: str, body: bytes | None = None, patience: float | None = _PATIENCE) -> Any:
        headers = {} if self.admin_token is None else {"Authorization": f"Bearer {self.admin_token}"}
        url = self.url.rstrip("/") + path
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - http and https only, see above
        try:
            return _OPENER.open(request, timeout=patience)
        except urllib.error.HTTPError as refusal:
            raise Declined(_told(refusal)) from None
        except urllib.error.URLError as error:
            raise Declined(f"{self.url}: {error.reason}") from None
        except (OSError, http.client.HTTPException) as error:
            raise Declined(f"{self.url}: {type(error).__name__}") from None


#: Its fields as flags of a command.
OnTarget = Annotated[Target, Parameter(name="*", group="Which server")]


def check_token(token: str | None) -> None:
    """ValueError if a header cannot carry it; what it is, is not said."""
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise ValueError("a token is one line of printable ASCII, and not empty")


def _told(refusal: urllib.error.HTTPError) -> str:
    try:
        return f"{json.load(refusal)['detail']} ({refusal.code})"
    except (ValueError, KeyError, TypeError, OSError):
        return f"the server answered {refusal.code}"
