"""What supervision costs: our server against bare trio-websocket, in the same run, as ratios of CPU time.

``python -m tests.benchmarks [--smoke]``. Servers are processes of their own, pinned to one core where the system
allows it; the client has the other. They take turns; each figure is the median of the rounds, with its spread.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import attrs
import trio

from tests.serving import connect, frame

NAMES = ("ours", "bare")
CONNECTIONS = 100
#: A ratio beyond this is broken, not noisy.
CLEARLY_BROKEN = 3.0


@attrs.define
class Subject:
    """One server under test."""

    process: subprocess.Popen[str]
    port: int

    def cpu(self) -> float:
        """Seconds of CPU it has used, by the operating system's account."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def memory(self) -> int:
        """Bytes it has in use."""
        return int(Path(f"/proc/{self.process.pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@contextlib.contextmanager
def serving(name: str) -> Iterator[Subject]:
    command = [sys.executable, "-m", "tests.benchmarks.servers", name]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
        try:
            assert process.stdout is not None
            subject = Subject(process, int(process.stdout.readline()))
            if hasattr(os, "sched_setaffinity") and len(os.sched_getaffinity(0)) > 1:
                os.sched_setaffinity(process.pid, {max(os.sched_getaffinity(0))})
            yield subject
        finally:
            process.kill()


async def echo(subject: Subject, amount: int) -> float:
    """CPU seconds per message of 64 bytes, sent and returned, over 100 connections at once."""
    message = frame(2, bytes(64))
    async with contextlib.AsyncExitStack() as stack:
        crowd = [await stack.enter_async_context(connect(subject.port)) for _ in range(CONNECTIONS)]
        for number, raw in enumerate(crowd):
            await raw.upgrade(f"/ws?user=user-{number % 20}")

        async def talk(raw) -> None:
            for _ in range(amount // CONNECTIONS):
                await raw.send(message)
                await raw.frame()

        before = subject.cpu()
        async with trio.open_nursery() as nursery:
            for raw in crowd:
                nursery.start_soon(talk, raw)
        return (subject.cpu() - before) / amount


async def churn(subject: Subject, amount: int) -> float:
    """CPU seconds per connection opened, and closed politely."""
    before = subject.cpu()
    for _ in range(amount):
        async with connect(subject.port) as raw:
            await raw.upgrade()
            await raw.send(frame(8, (1000).to_bytes(2, "big")))
            await raw.frame()
    return (subject.cpu() - before) / amount


async def memory(subject: Subject, amount: int) -> float:
    """Bytes per idle connection, five of them per user."""
    before = subject.memory()
    async with contextlib.AsyncExitStack() as stack:
        for number in range(amount):
            raw = await stack.enter_async_context(connect(subject.port))
            await raw.upgrade(f"/ws?user=user-{number // 5}")
        return (subject.memory() - before) / amount


def compare(what: Callable[..., object], amount: int, rounds: int) -> tuple[float, str]:
    """The median ratio of ours to bare, and a line that says all of it."""
    figures: dict[str, list[float]] = {name: [] for name in NAMES}
    for turn in range(rounds):
        for name in NAMES if turn % 2 else reversed(NAMES):
            with serving(name) as subject:
                figures[name].append(trio.run(what, subject, amount))
    ratios = sorted(ours / bare for ours, bare in zip(*figures.values(), strict=True))
    median = statistics.median(ratios)
    unit = "bytes" if what is memory else "µs"
    scale = 1 if what is memory else 1e6
    per = " ".join(f"{name} {statistics.median(values) * scale:8.1f} {unit}" for name, values in figures.items())
    line = f"{what.__name__:8} {per}   ratio {median:.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f}, {rounds} rounds)"
    return median, line


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--smoke", action="store_true", help="one short round; fails only on a clearly broken ratio")
    smoke = parser.parse_args().smoke
    rounds, scale = (1, 1) if smoke else (5, 5)
    broken = 0
    started = time.monotonic()
    for what, amount in ((echo, 5_000 * scale), (churn, 400 * scale), (memory, 500)):
        ratio, line = compare(what, amount, rounds)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()
        broken += ratio > CLEARLY_BROKEN
    sys.stdout.write(f"{time.monotonic() - started:.0f} s\n")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
