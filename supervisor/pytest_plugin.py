"""The pytest plugin: a supervisor, wires that fail, and a check that nothing is left behind.

Installed with the package, so pytest always loads this file; the kit itself is loaded by whoever uses a fixture. Needs
the extra ``testing``.
"""

from __future__ import annotations

import tracemalloc
import weakref
from collections.abc import AsyncGenerator, Callable, Iterator
from typing import TYPE_CHECKING, TypeVar, cast

import pytest
import trio

if TYPE_CHECKING:
    from ._mechanisms.supervisor import Supervisor
    from .testing import Baseline, Evidence, FaultWire, LeakTracker

#: Deep enough to lead from a library's innards to the line that called it.
_FRAMES = 15
F = TypeVar("F", bound=Callable[..., object])


def trio_fixture(function: F) -> F:
    """Make a fixture of an async generator; without pytest-trio, one that pytest refuses when it is asked for."""
    try:
        from pytest_trio import trio_fixture as make
    except ImportError:
        make = pytest.fixture
    return cast("F", make(function))


@trio_fixture
async def supervisor() -> AsyncGenerator[Supervisor, None]:
    """A supervisor with every default, for the length of one test."""
    from ._mechanisms.supervisor import open_supervisor

    async with open_supervisor() as opened:
        yield opened  # noqa: ASYNC119 - pytest-trio always finishes its fixtures


@pytest.fixture
def fault_wire() -> Callable[..., FaultWire]:
    """Makes wires in memory whose peers behave as told: ``fault_wire("mute")``, see `FaultWire`."""
    from .testing import FaultWire

    return FaultWire


@pytest.fixture
def _traced() -> Iterator[None]:
    """Lines are known of what is made while this lasts."""
    if tracemalloc.is_tracing():
        yield
        return
    tracemalloc.start(_FRAMES)
    yield
    tracemalloc.stop()


@trio_fixture
async def leak_check(_traced: None, supervisor: Supervisor) -> AsyncGenerator[LeakTracker, None]:
    """Fails a test that leaves anything behind 500 ms after its end, and says which line made it.

    Looked for are tasks, file descriptors, and connections, tokens and index entries of the fixture ``supervisor``;
    violations that its events tell of; cyclic garbage made of anybody's own classes; and connections that are gone, and
    that something still holds. Allocations are traced
    meanwhile, so the test takes two to four times as long.
    """
    from ._words.events import Admitted
    from .testing import Baseline, LeakTracker, garbage
    from .testing.leaks import held

    tracker, seen = LeakTracker(supervisor.timeouts.close), []

    def see(event: object) -> None:
        if isinstance(event, Admitted):
            seen.append(weakref.ref(supervisor.connection(event.connection)))

    supervisor.subscribe(tracker)
    supervisor.subscribe(see)
    garbage()  # of whoever came before
    baseline = Baseline.take()
    yield tracker
    left = await _after_the_bound(baseline, supervisor)
    found = [*tracker.violations, *left, *garbage(), *held(conn for ref in seen if (conn := ref()) is not None)]
    if found:
        pytest.fail("left behind:\n" + "\n".join(f"  {evidence}" for evidence in found), pytrace=False)


async def _after_the_bound(baseline: Baseline, supervisor: Supervisor) -> tuple[Evidence, ...]:
    with trio.move_on_after(supervisor.timeouts.close):
        while baseline.left_behind(supervisor):  # noqa: ASYNC110 - what is left can only be looked at
            await trio.sleep(0.01)
    return baseline.left_behind(supervisor)
