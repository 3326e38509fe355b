"""Many at once, many one after another, and in every order that can be thought of."""

from __future__ import annotations

import time
import tracemalloc

import trio

from ..._words.limits import Limits
from ..checks import MEMORY, Budget, check
from ..labs import Memory
from ..leaks import Baseline, Evidence, summary
from ..subject import Client, Finding, Lab, NotHere, Settings, Subject, expect
from ._crowd import BOUND, settle_at


@check("R22")
async def a_hundred_cycles(lab: Lab, budget: Budget) -> None:
    async with lab.open() as subject:
        before, started = dict(await subject.census()), time.monotonic()
        for _ in range(100):
            client = await subject.connect("verify-cycles")
            await client.leave()
        took = time.monotonic() - started
        expect(took <= 30, f"100 cycles took {took:.1f} s, bound 30 s")
        await settle_at(subject, before)


@check("R21", doors=("sockets",))
async def five_hundred_rapid_cycles_leave_no_task_and_no_file(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(per_user=20))) as subject:
        await (await subject.connect("ann")).leave()
        await settle_at(subject)
        left = await _left_by(subject, 500)
        if not left:
            return
        tracemalloc.start(10)  # slow, so only now: the lines that have made what is left are known of a few more
        named = await _left_by(subject, 20)
        tracemalloc.stop()
        raise Finding(f"left behind: {summary(left)}; and by 20 more: {summary(named)}")


async def _left_by(subject: Subject, cycles: int) -> tuple[Evidence, ...]:
    """What is left of so many rapid cycles, half a second after the last."""
    baseline = Baseline.take()
    for number in range(cycles):
        client = await subject.connect(f"user-{number % 7}")
        if number % 3:
            await client.leave()
        else:
            client.vanish()
    await settle_at(subject)
    with trio.move_on_after(BOUND):
        while baseline.left_behind():  # noqa: ASYNC110 - it can only be looked at
            await trio.sleep(0.01)
    return baseline.left_behind()


@check("R24")
async def fifty_users_come_and_go_at_once(lab: Lab, budget: Budget) -> None:
    async with lab.open() as subject:
        before = dict(await subject.census())
        async with trio.open_nursery() as nursery:
            for number in range(50):
                nursery.start_soon(_come_and_go, subject, number)
        await settle_at(subject, before)


async def _come_and_go(subject: Subject, number: int) -> None:
    user = f"verify-{number}"
    clients: list[Client] = []
    for turn in range(3):
        client = await subject.connect(user)
        if client.refused:
            continue
        clients.append(client)
        await client.say(f'{{"op":"join","room":"verify-{(number + turn) % 5}"}}')
        await client.say("not JSON")
    for turn, client in enumerate(clients):
        match (number + turn) % 3:
            case 0:
                await client.leave()
            case 1:
                client.vanish()
            case 2:
                await subject.disconnect(user)
                return


@check("R10", "R42", doors=MEMORY)
def random_worlds_audited_after_every_step(lab: Lab, budget: Budget) -> None:
    from ..world import play

    if not isinstance(lab, Memory):
        raise NotHere("only a supervisor can be audited")
    for seed in range(budget.seed, budget.seed + budget.examples):
        world = play(seed, handler=lab.handler)
        expect(not world.problems, f"in the world of seed {seed}: {'; '.join(world.problems[:3])}")


@check("R10", "R42", doors=MEMORY)
def random_steps_agree_with_a_model(lab: Lab, budget: Budget) -> None:
    import hypothesis
    from hypothesis.stateful import run_state_machine_as_test

    from ..machine import SupervisorMachine

    if not isinstance(lab, Memory):
        raise NotHere("only a supervisor can be modelled")
    machine = type("Machine", (SupervisorMachine,), {"handler": staticmethod(lab.handler)})
    chosen = hypothesis.settings(
        max_examples=budget.examples,
        stateful_step_count=20,
        deadline=None,
        phases=[hypothesis.Phase.generate],  # the seed replays it; `SupervisorMachine` in pytest shrinks it
        database=None,
        print_blob=False,
        suppress_health_check=list(hypothesis.HealthCheck),
    )
    run_state_machine_as_test(hypothesis.seed(budget.seed)(machine), settings=chosen)
