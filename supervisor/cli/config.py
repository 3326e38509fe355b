"""``config``: the options that ``serve`` would have, and where each comes from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Annotated, Any

import attrs
from cyclopts import App, ArgumentCollection, Parameter

from .app import CONFIG, app
from .operations import columns

_SECRET = ("admin_token", "jwt_secret", "redis_url")


@attrs.define
class Witness:
    """The last of all sources: adds nothing, and sees what the others have given."""

    sources: dict[str, str] = attrs.field(factory=dict)

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Write down where each argument comes from."""
        for argument in arguments:
            if argument.tokens:
                token = argument.tokens[0]
                self.sources[_field(argument.name)] = _place(token.source, token.keyword)


def _field(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")


def _place(source: str, keyword: str | None) -> str:
    match source:
        case "cli":
            return "command line"
        case "env":
            return f"environment, {keyword}"
    return os.path.relpath(source) if os.path.exists(source) else source


def effective(tokens: tuple[str, ...]) -> Iterator[tuple[str, Any, str]]:
    """Each option of ``serve``: its name, its value, and where that comes from."""
    witness = Witness()
    before, app.config = app.config, (*app.config, witness)
    try:
        _, bound, _ = app.parse_args(["serve", *tokens], exit_on_error=True, print_error=True)
    finally:
        app.config = before
    bound.apply_defaults()
    for name, value in bound.arguments.items():
        given = attrs.asdict(value, recurse=False) if attrs.has(type(value)) else {name: value}
        for field, one in given.items():
            told = "***" if field in _SECRET and one is not None else getattr(one, "value", one)
            yield field, told, witness.sources.get(field, "default")


@app.command(name="config")
def config_command(
    *tokens: Annotated[str, Parameter(allow_leading_hyphen=True)],
) -> None:
    """Print the options that serve would have with these flags, and where each comes from.

    A flag wins over the environment (WS_SUPERVISOR_PER_USER), and that over a file: ws-supervisor.toml here, or what
    WS_SUPERVISOR_CONFIG names, with a table [serve] and the flags as its keys.

    Parameters
    ----------
    tokens
        Flags of serve.
    """
    rows = [[name, value, source] for name, value, source in effective(tokens)]
    print("\n".join(columns([["option", "value", "from"], *rows])))
    if not os.path.exists(os.environ.get("WS_SUPERVISOR_CONFIG", CONFIG)):
        print(f"there is no {CONFIG} here")
