"""``load``: many clients that do one thing, and how long they waited."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Literal

import trio

from .app import app
from .remote import check_token

if TYPE_CHECKING:
    from ..testing.load import Outcome


@app.command(name="load")
def load_command(
    kind: Literal["storm", "churn", "echo", "broadcast", "zombies", "slow"],
    *,
    ws: str = "ws://127.0.0.1:8765/ws",
    token: str | None = None,
    connections: int = 100,
    users: int = 100,
    seconds: float = 10.0,
    size: int = 64,
    max_p99: float | None = None,
    allow_refused: bool = False,
) -> int:
    """Put load on a server; 0 if nothing failed, and nobody waited too long.

    Parameters
    ----------
    kind
        storm: all connect at once. churn: connect and leave. echo: say something and wait for the answer. broadcast:
        one publishes to all. zombies: all stop reading, newcomers are timed. slow: broadcast, and one in ten does not
        read.
    ws
        Which server: ws://host:port/ws or wss://.
    token
        What it asks for, as a bearer token; everybody is this user then.
    connections
        How many.
    users
        Of how many users.
    seconds
        For how long.
    size
        Of a message, in bytes.
    max_p99
        Fail if one in a hundred waits longer than so many milliseconds; who still waits at the end counts.
    allow_refused
        It is no failure if some are not let in.
    """
    try:
        from ..testing.load import Load, Outcome, run
    except ImportError as missing:
        raise ValueError(f"load needs an extra: pip install 'websocket-supervisor[testing]' ({missing})") from missing

    check_token(token)
    outcome = Outcome(kind)
    wanted = Load(url=ws, token=token, connections=connections, users=users, seconds=seconds, size=size)

    async def run_and_tell() -> None:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_progress, outcome)
            await run(kind, wanted, outcome)
            nursery.cancel_scope.cancel()

    try:
        trio.run(run_and_tell)
    finally:
        print("\n".join(outcome.lines()))
    late = max_p99 is not None and not outcome.percentile(99) * 1000 <= max_p99
    if late:
        print(f"  p99 is above {max_p99:g} ms")
    refused = bool(outcome.refused) and not allow_refused
    return 1 if late or refused or outcome.failures or not outcome.waits else 0


async def _progress(outcome: Outcome) -> None:
    """Once a second, for those who watch."""
    while sys.stderr.isatty():
        await trio.sleep(1)
        print(f"… {len(outcome.waits)} steps", end="\r", file=sys.stderr, flush=True)
