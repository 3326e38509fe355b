"""A seed is a schedule, and a stepped run stands still between its steps."""

from __future__ import annotations

import time

import pytest
import trio

from supervisor.testing.schedule import Fingerprint, Stepper, run


async def race() -> tuple[int, ...]:
    order: list[int] = []

    async def runner(number: int) -> None:
        for _ in range(3):
            await trio.lowlevel.checkpoint()
            order.append(number)

    async with trio.open_nursery() as nursery:
        for number in range(4):
            nursery.start_soon(runner, number)
    return tuple(order)


@pytest.mark.req("R10")
def test_the_same_seed_is_the_same_schedule_and_others_are_others() -> None:
    orders = [run(seed, race, instruments=[]) for seed in range(50)]
    assert orders == [run(seed, race, instruments=[]) for seed in range(50)]
    assert len(set(orders)) == 50


def test_a_fingerprint_tells_schedules_apart() -> None:
    prints = [Fingerprint() for _ in range(2)]
    for fingerprint in prints:
        run(7, race, instruments=[fingerprint])
    assert prints[0].digest == prints[1].digest
    assert prints[0].steps > 12


def test_virtual_time_waits_for_threads() -> None:
    async def ask() -> float:
        await trio.to_thread.run_sync(time.sleep, 0.05)
        return trio.current_time()

    async def ask_beside_a_deadline() -> float:
        with trio.move_on_after(1000):
            return await ask()
        return 1000.0

    assert run(0, ask_beside_a_deadline, instruments=[]) == 0
    stepper = Stepper(0)
    assert stepper.nursery is not None
    stepper.call(stepper.nursery.start_soon, ask)
    assert (stepper.tasks(), stepper.call(trio.current_time)) == ([], 0)
    stepper.close()


def test_a_stepper_stands_still_between_its_steps() -> None:
    stepper = Stepper(0)
    woken: list[float] = []

    async def sleeper() -> None:
        await trio.sleep(5)
        woken.append(trio.current_time())

    assert stepper.nursery is not None
    stepper.call(stepper.nursery.start_soon, sleeper)
    assert stepper.call(trio.current_time) == stepper.call(trio.current_time) == 0
    assert len(stepper.tasks()) == 1
    stepper.advance(4.9)
    assert woken == []
    stepper.advance(0.2)
    assert (woken, stepper.tasks()) == ([5.0], [])
    stepper.close()


def test_what_fails_in_a_step_is_raised_there() -> None:
    stepper = Stepper(0)

    async def fails() -> None:
        raise ValueError("in a step")

    with pytest.raises(ValueError, match="in a step"):
        stepper.run(fails)
    stepper.close()


def test_what_fails_behind_a_step_ends_the_run() -> None:
    stepper = Stepper(0)

    async def fails() -> None:
        await trio.sleep(1)
        raise ValueError("behind it")

    assert stepper.nursery is not None
    stepper.call(stepper.nursery.start_soon, fails)
    with pytest.raises(ExceptionGroup) as caught:
        stepper.advance(2)
    assert caught.value.subgroup(ValueError)


def test_who_shields_a_sleep_does_not_keep_a_stepper_from_closing() -> None:
    stepper = Stepper(0)
    slept: list[float] = []

    async def sleeper() -> None:
        with trio.CancelScope(shield=True):
            await trio.sleep(100)
        slept.append(trio.current_time())

    assert stepper.nursery is not None
    stepper.call(stepper.nursery.start_soon, sleeper)
    stepper.close()
    assert slept == [100]
