"""The accept loop: survives whatever a listening socket can throw."""

from __future__ import annotations

import errno
import logging
import socket
from contextlib import suppress

import trio

from .._words.limits import Timeouts
from .lobby import Lobby

_logger = logging.getLogger("supervisor")
#: Out of file descriptors or memory: somebody must go, or we must wait.
_CAPACITY = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})
#: The listening socket itself is of no use any more; every other error is the one connection's own.
_FATAL = frozenset({errno.EBADF, errno.ENOTSOCK, errno.EINVAL, errno.EFAULT})
_BACK_OFF = 0.1
_REPORT_EVERY = 10.0


async def accept_forever(
    listener: trio.SocketListener, lobby: Lobby, nursery: trio.Nursery, timeouts: Timeouts
) -> None:
    """Accept sockets and hand each to the lobby, in a task of its own in `nursery`."""
    reported_at = -_REPORT_EVERY
    _prepare(listener.socket, timeouts)
    while True:
        try:
            sock, address = await listener.socket.accept()
        except (OSError, MemoryError) as error:
            number = errno.ENOMEM if isinstance(error, MemoryError) else error.errno
            if number in _FATAL:
                raise
            if number in _CAPACITY:
                if trio.current_time() - reported_at >= _REPORT_EVERY:
                    reported_at = trio.current_time()
                    _logger.error("cannot accept connections: %s", error or "out of memory")
                with trio.move_on_after(_BACK_OFF):
                    await lobby.make_room()
            continue
        nursery.start_soon(lobby.greet, trio.SocketStream(sock), address[0], name=f"lobby {address[0]}")


def _prepare(sock: trio.socket.SocketType, timeouts: Timeouts) -> None:
    """Have the kernel notice a vanished peer, also while nobody reads from it or writes to it.

    What is accepted inherits it: that is five system calls less for each.
    """
    with suppress(OSError):  # a system without the option: the heartbeat notices, later
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        if hasattr(socket, "TCP_USER_TIMEOUT"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _milliseconds(timeouts.write_progress))
        if hasattr(socket, "TCP_KEEPIDLE"):
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE, _seconds(timeouts.ping_interval))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPINTVL, _seconds(timeouts.pong / 4))
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPCNT, 3)


def _seconds(seconds: float) -> int:
    return min(32767, max(1, round(seconds if seconds < 32767 else 32767)))


def _milliseconds(seconds: float) -> int:
    return int(min(seconds, 86400) * 1000)
