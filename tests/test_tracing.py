"""A span for each connection."""

from __future__ import annotations

import pytest
import trio
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from supervisor import LimitReached, Limits, Options, Overflow, Policies, Tracing
from tests.helpers import House, open_house, slow_to_leave
from tests.serving import open_server


def watched(house: House) -> tuple[Tracing, InMemorySpanExporter]:
    kept = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(kept))
    tracing = Tracing(provider)
    house.supervisor.subscribe(tracing)
    return tracing, kept


def seconds(span: ReadableSpan) -> float:
    assert span.start_time is not None
    assert span.end_time is not None
    return (span.end_time - span.start_time) / 1e9


@pytest.mark.req("R35")
async def test_a_life_is_a_span(autojump_clock) -> None:
    async with open_house(limits=Limits(idle_ttl=5)) as house:
        tracing, kept = watched(house)
        conn = await house.enter(session="s1", request="q1")
        assert tracing.span_of(conn.id).is_recording()
        await trio.sleep(6)
        (span,) = kept.get_finished_spans()
        assert span.attributes is not None
        expected = {"enduser.id": "ann", "session.id": "s1", "supervisor.request": "q1", "supervisor.reason": "idle"}
        assert expected.items() <= span.attributes.items()
        assert [event.name for event in span.events] == ["admitted", "leaving"]
        assert seconds(span) == pytest.approx(5, abs=0.2)
        assert span.status.status_code is StatusCode.UNSET
        assert not tracing.span_of(conn.id).is_recording()
        assert tracing._spans == {}


@pytest.mark.req("R19", "R35")
async def test_what_goes_wrong_is_in_its_span(autojump_clock) -> None:
    async def fails(conn) -> None:
        raise RuntimeError("handler raises")

    policies = Policies(overflow_user=Overflow.REJECT)
    async with open_house(limits=Limits(per_user=1), policies=policies) as house:
        _, kept = watched(house)
        await house.enter(handler=fails)
        await house.enter(handler=slow_to_leave(3))
        with pytest.raises(LimitReached):
            await house.enter()
        await house.supervisor.disconnect_user("ann")
        failed, refused, stuck = kept.get_finished_spans()
        assert [event.name for event in failed.events] == ["admitted", "exception", "leaving"]
        assert refused.status.description == "user 'ann' exceeded maximum connections per user limit (1/1)"
        assert "its handler is stuck at" in (stuck.status.description or "")
        assert {span.status.status_code for span in (failed, refused, stuck)} == {StatusCode.ERROR}


async def test_who_was_here_before_has_no_span(autojump_clock) -> None:
    async with open_house() as house:
        await house.enter()
        tracing, kept = watched(house)
        await house.supervisor.disconnect_user("ann")
        assert kept.get_finished_spans() == ()
        assert tracing._spans == {}


async def test_a_server_traces_if_it_is_told_to() -> None:
    for wanted in (True, False):
        async with open_server(options=Options(tracing=wanted)) as server:
            subscribers = server.supervisor._ledger.bulletin.subscribers
            assert any(isinstance(it, Tracing) for it in subscribers) is wanted
