"""One socket, several hands: every frame whole, every hand in turn, nothing after a broken frame."""

from __future__ import annotations

import contextlib
import socket
from collections.abc import AsyncIterator

import pytest
import trio

from supervisor import CloseReason, WireClosed
from supervisor._engines.link import Link
from tests.serving import file_descriptors


@contextlib.asynccontextmanager
async def linked(write_progress: float = 10.0) -> AsyncIterator[tuple[Link, trio.SocketStream, list[CloseReason]]]:
    """A link, the other side of its socket, and why it broke."""
    ours, theirs = trio.socket.socketpair()
    for sock in (ours, theirs):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 8192)
    broken: list[CloseReason] = []
    async with trio.open_nursery() as nursery:
        link = Link(trio.SocketStream(ours), write_progress, nursery, broken.append)
        with theirs:
            yield link, trio.SocketStream(theirs), broken
        link.cut()
        nursery.cancel_scope.cancel()


def whole(name: int, size: int) -> bytes:
    """A frame of one byte repeated, with a border that shows whether it was cut."""
    return b"<" + bytes((name,)) * size + b">"


async def read_frames(stream: trio.SocketStream, size: int) -> list[int]:
    """The names of the frames that arrive in `size` bytes, each of them seen to be whole."""
    data = b""
    while len(data) < size:
        data += await stream.receive_some(1000)
    names = []
    for frame in data[1:-1].split(b"><"):
        assert len(set(frame)) == 1, frame[:50]
        names.append(frame[0])
    return names


@pytest.mark.req("R52")
async def test_frames_of_several_hands_are_whole_and_in_turn() -> None:
    async with linked() as (link, other, broken):
        frames = [whole(name, 50_000) for name in range(65, 75)]
        async with trio.open_nursery() as nursery:
            for frame in frames:
                nursery.start_soon(link.send, frame)
                await trio.testing.wait_all_tasks_blocked()
            assert not link.offer(whole(90, 10))  # somebody is writing
            assert await read_frames(other, 50_002 * 10) == list(range(65, 75))
        assert link.offer(whole(91, 10))
        assert await read_frames(other, 12) == [91]
        assert broken == []


async def test_an_offered_frame_is_finished_before_the_next() -> None:
    async with linked() as (link, other, _):
        assert link.offer(whole(65, 100_000))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.send, whole(66, 10))
            assert await read_frames(other, 100_002 + 12) == [65, 66]


async def test_a_full_socket_takes_no_part_of_an_offer() -> None:
    async with linked() as (link, other, _):
        taken = 0
        while link.offer(whole(65, 100)):
            taken += 1
            if link._busy:
                break
        assert not link.offer(whole(66, 100))
        assert set(await read_frames(other, 102 * taken)) == {65}


async def test_a_send_cancelled_in_mid_frame_is_the_last() -> None:
    async with linked() as (link, other, broken):
        with trio.move_on_after(0.05):
            await link.send(whole(65, 1_000_000))
        assert (link.closed, broken) == (True, [CloseReason.SEND_CANCELLED])
        with pytest.raises(WireClosed):
            await link.send(whole(66, 1))
        assert not link.offer(whole(66, 1))
        assert b"B" not in await drain(other)


async def test_a_send_cancelled_before_its_turn_breaks_nothing() -> None:
    async with linked() as (link, other, broken):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(link.send, whole(65, 100_000))
            await trio.testing.wait_all_tasks_blocked()
            with trio.move_on_after(0.01):
                await link.send(whole(66, 10))
            nursery.start_soon(link.send, whole(67, 10))
            assert await read_frames(other, 100_002 + 12) == [65, 67]
        assert broken == []


async def test_those_who_wait_for_their_turn_learn_that_there_is_none() -> None:
    refused: list[int] = []

    async def send(name: int) -> None:
        try:
            await link.send(whole(name, 1_000_000))
        except WireClosed:
            refused.append(name)

    async with linked() as (link, _, _), trio.open_nursery() as nursery:
        for name in (65, 66, 67):
            nursery.start_soon(send, name)
            await trio.testing.wait_all_tasks_blocked()
        link.cut()
        await trio.testing.wait_all_tasks_blocked()
        assert refused == [65, 66, 67]


async def test_no_progress_is_too_slow_and_progress_is_not() -> None:
    async with linked(write_progress=0.4) as (link, other, broken), trio.open_nursery() as nursery:
        nursery.start_soon(link.send, whole(65, 400_000))
        for _ in range(10):  # longer in all than without progress at any time
            await trio.sleep(0.1)
            await drain_some(other, 40_000)
        assert (broken, link.closed) == ([], False)
        nursery.cancel_scope.cancel()
    async with linked(write_progress=0.05) as (link, _, broken):
        with pytest.raises(WireClosed):
            await link.send(whole(65, 1_000_000))
        assert broken == [CloseReason.TOO_SLOW]


async def test_cutting_returns_the_descriptor_and_may_be_repeated() -> None:
    before = file_descriptors()
    async with linked() as (link, _, broken):
        assert file_descriptors() == before + 2
        link.cut()
        link.cut()
        assert file_descriptors() == before + 1
        assert broken == []


async def drain(stream: trio.SocketStream) -> bytes:
    data = b""
    with contextlib.suppress(trio.BrokenResourceError):
        while more := await stream.receive_some():
            data += more
    return data


async def drain_some(stream: trio.SocketStream, size: int) -> None:
    while size > 0:
        size -= len(await stream.receive_some(size))
