"""One ear for many sockets: a single task hears whoever says something, whatever their handlers are doing."""

from __future__ import annotations

import contextlib
import select
import time
from collections.abc import AsyncGenerator
from typing import Protocol

import attrs
import trio

#: So many sockets are asked for at once; everybody else has a turn after so many seconds.
_AT_ONCE = 64
_AT_MOST = 0.005


class Listener(Protocol):
    """Who is told that there is something to read."""

    def listen(self) -> None:
        """Read what has come, without waiting."""
        ...

    def fail(self, exception: Exception) -> None:
        """It has raised, and hears nothing any more."""
        ...


@attrs.define(eq=False)
class Ear:
    """Who listens, by file descriptor. Made by `open_ear`.

    That a task of each connection waits for its socket costs Trio, and the kernel, some work for every message; here
    they are told once who listens. And nobody's pings wait for a handler that is not receiving.
    """

    _epoll: select.epoll
    _listeners: dict[int, Listener] = attrs.field(factory=dict)

    def hear(self, fd: int, listener: Listener) -> None:
        """Tell `listener`, from now on, when there is something to read from `fd`."""
        self._listeners[fd] = listener
        self._epoll.register(fd, select.EPOLLIN)

    def ignore(self, fd: int) -> None:
        """Tell nobody any more. The socket may have been closed, if this is the same step."""
        if self._listeners.pop(fd, None) is not None:
            with contextlib.suppress(OSError):
                self._epoll.unregister(fd)

    async def run(self) -> None:
        """Hear, for ever."""
        while True:
            await trio.lowlevel.wait_readable(self._epoll.fileno())
            until = time.perf_counter() + _AT_MOST
            for fd, _ in self._epoll.poll(0, _AT_ONCE):
                if time.perf_counter() > until:  # and then the next one: who says most is always reported first
                    await trio.lowlevel.cancel_shielded_checkpoint()
                    until = time.perf_counter() + _AT_MOST
                self._tell(fd)

    def _tell(self, fd: int) -> None:
        listener = self._listeners.get(fd)
        if listener is None:  # another one's message has ended it
            return
        try:
            listener.listen()
        except Exception as exception:  # noqa: BLE001 - whatever one does, the others are heard; and it is told why
            self.ignore(fd)
            with contextlib.suppress(MemoryError):  # then its heartbeat will end it
                listener.fail(exception)


@contextlib.asynccontextmanager
async def open_ear() -> AsyncGenerator[Ear | None, None]:
    """An ear, for the length of an ``async with`` block, cancelled or not; None where the system has no epoll."""
    if not hasattr(select, "epoll"):
        yield None
        return
    with contextlib.closing(select.epoll()) as epoll:
        ear = Ear(epoll)
        async with trio.open_nursery() as nursery:
            scope = trio.CancelScope(shield=True)
            nursery.start_soon(_run, ear, scope, name="ear")
            try:
                yield ear
            finally:
                scope.cancel()


async def _run(ear: Ear, scope: trio.CancelScope) -> None:
    with scope:
        await ear.run()
