"""What supervision costs, beside what else there is: ``python -m tests.benchmarks``, and ``--help``.

Each server is a process of its own, on one core where the system allows it; whoever loads it has the other. They take
turns, in one order and then in the other; what is compared is the CPU time of the server's process by the system's own
account, in the same round. Peers that are not installed (the extra ``benchmark``) are left out, and said to be.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib.util
import logging
import math
import os
import resource
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs
import trio

from tests.benchmarks import books, loads
from tests.benchmarks.loads import GaveUp, Subject
from tests.benchmarks.report import Comparison, Figure, as_json, plot

OURS = ("ours (websockets)", "ours")
NEEDS = {
    "picows": "picows",
    "aiohttp": "aiohttp",
    "starlette": "uvicorn",
    "socketio": "socketio",
    "channels": "channels",
}
PEERS = ("trio-websocket", "websockets", "websockets.trio", *NEEDS)
#: Ours over bare trio-websocket: beyond this something is broken, and not just noisy.
CLEARLY_BROKEN = 3.0


@attrs.frozen
class Load:
    """What is done to each server, and how its cost is told."""

    name: str
    unit: str
    scale: float
    run: Callable[[Subject], float]
    #: Those for whom it takes too long to wait.
    without: frozenset[str] = frozenset()


def _loads() -> Iterator[Load]:
    for size, name in ((64, "64 B"), (4096, "4 KiB"), (65_536, "64 KiB")):
        for connections in (100, 1000, 3000):
            messages = {64: 30_000, 4096: 15_000, 65_536: 3_000}[size]
            run = partial(loads.echo, size=size, connections=connections, messages=messages)
            yield Load(f"echo of {name}, {connections} connections", "µs a message", 1e6, run, _patient(connections))
    yield Load("connect and close", "µs each", 1e6, partial(loads.churn, lives=1000))
    for receivers in (1000, 5000):
        run = partial(loads.broadcast, receivers=receivers, rounds=100_000 // receivers)
        yield Load(f"broadcast to {receivers}", "µs a delivery", 1e6, run, frozenset({"channels"}))
    run = partial(loads.stalls, receivers=1000, stalled=10, rounds=50)
    yield Load("broadcast to 1000, 10 of them stalled", "p99 of those who read, over none stalled", 1, run)
    for connections, per_user in ((1000, 1), (1000, 5), (10_000, 5)):
        run = partial(loads.memory, connections=connections, per_user=per_user)
        name = f"one of {connections} idle connections, {per_user} per user"
        yield Load(name, "kB", 1e-3, run, _patient(connections))


def _patient(connections: int) -> frozenset[str]:
    """Those who take a minute to let so many in."""
    return frozenset({"socketio", "channels"} if connections > 1000 else ())


SMOKE = (
    Load("echo of 64 B, 100 connections", "µs", 1e6, partial(loads.echo, size=64, connections=100, messages=5_000)),
    Load("connect and close", "µs", 1e6, partial(loads.churn, lives=300)),
    Load("broadcast to 200", "µs", 1e6, partial(loads.broadcast, receivers=200, rounds=50)),
    Load("an idle connection, 5 per user", "kB", 1e-3, partial(loads.memory, connections=500, per_user=5)),
)


@contextlib.contextmanager
def serving(name: str) -> Iterator[Subject]:
    """One server, on a core of its own."""
    command = [sys.executable, "-m", "tests.benchmarks.servers", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            port = int(process.stdout.readline())
            if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
                os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
            yield Subject(name, process.pid, port)
        finally:
            process.kill()


def compare(load: Load, names: list[str], rounds: int) -> Comparison:
    """All of them under one load, in turns."""
    costs: dict[str, list[float]] = {name: [] for name in names if name not in load.without}
    gave_up: set[str] = set()
    for turn in range(rounds):
        for name in [name for name in costs if name not in gave_up][:: 1 if turn % 2 else -1]:
            try:
                with serving(name) as subject:
                    costs[name].append(load.run(subject) * load.scale)
            except (GaveUp, OSError):
                gave_up.add(name)
    figures = (Figure(name, (math.inf,) * rounds if name in gave_up else tuple(costs[name])) for name in costs)
    return Comparison(load.name, load.unit, tuple(figures))


def tell_books() -> None:
    """The core by itself, with a hundred connections and with a hundred thousand."""
    logging.disable(logging.CRITICAL)
    sys.stdout.write(
        "**the core in memory**, µs each\n\n| connections | 100 | 1,000 | 10,000 | 100,000 |\n|---|---|---|---|---|\n"
    )
    for book in books.BOOKS:
        figures = [f"{trio.run(book, count) * 1e6:.1f}" for count in (100, 1000, 10_000, 100_000)]
        sys.stdout.write(f"| {book.__name__.replace('_', ' ')} | {' | '.join(figures)} |\n")
        sys.stdout.flush()
    logging.disable(logging.NOTSET)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one short round; fails only on a clearly broken ratio")
    parser.add_argument("--only", default="", help="loads with this word in their name")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--to", type=Path, help="a folder for figures.json and figures.svg")
    chosen = parser.parse_args()
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    absent = [name for name, package in NEEDS.items() if importlib.util.find_spec(package) is None]
    names = [*OURS, "trio-websocket"] if chosen.smoke else [name for name in (*OURS, *PEERS) if name not in absent]
    started, done = time.monotonic(), []
    for load in SMOKE if chosen.smoke else _loads():
        if chosen.only in load.name:
            done.append(compare(load, names, 1 if chosen.smoke else chosen.rounds))
            sys.stdout.write("\n".join([*done[-1].lines(), ""]))
            sys.stdout.flush()
    if not chosen.smoke and chosen.only in "books":
        tell_books()
    if chosen.to is not None:
        (chosen.to / "figures.json").write_text(as_json(done))
        plot(done, chosen.to / "figures.svg")
    left_out = f", without {', '.join(absent)}" if absent and not chosen.smoke else ""
    sys.stdout.write(f"{time.monotonic() - started:.0f} s{left_out}\n")
    return int(any(_is_broken(comparison) for comparison in done))


def _is_broken(comparison: Comparison) -> bool:
    """Whether one of ours costs several times what bare trio-websocket does."""
    medians = {figure.server: figure.median for figure in comparison.figures}
    return any(medians[name] > CLEARLY_BROKEN * medians["trio-websocket"] for name in OURS)


if __name__ == "__main__":
    sys.exit(main())
