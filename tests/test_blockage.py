"""The line at which a task hangs, whatever it hangs in."""

from __future__ import annotations

import inspect
import threading

import pytest
import trio

from supervisor._decisions.blockage import blocked_at


async def plainly() -> None:
    await trio.sleep_forever()  # here


async def deeper() -> None:
    await plainly()


async def in_a_nursery() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(deeper)


async def beside_its_children() -> None:
    async with trio.open_nursery() as nursery:
        nursery.start_soon(plainly)
        await trio.sleep_forever()  # here


async def in_a_generator() -> None:
    async def numbers():
        await trio.sleep_forever()  # here
        yield 1

    async for _ in numbers():
        pass


@pytest.mark.req("R12")
@pytest.mark.parametrize(
    ("function", "culprit"),
    [
        (plainly, plainly),
        (deeper, plainly),
        (in_a_nursery, plainly),
        (beside_its_children, beside_its_children),
        (in_a_generator, in_a_generator),
    ],
)
async def test_the_innermost_line_is_found(function, culprit) -> None:
    lines, start = inspect.getsourcelines(culprit)
    (offset,) = (number for number, line in enumerate(lines) if "# here" in line)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(function)
        await trio.testing.wait_all_tasks_blocked()
        (task,) = nursery.child_tasks
        assert blocked_at(task) == f"{__file__}:{start + offset}"
        nursery.cancel_scope.cancel()


@pytest.mark.req("R12")
async def test_a_thread_that_blocks_shows_who_waits_for_it() -> None:
    release = threading.Event()

    async def waits() -> None:
        await trio.to_thread.run_sync(release.wait)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(waits)
        await trio.testing.wait_all_tasks_blocked()
        (task,) = nursery.child_tasks
        assert blocked_at(task) == f"{__file__}:{waits.__code__.co_firstlineno + 1}"
        release.set()
