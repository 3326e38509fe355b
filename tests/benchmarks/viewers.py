"""What it costs to be looked at: ``python -m tests.benchmarks.viewers``.

A server with a thousand idle connections, one of its own processes, and others that come and go at fifty a second; with
no viewer of ``/api/events``, with one, and with eight. What counts is the CPU time of the server.
"""

from __future__ import annotations

import socket
import statistics
import sys
import threading
import time
from contextlib import ExitStack

from tests.benchmarks.loads import Crowd, Subject
from tests.serving import Process, frame

IDLE = 1000
SECONDS = 5.0
RATE = 50
ROUNDS = 3


def cost(viewers: int) -> tuple[float, float]:
    """CPU seconds per second: of a house in which nothing happens, and of one in which people come and go."""
    with Process("--total", "2000") as server, ExitStack() as stack:
        subject = Subject("ours", server.process.pid, server.port)
        crowd = stack.enter_context(Crowd(subject))
        crowd.join(IDLE)
        for _ in range(viewers):
            viewer = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            viewer.sendall(b"GET /api/events HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            threading.Thread(target=_drink, args=(viewer,), daemon=True).start()
        time.sleep(1)
        return tuple(_cpu(subject, come_and_go) for come_and_go in (False, True))  # type: ignore[return-value]  # two of them


def _drink(viewer: socket.socket) -> None:
    try:
        while viewer.recv(65536):
            pass
    except OSError:
        return  # the block is over


def _cpu(subject: Subject, come_and_go: bool) -> float:
    before, began = subject.cpu(), time.monotonic()
    lives = 0
    while time.monotonic() - began < SECONDS:
        time.sleep(max(0.0, began + lives / RATE - time.monotonic()) if come_and_go else 0.1)
        if come_and_go:
            lives += 1
            with Crowd(subject) as visitor:
                visitor.join(1)
                visitor.socks[0].setblocking(True)
                visitor.socks[0].sendall(frame(8, (1000).to_bytes(2, "big")))
                while visitor.socks[0].recv(4096):
                    pass
    return (subject.cpu() - before) / (time.monotonic() - began)


def main() -> int:
    """Each count of viewers in turns, and the medians."""
    seen: dict[int, list[tuple[float, float]]] = {0: [], 1: [], 8: []}
    for _ in range(ROUNDS):
        for viewers, costs in seen.items():
            costs.append(cost(viewers))
    sys.stdout.write(
        "| viewers | nothing happens, % of a core | 50 come and go a second | over no viewer |\n|---|---|---|---|\n"
    )
    for viewers, costs in seen.items():
        still, busy = ([one[part] * 100 for one in costs] for part in (0, 1))
        ratios = sorted(theirs[1] / none[1] for theirs, none in zip(costs, seen[0], strict=True))
        told = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})"
        sys.stdout.write(f"| {viewers} | {statistics.median(still):.2f} | {statistics.median(busy):.1f} | {told} |\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
