"""The application that all commands belong to, and where it finds what was not said on the command line."""

from __future__ import annotations

import os

import cyclopts
from cyclopts import App

from .. import __version__

#: Read if it is there; ``WS_SUPERVISOR_CONFIG`` names another, which must be.
CONFIG = "ws-supervisor.toml"
_named = os.environ.get("WS_SUPERVISOR_CONFIG")

app = App(
    name="ws-supervisor",
    help="A WebSocket server in which every user is a nursery and every connection a child task.",
    version=__version__,
    config=(
        cyclopts.config.Env("WS_SUPERVISOR_", command=False),
        cyclopts.config.Toml(_named or CONFIG, must_exist=_named is not None),
    ),
)
