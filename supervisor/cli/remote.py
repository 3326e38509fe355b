"""A running server, from outside: what ``/api`` answers."""

from __future__ import annotations

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

    @url.validator
    def _is_http(self, _: object, value: str) -> None:
        if urllib.parse.urlsplit(value).scheme not in ("http", "https"):
            raise ValueError(f"--url is http:// or https:// and a host, not {value!r}")

    def ask(self, path: str, **query: str | int | None) -> Answer:
        """One question."""
        given = urllib.parse.urlencode({name: value for name, value in query.items() if value is not None})
        return cast("Answer", json.load(self._open(f"{path}?{given}" if given else path)))

    def tell(self, path: str, body: Answer) -> Answer:
        """One order."""
        return cast("Answer", json.load(self._open(path, json.dumps(body).encode())))

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

    def _open(self, path: str, body: bytes | None = None) -> Any:
        headers = {} if self.admin_token is None else {"Authorization": f"Bearer {self.admin_token}"}
        url = self.url.rstrip("/") + path
        request = urllib.request.Request(url, body, headers)  # noqa: S310 - http and https only, see above
        try:
            return urllib.request.urlopen(request, timeout=_PATIENCE)  # noqa: S310 - the same
        except urllib.error.HTTPError as refusal:
            raise Declined(_told(refusal)) from None
        except urllib.error.URLError as error:
            raise Declined(f"{self.url}: {error.reason}") from None


#: Its fields as flags of a command.
OnTarget = Annotated[Target, Parameter(name="*", group="Which server")]


def _told(refusal: urllib.error.HTTPError) -> str:
    try:
        return f"{json.load(refusal)['detail']} ({refusal.code})"
    except (ValueError, KeyError):
        return f"the server answered {refusal.code}"
