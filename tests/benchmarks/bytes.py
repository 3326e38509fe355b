"""Where every byte of an idle connection goes: ``python -m tests.benchmarks.bytes [ENGINE]``.

By who asked for it, as Python's allocator knows it; what the allocator itself and the kernel need comes on top. So the
sum is a little less than what `tests.benchmarks` measures from outside.
"""

from __future__ import annotations

import gc
import logging
import re
import sys
import tracemalloc
from collections import Counter
from functools import partial

import trio

from supervisor import Connection, Limits, Options, serve
from tests.benchmarks.loads import Crowd, Subject

CONNECTIONS, PER_USER = 500, 5
#: The first that fits says whose an allocation is.
OWNERS = (
    (r"wsproto|/h11/", "wsproto and h11"),
    (r"trio_websocket/|trio_websocket\._impl", "trio-websocket"),
    (r"websockets/", "websockets"),
    (r"supervisor/_engines|supervisor\._engines", "ours: the wire"),
    (r"supervisor/|supervisor\.", "ours: the connection and its user"),
    (r"trio/_core/_(parking_lot|traps|io_epoll|generated)|trio[/.]_(channel|sync)", "Trio: waiting"),
    (r"trio/|trio\._|outcome|contextlib|contextvars", "Trio: tasks, nurseries, scopes, sockets"),
)
#: What belongs to the measuring.
IGNORED = ("tests/*", "tracemalloc.py", "threading.py", "trio/_threads.py", "trio/_core/_thread_cache.py")


async def idle(conn: Connection) -> None:
    async for _ in conn:
        pass


def owner(trace: tracemalloc.Traceback) -> str:
    place = trace[0].filename
    return next((name for pattern, name in OWNERS if re.search(pattern, place)), "the rest")


async def measure(engine: str) -> Counter[str]:
    """Bytes per connection, by owner."""
    limits = Limits(per_user=PER_USER, total=100_000)
    async with trio.open_nursery() as nursery:
        serving = partial(serve, idle, Options(port=0, engine=engine), limits=limits, signals=False)
        server = await nursery.start(serving)
        with Crowd(Subject("ours", 0, server.port)) as crowd:
            await trio.to_thread.run_sync(crowd.join, 50, PER_USER)
            gc.collect()
            tracemalloc.start(1)
            await trio.to_thread.run_sync(crowd.join, CONNECTIONS, PER_USER)
            gc.collect()
            ignored = [tracemalloc.Filter(inclusive=False, filename_pattern=f"*/{name}") for name in IGNORED]
            snapshot = tracemalloc.take_snapshot().filter_traces(ignored)
            tracemalloc.stop()
        nursery.cancel_scope.cancel()
    found: Counter[str] = Counter()
    for statistic in snapshot.statistics("filename"):
        found[owner(statistic.traceback)] += statistic.size
    return Counter({name: round(size / CONNECTIONS) for name, size in found.items()})


def main() -> None:
    logging.disable(logging.CRITICAL)
    for engine in sys.argv[1:] or ("trio-websocket", "websockets"):
        found = trio.run(measure, engine)
        sys.stdout.write(f"**{engine}**, bytes for an idle connection, {PER_USER} for each user\n\n| | |\n|---|---|\n")
        for name, size in found.most_common():
            sys.stdout.write(f"| {name} | {size:,} |\n")
        sys.stdout.write(f"| together | {found.total():,} |\n\n")


if __name__ == "__main__":
    main()
