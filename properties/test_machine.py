"""The whole system, step by step: random connects, disconnects and failures; a model agrees after each."""

from __future__ import annotations

import pytest
from hypothesis import settings

from properties.decisions import run_machine
from supervisor import Connection, Limits, Policies, Timeouts, echo, hub
from supervisor.testing import Fault, FaultWire, SupervisorMachine


async def reads_once(conn: Connection) -> None:
    await conn.send(await conn.receive())


async def fails_at_once(conn: Connection) -> None:
    raise RuntimeError("a handler that cannot do anything")


HANDLERS = (None, hub, *(pytest.param(it, marks=pytest.mark.slow) for it in (echo, reads_once, fails_at_once)))


def machine_of(handler) -> type[SupervisorMachine]:
    return type("Machine", (SupervisorMachine,), {"handler": handler and staticmethod(handler)})


@pytest.mark.req("R10", "R15", "R16", "R42", "R44")
@pytest.mark.parametrize("handler", HANDLERS, ids=lambda handler: getattr(handler, "__name__", "puppet"))
def test_a_model_agrees_after_every_step(handler) -> None:
    examples = 25 if handler else 40
    chosen = settings(max_examples=examples, stateful_step_count=25)
    case = machine_of(handler).TestCase
    case.settings = chosen
    case("runTest").runTest()


@pytest.mark.req("R11")
def test_a_goodbye_that_does_not_end_is_given_what_is_promised_and_no_more() -> None:
    machine = SupervisorMachine()
    machine.open(0, Limits(), Timeouts(), Policies())
    machine.connect("ann", FaultWire(faults=[Fault("close", "shield")]))
    machine.everything_agrees()
    machine.teardown()


@pytest.mark.slow
@pytest.mark.req("R10", "R42")
def test_a_model_agrees_after_every_step_of_ten_thousand() -> None:
    run_machine(SupervisorMachine, 500)
