"""``--app``: handlers by name."""

from __future__ import annotations

import importlib
import sys

from .._mechanisms.supervisor import Handler
from .._server.hub import echo, hub

APPS: dict[str, Handler] = {"hub": hub, "echo": echo}


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
