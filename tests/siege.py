"""A server under attack, a neighbour who must not notice, and what must be as it was afterwards."""

from __future__ import annotations

import contextlib
import gc
import json
import logging
import resource
import sys
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import attrs
import trio

from supervisor import Connection, Options, Server, echo
from tests.serving import Raw, connect, file_descriptors, frame, open_server, settled, tasks

PATIENCE = 30
CROWD = Path(__file__).parent / "crowd.py"
#: Nobody waits longer for an answer, whatever is going on; the promised bound on everything that is ours.
WITHIN = 0.5


@attrs.define
class Neighbour:
    """Somebody who keeps talking while others misbehave."""

    raw: Raw
    answers: int = 0
    slowest: float = 0.0

    async def talk(self) -> None:
        while True:
            said, started = f"still here {self.answers}".encode(), trio.current_time()
            await self.raw.send(frame(1, said))
            while (heard := await self.raw.frame())[0] == 9:
                await self.raw.send(frame(10, heard[1]))
            assert heard == (1, said)
            self.answers += 1
            self.slowest = max(self.slowest, trio.current_time() - started)
            await trio.sleep(0.02)


class Complaints(logging.Handler):
    """Everything that is logged as an error."""

    def __init__(self) -> None:
        super().__init__(logging.ERROR)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())

    @contextlib.contextmanager
    def heard(self) -> Iterator[None]:
        logging.getLogger().addHandler(self)
        try:
            yield
        finally:
            logging.getLogger().removeHandler(self)


@contextlib.asynccontextmanager
async def besieged(
    handler=echo, options: Options | None = None, *, errors: tuple[str, ...] = (), within: float = WITHIN, **settings
) -> AsyncIterator[Server]:
    """A server with a neighbour; afterwards everything is as it was, and nothing but `errors` has been logged as one.

    `within` is more than usual only where a test stops the whole loop on purpose.
    """
    complaints = Complaints()

    async def handle(conn: Connection) -> None:
        await (echo if conn.user == "neighbour" else handler)(conn)

    with complaints.heard(), trio.fail_after(PATIENCE):
        async with open_server(handle, options, **settings) as server, connect(server) as raw:
            await raw.upgrade("/ws?user=neighbour")
            gc.collect()  # what earlier tests have left to the collector is not our baseline
            before = tasks(), file_descriptors()
            async with trio.open_nursery() as nursery:
                neighbour = Neighbour(raw)
                nursery.start_soon(neighbour.talk)
                yield server
                while server.supervisor.statistics().users > 1 or (tasks(), file_descriptors()) != (
                    before[0] + 1,  # who keeps talking
                    before[1],
                ):
                    await trio.sleep(0.005)
                heard = neighbour.answers
                while neighbour.answers == heard:
                    await trio.sleep(0.005)
                nursery.cancel_scope.cancel()
            figures = server.supervisor.statistics()
            assert server.supervisor.audit() == ()
            assert (figures.seats, figures.stuck, figures.waiting) == (1, 0, 0)
            assert figures.admitted == sum(figures.closed.values()) + 1
            assert neighbour.slowest <= within
        await settled(server.supervisor)
    unexpected = [line for line in complaints.lines if not line.startswith(errors or "\0")]
    assert unexpected == []


def resident() -> int:
    """Bytes of memory this process has in use."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


async def flood(conn: Connection) -> None:
    """A handler that sends without end."""
    while True:
        await conn.send(bytes(100_000))


async def until_stalled(server: Server, user: str = "ann") -> None:
    """Wait until a write towards somebody has stopped moving."""
    while True:
        conns = server.supervisor.connections(user=user)
        since = conns[0].wire.stalled_since if conns else None
        if since is not None and trio.current_time() - since > 0.2:
            return
        await trio.sleep(0.02)


async def closed(server: Server) -> dict[str, int]:
    """How many have closed for which reasons, once the first has."""
    while not server.supervisor.statistics().closed:
        await trio.sleep(0.005)
    return dict(server.supervisor.statistics().closed)


@attrs.define
class Blackhole:
    """A proxy that, once told to, lets nothing through any more, and says so to nobody: a cable that is pulled."""

    target: int
    port: int = 0
    open: bool = True

    async def serve(self, *, task_status: trio.TaskStatus[None]) -> None:
        (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
        self.port = listener.socket.getsockname()[1]
        task_status.started()
        await trio.serve_listeners(self.join, [listener])

    async def join(self, near: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", self.target) as far, trio.open_nursery() as nursery:
            nursery.start_soon(self.pump, near, far)
            await self.pump(far, near)
            nursery.cancel_scope.cancel()

    async def pump(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        with contextlib.suppress(trio.BrokenResourceError):
            while data := await source.receive_some(4096):
                if not self.open:
                    await trio.sleep_forever()  # its window fills, and the sender waits
                await sink.send_all(data)


@attrs.define
class Delay:
    """How long a task that could run has had to wait for its turns, at worst.

    Leaving takes five of them at most: the time is over, the handler is out, the reader and the writer are, the task
    is, the last one is told.
    """

    #: Seconds between two measurements; to measure all the time is a load.
    pause: float = 0.0
    longest: float = 0.0

    async def measure(self) -> None:
        while True:
            before = trio.current_time()
            await trio.sleep(self.pause)
            for _ in range(5):
                await trio.lowlevel.checkpoint()
            self.longest = max(self.longest, trio.current_time() - before - self.pause)


async def lives(server: Server, count: int, users: list[str], ways: str = "leave", at_once: int = 1) -> dict[str, Any]:
    """So many short lives, one after another or several at once; how they were answered, and how fast."""
    plan = {"lives": count, "users": users, "ways": ways.split(), "at_once": at_once}
    done = await trio.run_process(
        [sys.executable, str(CROWD), str(server.port)], stdin=json.dumps(plan).encode() + b"\n", capture_stdout=True
    )
    return json.loads(done.stdout)
