"""Steps and events: each step whole, everybody told of everything once and in order, whatever a subscriber does."""

from __future__ import annotations

import inspect
import logging

import attrs
import pytest
import trio
from trio.lowlevel import currently_ki_protected

from supervisor import HardLimitReached, Limits, Policies, Run, Timeouts, events
from supervisor._decisions.bulletin import Bulletin, step
from supervisor._decisions.ledger import Ledger
from tests.helpers import House, open_house, settle, slow_to_leave


@attrs.define(eq=False)
class Steps:
    """Steps inside steps, and a diary of when their events are told."""

    bulletin: Bulletin = attrs.field(factory=Bulletin)
    diary: list[str] = attrs.field(factory=list)

    def __attrs_post_init__(self) -> None:
        self.bulletin.subscribers.append(lambda event: self.diary.append("told"))

    @step
    def inner(self) -> None:
        self.bulletin.post(events.Event(at=0.0))
        self.diary.append("inner")

    @step
    def outer(self) -> None:
        self.inner()
        self.inner()
        self.diary.append("outer")

    @step
    def raising(self) -> None:
        self.inner()
        raise LookupError


def test_events_wait_for_the_outermost_step() -> None:
    steps = Steps()
    steps.outer()
    assert steps.diary == ["inner", "inner", "outer", "told", "told"]
    steps.inner()
    assert steps.diary[5:] == ["inner", "told"]


def test_a_step_that_raises_has_its_events_told_all_the_same() -> None:
    steps = Steps()
    with pytest.raises(LookupError):
        steps.raising()
    assert steps.diary == ["inner", "told"]
    assert steps.bulletin.depth == 0


def kinds(heard: list[events.Event]) -> list[str]:
    return [type(event).__name__ for event in heard]


async def test_what_a_subscriber_causes_is_told_after_what_it_was_told(autojump_clock) -> None:
    async with open_house() as house:

        def closes(event: events.Event) -> None:
            if isinstance(event, events.Admitted):
                house.supervisor.connection(event.connection).close()

        heard: list[events.Event] = []
        house.supervisor.subscribe(closes)
        house.supervisor.subscribe(heard.append)
        await house.enter()
        assert kinds(heard) == ["Admitted", "Leaving", "Closed"]


async def test_a_subscription_that_ends_while_it_is_told_takes_nothing_from_the_others(autojump_clock) -> None:
    async with open_house() as house:
        once: list[events.Event] = []

        def listens_once(event: events.Event) -> None:
            once.append(event)
            end()

        heard: list[events.Event] = []
        end = house.supervisor.subscribe(listens_once)
        house.supervisor.subscribe(heard.append)
        conn = await house.enter()
        conn.close()
        await settle()
        assert (kinds(once), kinds(heard)) == (["Admitted"], ["Admitted", "Leaving", "Closed"])


@pytest.mark.req("R19")
async def test_a_subscriber_that_fails_at_somebody_elses_failure_is_reported_too(autojump_clock) -> None:
    mishap = RuntimeError("subscriber raises")

    async def fails(conn) -> None:
        raise ValueError("handler raises")

    def fails_too(event: events.Event) -> None:
        if isinstance(event, events.Failed) and event.what == "handler":
            raise mishap

    async with open_house() as house:
        house.supervisor.subscribe(fails_too)
        await trio.sleep(1)
        await house.enter(handler=fails)
        handlers, subscribers = house.told(events.Failed)
        assert (handlers.what, repr(handlers.exception)) == ("handler", repr(ValueError("handler raises")))
        assert (subscribers.what, subscribers.exception) == ("subscriber", mishap)
        assert (subscribers.at, subscribers.connection, subscribers.identity) == (trio.current_time(), None, None)


@pytest.mark.req("R19")
async def test_a_subscriber_that_fails_at_a_subscribers_failure_is_logged(autojump_clock, caplog) -> None:
    def fails(event: events.Event) -> None:
        raise RuntimeError(type(event).__name__)

    async with open_house() as house:
        end = house.supervisor.subscribe(fails)
        await house.enter()
        end()
        assert [event.what for event in house.told(events.Failed)] == ["subscriber"]
    (line,) = [record for record in caplog.records if record.message.startswith("a subscriber failed")]
    assert line.message == "a subscriber failed while it was told of a subscriber's failure"
    assert (line.name, line.levelno, str(line.exc_info[1])) == ("supervisor", logging.ERROR, "Failed")


async def hangs(conn) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(10)


async def shields_itself(run: Run) -> None:
    with trio.CancelScope(shield=True):
        await trio.sleep(5)


async def everything_happens(house: House) -> None:
    await house.enter("ann", handler=hangs)
    await trio.sleep(1)
    await house.supervisor.disconnect_user("ann")
    with pytest.raises(HardLimitReached):
        await house.enter("ann")
    await trio.sleep(10)
    await house.enter("bob")
    await trio.sleep(150)
    await house.supervisor.shed()
    house.supervisor.report("request", RuntimeError("reported"))
    house.supervisor.post(
        events.TurnedAway(at=trio.current_time(), peer="192.0.2.1", status=400, error="bad_request", text="nonsense")
    )
    house.supervisor.post(
        events.Ordered(
            at=trio.current_time(), peer="127.0.0.1", order="shed", body="{}", status=200, outcome="closed 1"
        )
    )
    await house.supervisor.set_limits(per_user=1, enforce=False)
    for _ in range(2):
        await house.enter("dan", handler=slow_to_leave(0.1))
    house.supervisor.start_run("dan", shields_itself)
    await house.supervisor.drain()


async def test_every_event_says_when_it_is_told(autojump_clock) -> None:
    told: list[tuple[str, float, float]] = []
    async with open_house(limits=Limits(stuck=0)) as house:
        house.supervisor.subscribe(
            lambda event: told.append((type(event).__name__, event.at, trio.current_time())),
        )
        await everything_happens(house)
        await trio.sleep(600)
    of_nodes = {"NodeConnected", "NodeDisconnected", "NodeLost", "MessagesLost"}  # see tests/test_cluster.py
    assert {name for name, _, _ in told} == {kind.__name__ for kind in events.Event.__subclasses__()} - of_nodes
    assert [(name, at) for name, at, _ in told] == [(name, now) for name, _, now in told]


class Seen(Exception):
    """Whether Ctrl-C would have had to wait."""


class Witness:
    """Whatever is asked of it or told to it, it says whether Ctrl-C would have to wait."""

    def _testify(self, *args: object) -> None:
        raise Seen(currently_ki_protected())

    __getattr__ = __setattr__ = __sub__ = __iter__ = _testify


#: `credentials` and `next_look` write nothing; `hold` finds nobody here; what `post` does is seen by subscribers.
STEPS = [
    name
    for name, method in vars(Ledger).items()
    if inspect.isfunction(method)
    and not name.startswith("_")
    and name not in ("credentials", "next_look", "hold", "post")
]


@pytest.mark.req("A46", "R10")
@pytest.mark.parametrize("name", STEPS)
async def test_ctrl_c_waits_for_whoever_writes_in_the_ledger(name: str) -> None:
    ledger = Ledger(Limits(), Timeouts(), Policies(), lambda user: None, total=Witness())
    method = getattr(ledger, name)
    parameters = inspect.signature(method).parameters.values()
    witnesses = [Witness() for parameter in parameters if parameter.default is parameter.empty]
    assert not currently_ki_protected()
    with pytest.raises(Seen, match="True"):
        method(*witnesses)


async def test_ctrl_c_waits_for_subscribers(autojump_clock) -> None:
    protected: list[bool] = []
    async with open_house() as house:
        house.supervisor.subscribe(lambda event: protected.append(currently_ki_protected()))
        house.supervisor.report("request", RuntimeError("reported"))
        assert (protected, currently_ki_protected()) == ([True], False)
