"""One task that hears for all: what it must not do to any of them."""

from __future__ import annotations

import contextlib
import select
import socket
from collections.abc import Callable, Iterator

import attrs
import pytest
import trio

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

    def listen(self) -> None:
        self.heard += 1
        self.ours.recv(100)
        self.then()


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


@pytest.mark.req("R33")
async def test_without_memory_one_is_lost_and_the_others_are_heard() -> None:
    def fail() -> None:
        raise MemoryError

    async with open_ear() as ear:
        with sockets(ear, 2) as (one, other):
            one.then = fail
            for _ in range(3):
                for each in (one, other):
                    each.theirs.send(b"x")
                await trio.testing.wait_all_tasks_blocked(0.02)
            assert (one.heard, other.heard) == (1, 3)


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
