"""The flight recorder: why was I disconnected?"""

from __future__ import annotations

import gc
import weakref

import pytest
import trio

from supervisor import Identity, Limits, Recorder, events, open_supervisor
from supervisor._mechanisms.recorder import EACH, USERS
from supervisor._words.record import name_of
from supervisor.testing import FaultWire
from tests.helpers import open_house


@pytest.mark.req("R35")
async def test_a_life_is_told_from_beginning_to_end(autojump_clock) -> None:
    async with open_house(limits=Limits(per_user=1)) as house:
        recorder = Recorder()
        house.supervisor.subscribe(recorder)
        first = await house.enter()
        await trio.sleep(1)
        await house.enter()
        await trio.sleep(1)
        story = recorder.of_connection(first.id)
        assert [name_of(event) for event in story] == ["admitted", "leaving", "closed"]
        assert story[-1].end.text == "user 'ann' exceeded maximum connections per user limit (1/1)"
        assert len(recorder.of_user("ann")) == 4
        assert recorder.of_user("bob") == recorder.of_connection("c99") == ()


async def test_a_failure_is_retold_and_what_it_holds_is_not_kept(autojump_clock, caplog) -> None:
    class Big:
        """Something in a frame of the handler."""

    kept: list[weakref.ref[Big]] = []

    async def fails(conn) -> None:
        big = Big()
        kept.append(weakref.ref(big))
        raise ValueError("handler raises")

    caplog.set_level("CRITICAL", "supervisor")  # what is written down is kept by the test
    async with open_supervisor() as supervisor:
        recorder = Recorder()
        supervisor.subscribe(recorder)
        conn = await supervisor.start(FaultWire(), Identity(user="ann"), fails)
        await conn.wait_gone()
        (failed,) = (event for event in recorder.of_connection(conn.id) if isinstance(event, events.Failed))
        assert str(failed.exception) == "ValueError: handler raises"
        del conn
        gc.collect()
        assert kept[0]() is None


def test_what_is_kept_is_bounded_and_the_noisy_push_out_only_themselves() -> None:
    recorder = Recorder()
    for number in range(EACH * 3):
        recorder(_admitted("noisy", number))
    recorder(_admitted("quiet", 1000))
    for number in range(EACH * 3):
        recorder(_admitted("noisy", number))
    assert len(recorder.of_user("noisy")) == EACH
    assert len(recorder.of_user("quiet")) == 1
    for number in range(USERS):
        recorder(_admitted(f"user-{number}", number))
    assert recorder.of_user("quiet") == recorder.of_user("noisy") == ()
    assert len(recorder.of_user("user-0")) == 1


def _admitted(user: str, number: int) -> events.Admitted:
    return events.Admitted(at=0.0, connection=f"c{number}", identity=Identity(user=user), waited=0.0)
