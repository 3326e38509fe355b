"""``/metrics``: what Prometheus reads. Read from the statistics when it asks, and noted from events.

Labels are words of ours, never names that a peer has chosen: a million users are as many time series as one.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from importlib.metadata import version

import attrs
import trio
from prometheus_client import CollectorRegistry, Counter, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import Metric
from prometheus_client.registry import Collector

from .._mechanisms.supervisor import Supervisor
from .._words import events
from .._words.closing import CloseReason
from .._words.events import Event

_PREFIX = "ws_supervisor_"
#: Around what is promised: 100 ms for an admission, 500 ms for a cleanup.
_SHORT = (0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 5.0)
_LONG = (1.0, 10.0, 60.0, 300.0, 1800.0, 7200.0, 43_200.0)
#: Seconds between two looks at how late the loop is.
_LAG_EVERY = 0.25


class Metrics:
    """A subscriber with a registry of its own."""

    def __init__(self, supervisor: Supervisor) -> None:
        self.registry = CollectorRegistry()
        self._forced = self._counter("closes_forced", "Ended without an answer to the close frame.", "reason")
        self._evictions = self._counter("evictions", "Connections that had to leave for a newer one.", "policy")
        self._shed = self._counter("connections_shed", "Connections that emergency cleanups have ended.", "scope")
        self._engine_lost = self._counter("engine_lost", "Connections to what nodes share that were lost, or not had.")
        self._messages_lost = self._counter("messages_lost", "Gaps in what an audience was told that stay gaps.")
        self._waited = self._histogram("admission_seconds", "From a connection's arrival to its seats.", _SHORT)
        self._cleanup = self._histogram(
            "cleanup_seconds", "From the first reason to everything given back.", _SHORT, "reason"
        )
        self._overrun = self._histogram("cancel_overrun_seconds", "From the first reason to the handler's end.", _SHORT)
        self._duration = self._histogram("connection_seconds", "From admission to the first reason.", _LONG, "reason")
        self._lag = self._histogram("loop_lag_seconds", "How late the event loop is.", _SHORT)
        self.registry.register(Standing(supervisor))
        ProcessCollector(registry=self.registry)
        supervisor.subscribe(self)

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(_PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, buckets: tuple[float, ...], *labels: str) -> Histogram:
        return Histogram(_PREFIX + name, text, labels, buckets=buckets, registry=self.registry)

    def __call__(self, event: Event) -> None:
        """Note what the statistics do not keep: how long things took, and by whose choice they happened."""
        match event:
            case events.Admitted():
                self._waited.observe(event.waited)
            case events.Leaving(policy=policy) if policy is not None:
                self._evictions.labels(policy.value).inc()
            case events.Closed():
                self._count_end(event)
            case events.NodeDisconnected():
                self._engine_lost.inc()
            case events.MessagesLost():
                self._messages_lost.inc()
            case events.EmergencyCleanup():
                self._shed.labels("total" if event.limit == "total" else "user").inc(len(event.shed))

    def _count_end(self, event: events.Closed) -> None:
        reason = event.reason.word
        self._cleanup.labels(reason).observe(event.cleanup)
        self._duration.labels(reason).observe(event.duration)
        self._overrun.observe(event.overrun)
        if event.forced:
            self._forced.labels(reason).inc()

    def expose(self, accept: str) -> tuple[bytes, str]:
        """Everything, in the format that is asked for by the header ``Accept``; and that format's content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    async def watch_lag(self) -> None:
        """Look, for ever, how late a task is woken that wants to be."""
        while True:
            due = trio.current_time() + _LAG_EVERY
            await trio.sleep_until(due)
            self._lag.observe(trio.current_time() - due)


@attrs.frozen
class Standing(Collector):
    """The statistics, at the moment at which somebody asks."""

    supervisor: Supervisor

    def collect(self) -> Iterator[Metric]:
        """Each figure by its name."""
        supervisor, now = self.supervisor, self.supervisor.statistics()
        health = supervisor.audit_health
        yield InfoMetricFamily(
            _PREFIX + "build",
            "What this is.",
            {"version": version("websocket-supervisor"), "profile": supervisor.profile.name},
        )
        for name, text, value in (
            ("connections", "Admitted, and not leaving.", now.connections),
            ("connections_peak", "The most there have been at once, those that leave included.", now.peak),
            ("users", "Users who have connections, or had until a moment ago.", now.users),
            ("users_at_limit", "Users with as many connections as they may have.", now.users_at_limit),
            ("rooms", "Rooms with members.", now.rooms),
            ("runs", "Runs that have not ended.", now.runs),
            ("connections_waiting", "Waiting for a place.", now.waiting),
            ("connections_leaving", "Cancelled, handlers still in.", now.leaving),
            ("connections_closing", "Saying goodbye.", now.closing),
            ("handlers_stuck_now", "Set aside, and still there.", now.stuck),
            ("seats", "Tokens of the total limit that are held.", now.seats),
            ("tasks", "That Trio runs.", trio.lowlevel.current_statistics().tasks_living),
            ("outbox_bytes", "Queued towards slow consumers.", now.outbox_bytes),
            ("draining", "1 while nobody is admitted any more.", int(now.draining)),
            ("orphans", "Inconsistencies that the last audit has found.", len(health.orphans)),
            ("audit_age_seconds", "Since the last audit.", _age(health.last_at)),
            ("audit_interval_seconds", "Between two audits.", health.interval),
        ):
            yield GaugeMetricFamily(_PREFIX + name, text, float(value))
        for name, text, count in (
            ("connections_admitted", "Connections that were admitted.", now.admitted),
            ("hard_limits", "Refused because of too many stuck handlers.", now.hard_limits),
            ("handlers_stuck", "Handlers that ignored their cancellation and were set aside.", now.set_aside),
            ("audits", "Audits that have recomputed every index.", health.runs),
            ("audit_failures", "Audits that have crashed.", health.failures),
        ):
            yield CounterMetricFamily(_PREFIX + name, text, count)
        emergencies = {"succeeded": now.emergencies, "failed": now.refused.get(CloseReason.LIMIT_REACHED.word, 0)}
        for name, text, label, counts in (
            ("connections_refused", "Connections that were not admitted.", "reason", now.refused),
            ("requests_turned_away", "Requests refused before it was known whose.", "error", now.turned_away),
            ("connections_closed", "Connections that have ended.", "reason", now.closed),
            ("runs_ended", "Runs that are over.", "outcome", now.runs_ended),
            ("spared", "What limits would have done, were they enforced.", "reason", now.spared),
            ("failures", "What was raised where it ended only what it belonged to.", "what", now.failures),
            ("emergency_cleanups", "Shed at the high-water mark; or refused, as nobody was.", "outcome", emergencies),
        ):
            yield _labelled(CounterMetricFamily(_PREFIX + name, text, labels=[label]), counts)
        if supervisor.nodes is not None:
            for name, figure in supervisor.nodes.standing.items():
                yield GaugeMetricFamily(
                    f"{_PREFIX}cluster_{name}", "Of all nodes together, as this one knows it.", figure
                )
        limits = {"user": now.per_user_limit, "total": now.total_limit}
        yield _labelled(
            GaugeMetricFamily(_PREFIX + "connections_limit", "How many there may be.", labels=["scope"]), limits
        )


def _labelled(family: CounterMetricFamily | GaugeMetricFamily, figures: Mapping[str, int]) -> Metric:
    for label, figure in figures.items():
        family.add_metric([label], figure)
    return family


def _age(since: float | None) -> float:
    return math.inf if since is None else trio.current_time() - since
