"""``serve --workers``: several processes on one port, each a node of one cluster; one that dies is started again."""

from __future__ import annotations

import ctypes
import logging
import signal
import socket
import sys
from collections.abc import Callable

import attrs
import trio

_logger = logging.getLogger("supervisor")
#: Seconds until a worker that has died is started again: at first, and at most, if it dies again and again.
_FIRST, _LONGEST = 0.1, 5.0
#: Whoever has lived for so long begins anew.
_SETTLED = 10.0
_DIE_WITH_PARENT = 1  # PR_SET_PDEATHSIG


def listen(host: str, port: int) -> list[socket.socket]:
    """Sockets that workers inherit: whoever is free accepts, and nobody in the queue is lost with a worker."""
    found: list[socket.socket] = []
    for family, kind, protocol, _, (name, _, *rest) in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM):
        sock = socket.socket(family, kind, protocol)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            sock.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        sock.bind((name, found[0].getsockname()[1] if found else port, *rest))
        sock.listen(1024)
        sock.settimeout(0)  # another worker may be faster
        found.append(sock)
    return found


def command_of(arguments: list[str], fds: list[int]) -> list[str]:
    """What starts one worker: this command, with the sockets instead of ``--workers``."""
    kept, skipping = [], False
    for argument in arguments:
        if skipping:
            skipping = False
        elif argument == "--workers":
            skipping = True
        elif not argument.startswith("--workers="):
            kept.append(argument)
    inherited = [part for fd in fds for part in ("--fd", str(fd))]
    return [sys.executable, "-m", "supervisor", *kept, "--workers", "1", *inherited]


@attrs.define(eq=False)
class Workers:
    """All of them, until somebody asks for the end."""

    command: list[str]
    fds: list[int]
    count: int
    running: dict[int, trio.Process] = attrs.field(factory=dict)
    asked: trio.Event = attrs.field(factory=trio.Event)
    status: int = 0

    async def run(self) -> int:
        """Keep them running; the greatest exit status of those that were told to end."""
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._watch_signals)
            async with trio.open_nursery() as workers:
                for number in range(self.count):
                    workers.start_soon(self._keep, number)
            nursery.cancel_scope.cancel()
        return self.status

    async def _keep(self, number: int) -> None:
        attempts = 0
        while not self.asked.is_set():
            began = trio.current_time()
            process = self.running[number] = await trio.lowlevel.open_process(
                self.command, pass_fds=self.fds, start_new_session=True, preexec_fn=_end_with_parent()
            )
            status = await process.wait()
            del self.running[number]
            if self.asked.is_set():
                self.status = max(self.status, abs(status))
                return
            attempts = 0 if trio.current_time() - began > _SETTLED else attempts + 1
            _logger.error("worker %d has died with status %d, and is started again", number + 1, status)
            await trio.sleep(min(_LONGEST, _FIRST * 2.0 ** min(attempts, 10)))

    async def _watch_signals(self) -> None:
        with trio.open_signal_receiver(signal.SIGTERM, signal.SIGINT) as signals:
            async for _ in signals:
                self.asked.set()
                for process in self.running.values():
                    process.send_signal(signal.SIGTERM)


def _end_with_parent() -> Callable[[], None] | None:
    """Have the kernel tell a worker when this process is gone, however it goes; on Linux."""
    if sys.platform != "linux":
        return None
    prctl = ctypes.CDLL(None, use_errno=True).prctl

    def ask() -> None:
        prctl(_DIE_WITH_PARENT, signal.SIGTERM)

    return ask


def run_workers(count: int, host: str, port: int) -> int:
    """Serve with so many; returns the exit status."""
    socks = listen(host, port)
    try:
        fds = [sock.fileno() for sock in socks]
        _logger.info("%d workers on port %d", count, socks[0].getsockname()[1])
        return trio.run(Workers(command_of(sys.argv[1:], fds), fds, count).run)
    finally:
        for sock in socks:
            sock.close()
