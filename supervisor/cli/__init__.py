"""The command line: ``ws-supervisor`` and ``python -m supervisor``."""

from __future__ import annotations

import sys

try:
    from .app import app
except ImportError:  # pragma: no cover - the core does not need it
    sys.exit("the command line needs an extra: pip install 'websocket-supervisor[cli]'")

from . import config, doctor, load, operations, serve, soak, top, verify  # noqa: F401 - each registers its commands
from .remote import Declined


def main() -> None:
    """The console script. Bad input gets one line, and status 2; what a server declines, status 1."""
    try:
        app()
    except KeyboardInterrupt:
        sys.exit(130)
    except BrokenPipeError:  # whoever was to read this has read enough
        sys.stdout = None
    except Declined as declined:
        sys.exit(_complain(declined, 1))
    except (ValueError, OSError) as error:
        sys.exit(_complain(error, 2))
    except BaseExceptionGroup as group:
        if group.subgroup(KeyboardInterrupt) is not None:
            sys.exit(130)
        complaints, rest = group.split((ValueError, OSError))
        if complaints is None or rest is not None:
            raise
        sys.exit(_complain(complaints, 2))


def _complain(error: BaseException, status: int) -> int:
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    print(f"ws-supervisor: {error}", file=sys.stderr)
    return status
