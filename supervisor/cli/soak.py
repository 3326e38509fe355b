"""``soak``: the same cycle over and over against a server, and whether anything there grows."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import trio

from .._words.profiles import choose_profile
from .app import app
from .chart import chart, check_plot, draw
from .remote import OnTarget, Target, check_token

if TYPE_CHECKING:
    from ..testing.load import Load
    from ..testing.soak import Soak

_SECONDS = {"s": 1, "min": 60, "m": 60, "h": 3600}
_MB = 1024 * 1024
#: Cycles of which something can be said.
_FEWEST = 4


@app.command(name="soak")
def soak_command(
    *,
    ws: str | None = None,
    token: str | None = None,
    cycles: int | None = None,
    duration: str | None = None,
    connections: int = 50,
    growth_mb: float | None = None,
    plot: Path | None = None,
    env: str | None = None,
    target: OnTarget = Target(),
) -> int:
    """Hunt for leaks in a running server, for hours if need be; 0 if nothing grows.

    In each cycle so many connect at once, say something and leave, one half of them without a word. After each, once
    nobody is there, its memory, tasks and file descriptors are read from /metrics. Nobody else should use it meanwhile.

    Parameters
    ----------
    ws
        Where its WebSocket is, if not at /ws of the server.
    token
        What that asks for, as a bearer token.
    cycles
        How many; 60 by default, at least 4.
    duration
        Or for how long: 90s, 30min, 24h.
    connections
        In each cycle.
    growth_mb
        How much the memory may grow; the profile's threshold by default.
    plot
        Draw what was read: a file ending in .svg or .png.
    env
        The environment profile.
    """
    try:
        from ..testing.load import Load
        from ..testing.soak import Soak
    except ImportError as missing:
        raise ValueError(f"soak needs an extra: pip install 'websocket-supervisor[testing]' ({missing})") from missing

    check_token(token)
    if plot is not None:
        check_plot(plot)
    if cycles is not None and cycles < _FEWEST:
        raise ValueError(f"--cycles must be at least {_FEWEST}: fewer say nothing of a slope")
    url = ws or re.sub(r"^http", "ws", target.url.rstrip("/")) + "/ws"
    load, soak = Load(url=url, token=token, connections=connections, users=connections), Soak()
    seconds = None if duration is None else _parse(duration)
    most = cycles or (60 if seconds is None else sys.maxsize)
    interrupted = False
    try:
        trio.run(_run, load, soak, partial(target.text, "/metrics"), most, seconds)
    except (KeyboardInterrupt, BaseExceptionGroup) as ended:
        interrupted = _is_interrupt(ended)
        if not interrupted:
            raise
    if len(soak.readings) < _FEWEST:
        print(f"{len(soak.readings)} cycles are too few to say anything")
        return 130 if interrupted else 1
    print("\n".join(_told(soak)))
    if plot is not None:
        draw(_panels(soak), [reading.at for reading in soak.readings], plot)
    findings = list(soak.findings(choose_profile(env).memory_growth_mb if growth_mb is None else growth_mb))
    print("\n".join(findings) if findings else "nothing grows")
    return 1 if findings else 0


def _is_interrupt(ended: BaseException) -> bool:
    if isinstance(ended, BaseExceptionGroup):
        return ended.subgroup(KeyboardInterrupt) is not None
    return isinstance(ended, KeyboardInterrupt)


def _parse(duration: str) -> float:
    spelled = re.fullmatch(r"(\d+(?:\.\d+)?)(s|min|m|h)", duration)
    if spelled is None:
        raise ValueError(f"a duration is spelled like 90s, 30min or 24h, not {duration!r}")
    return float(spelled[1]) * _SECONDS[spelled[2]]


async def _run(load: Load, soak: Soak, look: Callable[[], str], cycles: int, seconds: float | None) -> None:
    from ..testing.soak import cycle, rest

    began = trio.current_time()
    while len(soak.readings) < cycles and (seconds is None or trio.current_time() - began < seconds):
        await cycle(load, soak)
        soak.readings.append(await rest(look, began, soak.readings[0] if soak.readings else None))
        if sys.stderr.isatty():
            latest = soak.readings[-1]
            told = f"{latest.rss / _MB:.1f} MB, {latest.tasks:g} tasks, {latest.fds:g} fds"
            print(f"… {len(soak.readings)} cycles, {told}", end="\r", file=sys.stderr, flush=True)


def _panels(soak: Soak) -> dict[str, list[float]]:
    return {
        "memory, MB": [reading.rss / _MB for reading in soak.readings],
        "tasks": [reading.tasks for reading in soak.readings],
        "file descriptors": [reading.fds for reading in soak.readings],
    }


def _told(soak: Soak) -> Iterator[str]:
    for name, series in _panels(soak).items():
        yield f"{name}: {series[0]:.1f} at the beginning, {series[-1]:.1f} at the end"
        yield from chart(series, height=6 if name.startswith("memory") else 2)
    growth = soak.growth(float("inf"))
    low, high = growth.slope_low / 1024, growth.slope_high / 1024
    yield f"slope of the memory: {growth.slope / 1024:.2f} kB a cycle, with 95 % confidence {low:.2f} to {high:.2f}"
    yield from soak.outcome.lines()
