"""What a browser is shown: the live page, or an application's own, and the client for both."""

from __future__ import annotations

import importlib.resources
import mimetypes
from importlib.resources.abc import Traversable
from pathlib import Path

import attrs

from .._words.errors import NotFound

_OURS = importlib.resources.files(__package__).joinpath("page")
#: The client is for pages of other servers, too.
CLIENT = "hub.js"
_HEADERS = {
    "Content-Security-Policy": "default-src 'self'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'; "
    "require-trusted-types-for 'script'",
    "Referrer-Policy": "no-referrer",
}


def _folder(path: str | Path | None) -> Path | None:
    if path is None:
        return None
    folder = Path(path)
    if not folder.joinpath("index.html").is_file():
        raise ValueError(f"page must be a folder with an index.html, which {str(folder)!r} is not")
    return folder


@attrs.frozen
class Pages:
    """Files by their paths; plain folders, of which nothing below is shown."""

    #: The application's own page, at ``/``; None: the live page is there, which is at ``/page/`` in any case.
    own: Path | None = attrs.field(default=None, converter=_folder)

    def find(self, path: str) -> tuple[bytes, dict[str, str]]:
        """What is at `path`, and its headers. `NotFound` if nothing is."""
        folder: Traversable = _OURS
        if path.startswith("/page/"):
            name = path.removeprefix("/page/")
        else:
            folder, name = self.own or _OURS, path.removeprefix("/")
            if folder is _OURS and name:
                raise NotFound(f"nothing at {path!r}")
        name = name or "index.html"
        if name not in {part.name for part in folder.iterdir() if part.is_file()}:
            raise NotFound(f"nothing at {path!r}")
        headers = {"Content-Type": _kind(name), **_HEADERS}
        if folder is _OURS and name == CLIENT:
            headers["Access-Control-Allow-Origin"] = "*"
        return folder.joinpath(name).read_bytes(), headers


def _kind(name: str) -> str:
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"{kind}; charset=utf-8" if kind.startswith("text/") or kind.endswith("javascript") else kind
