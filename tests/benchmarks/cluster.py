"""What a cluster costs: in the engine, on the way to it, and where there is none: ``-m tests.benchmarks.cluster``.

The engine's own time is read from its statistics, so it does not matter what else this machine does.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

import attrs
import trio

from supervisor import ClusterOptions, Connection, Identity, Limits, Supervisor, open_cluster, open_supervisor
from supervisor.testing import FaultWire
from tests.valkey import Valkey

LIMITS = Limits(per_user=100, total=1_000_000, idle_ttl=100_000)


async def stays(conn: Connection) -> None:
    await trio.sleep_forever()


@attrs.frozen
class Figures:
    """Of one kind of work: microseconds of the engine, of this process, and from asking to answer (median, p99)."""

    engine: float
    process: float
    median: float
    late: float


def engine_seconds(valkey: Valkey) -> float:
    told = valkey.ask("INFO", "commandstats")
    lines = [line for line in told.splitlines() if line.startswith(("cmdstat_evalsha:", "cmdstat_eval:"))]
    return sum(float(line.split("usec=")[1].split(",")[0]) for line in lines) / 1e6


async def measure(valkey: Valkey | None, count: int, at_once: int, work: Callable[[int], Awaitable[None]]) -> Figures:
    """Do it so often, so many at a time; then once more one by one, for the times."""
    before, began = (engine_seconds(valkey) if valkey else 0.0), time.process_time()
    limiter = trio.CapacityLimiter(at_once)

    async def one(number: int) -> None:
        async with limiter:
            await work(number)

    async with trio.open_nursery() as nursery:
        for number in range(count):
            nursery.start_soon(one, number)
    spent = (engine_seconds(valkey) if valkey else 0.0) - before
    busy = time.process_time() - began
    times = []
    for number in range(count, count + min(count, 500)):
        started = time.perf_counter()
        await work(number)
        times.append(1e6 * (time.perf_counter() - started))
    times.sort()
    return Figures(1e6 * spent / count, 1e6 * busy / count, statistics.median(times), times[int(0.99 * len(times))])


def comes_and_goes(supervisor: Supervisor) -> Callable[[int], Awaitable[None]]:
    async def work(number: int) -> None:
        wire = FaultWire()
        conn = await supervisor.start(wire, Identity(user=f"user-{number % 500}"), stays)
        wire.hang_up()
        await conn.wait_gone()

    return work


def tells(supervisor: Supervisor) -> Callable[[int], Awaitable[None]]:
    async def work(number: int) -> None:
        await supervisor.room("r").tell({"data": "x" * 200, "n": number})

    return work


async def main(count: int) -> None:
    rows: list[tuple[str, Figures]] = []
    async with open_supervisor(limits=LIMITS) as alone:
        rows.append(("alone: comes and goes", await measure(None, count, 50, comes_and_goes(alone))))
        rows.append(("alone: a message", await measure(None, count, 50, tells(alone))))
    valkey = Valkey()
    try:
        for nodes in (1, 3):
            async with AsyncExitStack() as stack:
                supervisors = []
                for _ in range(nodes):
                    supervisor = await stack.enter_async_context(open_supervisor(limits=LIMITS))
                    options = ClusterOptions(url=valkey.url)
                    await stack.enter_async_context(open_cluster(supervisor, options))
                    await supervisor.room("r").attend()
                    supervisors.append(supervisor)
                first = supervisors[0]
                rows.append((f"{nodes} nodes: comes and goes", await measure(valkey, count, 50, comes_and_goes(first))))
                rows.append((f"{nodes} nodes: a message", await measure(valkey, count, 50, tells(first))))
                if nodes == 1:
                    memory = await per_connection(valkey, first, 2 * count)
    finally:
        valkey.close()
    lines = [f"{'µs':28}{'engine':>10}{'process':>10}{'median':>10}{'p99':>10}"]
    for name, it in rows:
        lines.append(f"{name:28}{it.engine:>10.1f}{it.process:>10.1f}{it.median:>10.0f}{it.late:>10.0f}")
    lines.append(f"bytes of the engine for each connection: {memory:.0f}")
    sys.stdout.write("\n".join([*lines, ""]))


async def per_connection(valkey: Valkey, supervisor: Supervisor, count: int) -> float:
    """Five of each user, in one room of twenty."""

    def used() -> int:
        return int(valkey.ask("INFO", "memory").split("used_memory:")[1].split()[0])

    before = used()
    conns: list[Any] = []
    for number in range(count):
        conns.append(await supervisor.start(FaultWire(), Identity(user=f"someone-{number // 5}"), stays))
    while not conns[-1].begun:
        await trio.sleep(0.01)
    for number, conn in enumerate(conns):
        conn.join(f"room-{number // 20}")
    await supervisor.room("r").tell({"after": "all of that"})
    return (used() - before) / count


if __name__ == "__main__":
    trio.run(main, int(sys.argv[1]) if len(sys.argv) > 1 else 5000)
