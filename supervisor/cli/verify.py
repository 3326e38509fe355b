"""``verify``: the suites, against a handler or a server."""

from __future__ import annotations

import faulthandler
import logging
import sys
from pathlib import Path
from typing import Literal

from .._words.profiles import choose_profile
from .app import app
from .handlers import find_handler

#: Seconds after which a check is taken for endless; the longest take four.
HUNG = 180.0


@app.command(name="verify")
def verify_command(
    *words: str,
    app: str | None = None,
    examples: int = 20,
    seed: int = 0,
    door: Literal["memory", "sockets"] | None = None,
    url: str | None = None,
    token: str | None = None,
    fail_fast: bool = False,
    report: Path | None = None,
    env: str | None = None,
) -> int:
    """Put a handler, or a server somewhere, to the test; 0 if it is acquitted.

    Parameters
    ----------
    words
        What to verify: limits, ttl, memory, cleanup, stress, scenarios, all (the default); unit, integration, e2e,
        regression; or the name of one check, with underscores.
    app
        Whose connections are tested: hub, echo, or package.module:handler. The hub by default.
    examples
        How many random worlds and sequences each random check tries.
    seed
        Where randomness begins; the same seed is the same test.
    door
        Only in memory, on virtual time; or only on real sockets. Both by default.
    url
        Verify this server instead, as it is: ws://host:port/ws or wss://.
    token
        What it asks for, as a bearer token.
    fail_fast
        End at the first finding.
    report
        Write everything there, as JSON.
    env
        The environment profile, for the thresholds of memory and stress.
    """
    try:
        from ..testing.labs import Deployed, Memory, Sockets
        from ..testing.subject import Lab
        from ..testing.verdict import line_of, verdict
        from ..testing.verify import verify
    except ImportError as missing:
        raise ValueError(f"verify needs an extra: pip install 'websocket-supervisor[testing]' ({missing})") from missing

    def watch(check: str) -> None:
        """A handler that never waits cannot be interrupted; then say where it is, and end."""
        if sys.stderr.isatty():
            print(f"… {check}", end="\r", file=sys.stderr, flush=True)
        faulthandler.dump_traceback_later(HUNG, exit=True)

    if url is not None and app is not None:
        raise ValueError("--app is tested here, --url somewhere else: give one of them")
    logging.getLogger("supervisor").setLevel(logging.CRITICAL + 1)  # what fails on purpose need not be read
    handler = find_handler(app or "hub")
    ours: list[Lab] = [lab for lab in (Memory(handler), Sockets(handler)) if door in (None, lab.door)]
    found = verify(
        ours if url is None else [Deployed(url, token)],
        words or ("all",),
        examples=examples,
        seed=seed,
        fail_fast=fail_fast,
        profile=choose_profile(env),
        begin=watch,
        progress=lambda row: print(line_of(row), flush=True),
    )
    faulthandler.cancel_dump_traceback_later()
    print("\n".join(verdict(found, app=app, url=url)))
    if report is not None:
        report.write_text(found.as_json())
    return 0 if found.acquitted else 1
