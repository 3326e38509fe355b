"""One task that hears for all: what it must not do to any of them."""

from __future__ import annotations

import contextlib
import select
import socket
import time
from collections.abc import Callable, Iterator

import attrs
import pytest
import trio
import trio.lowlevel

from supervisor import hub
from supervisor._engines.ear import Ear, open_ear
from supervisor._engines.latch import Latch
from tests.serving import connect, frame, open_server


@attrs.define
class Socket:
    """One end of a connection, with what happens when something has come."""

    ours: socket.socket
    theirs: socket.socket
    then: Callable[[], None] = lambda: None
    heard: int = 0

    failed: Exception | None = None

    def listen(self) -> None:
        self.heard += 1
        self.ours.recv(100)
        self.then()

    def fail(self, exception: Exception) -> None:
        self.failed = exception


@contextlib.contextmanager
def sockets(ear: Ear, count: int) -> Iterator[list[Socket]]:
    with contextlib.ExitStack() as stack:
        made = []
        for _ in range(count):
            ours, theirs = (stack.enter_context(end) for end in socket.socketpair())
            made.append(Socket(ours, theirs))
            ear.hear(ours.fileno(), made[-1])
        yield made
        for each in made:
            ear.ignore(each.ours.fileno())


async def test_each_is_told_once_of_what_has_come() -> None:
    async with open_ear() as ear:
        with sockets(ear, 100) as everybody:
            for each in everybody[::2]:
                each.theirs.send(b"x")
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert [each.heard for each in everybody] == [1, 0] * 50


@pytest.mark.req("R10")
async def test_who_is_ended_by_anothers_message_hears_nothing_more() -> None:
    async with open_ear() as ear:
        with sockets(ear, 2) as (one, other):
            for first, second in ((one, other), (other, one)):
                first.then = lambda fd=second.ours.fileno(): ear.ignore(fd)
            for each in (one, other):
                each.theirs.send(b"x")
            await trio.testing.wait_all_tasks_blocked(0.02)
            assert sorted((one.heard, other.heard)) == [0, 1]


@pytest.mark.req("A28")
async def test_who_always_has_more_to_say_does_not_deafen_the_others() -> None:
    """One whose every word takes a while, and who is always the first to be reported."""
    async with open_ear() as ear:
        with sockets(ear, 3) as (loud, *others):

            def go_on() -> None:
                loud.theirs.send(b"x")
                time.sleep(0.006)

            loud.then = go_on
            loud.theirs.send(b"x" * 1000)
            while not loud.heard:
                await trio.lowlevel.checkpoint()
            for each in others:
                each.theirs.send(b"x")
            for _ in range(20):
                await trio.lowlevel.checkpoint()
            assert [each.heard for each in others] == [1, 1]
            loud.then = lambda: None


@pytest.mark.req("R19", "R33")
@pytest.mark.parametrize("raised", [MemoryError, LookupError])
async def test_who_fails_is_lost_and_told_and_the_others_are_heard(raised: type[Exception]) -> None:
    def fail() -> None:
        raise raised

    async with open_ear() as ear:
        with sockets(ear, 2) as (one, other):
            one.then = fail
            for _ in range(3):
                for each in (one, other):
                    each.theirs.send(b"x")
                await trio.testing.wait_all_tasks_blocked(0.02)
            assert (one.heard, other.heard) == (1, 3)
            assert isinstance(one.failed, raised)


async def test_a_socket_that_is_closed_already_can_be_ignored() -> None:
    async with open_ear() as ear:
        with sockets(ear, 1) as (one,):
            fd = one.ours.detach()
            socket.close(fd)
            ear.ignore(fd)
            ear.ignore(fd)
            one.ours = socket.socket()
            one.ours.close()


@pytest.mark.req("R11")
async def test_it_hears_those_who_say_goodbye_after_it_was_cancelled() -> None:
    heard: list[int] = []
    with trio.CancelScope() as scope:
        async with open_ear() as ear:
            with sockets(ear, 1) as (one,):
                scope.cancel()
                with trio.CancelScope(shield=True):
                    one.theirs.send(b"x")
                    await trio.testing.wait_all_tasks_blocked(0.02)
                    heard.append(one.heard)
    assert heard == [1]


async def test_without_epoll_every_connection_has_a_reader(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WS_SUPERVISOR_ENGINE", "websockets")
    async with contextlib.AsyncExitStack() as stack:
        with monkeypatch.context() as patched:
            patched.delattr(select, "epoll")
            server = await stack.enter_async_context(open_server(hub))
        async with connect(server) as raw:
            await raw.upgrade()
            await raw.send(frame(9, b"here?"))
            while (await raw.frame()) != (10, b"here?"):
                pass
            (conn,) = server.supervisor.connections()
            assert [task.name for task in conn.nursery.child_tasks] == ["reader"]


async def test_a_latch_wakes_whoever_waits_and_costs_no_turn_afterwards(autojump_clock) -> None:
    latch, woken = Latch(), []

    async def wait() -> None:
        await latch.wait()
        woken.append(trio.current_time())

    async with trio.open_nursery() as nursery:
        for _ in range(2):
            nursery.start_soon(wait)
        started = trio.current_time()
        await trio.sleep(1)
        latch.set()
    assert woken == [started + 1] * 2
    with trio.testing.assert_no_checkpoints():
        await latch.wait()
