"""What is left behind: tasks, file descriptors, tokens, index entries, cyclic garbage, and the line that made each."""

from __future__ import annotations

import gc
import io
import os
import socket
import sys
import time
import tracemalloc
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator
from types import CoroutineType, FrameType
from typing import Any

import attrs
import trio

from .._decisions.blockage import blocked_at
from .._mechanisms.connection import Connection
from .._mechanisms.supervisor import Supervisor
from .._words import events
from .holders import who_holds
from .lines import OURS, allocated_at, is_library, raised_at
from .memory import Sample
from .model import OVERRUN

_FDS = "/proc/self/fd"


@attrs.frozen(kw_only=True)
class Evidence:
    """One thing that is left, or has been wrong."""

    #: Seconds since the epoch.
    at: float = attrs.field(factory=time.time)
    #: ``task``, ``file descriptor``, ``token``, ``entry``, ``orphan``, ``garbage``, ``held``; of a `LeakTracker` also
    #: ``cleanup``, ``stuck``, ``failure``.
    kind: str
    text: str
    #: ``file:line``, or empty if nobody knows.
    place: str = ""

    def __str__(self) -> str:
        return f"{self.kind}: {self.text}" + (f" (made at {self.place})" if self.place else "")


@attrs.define(eq=False)
class Baseline:
    """How things are now, to compare with how they are later, in the same run of Trio.

    Lines are known of what has been made while `tracemalloc` was tracing; of tasks, also where they are blocked.
    """

    tasks: frozenset[trio.lowlevel.Task]
    fds: frozenset[int]

    @classmethod
    def take(cls) -> Baseline:
        """Look around."""
        return cls(frozenset(all_tasks()), frozenset(open_fds()))

    def left_behind(self, supervisor: Supervisor | None = None) -> tuple[Evidence, ...]:
        """What has come since and is still there; with `supervisor`, also whom it still knows."""
        found = [*self._tasks(), *self._fds()]
        if supervisor is not None:
            found += _entries(supervisor)
        return tuple(found)

    def _tasks(self) -> Iterator[Evidence]:
        for task in all_tasks():
            if task not in self.tasks and task is not trio.lowlevel.current_task() and not _is_bystander(task):
                place = allocated_at(task.coro) or _defined_at(task)
                yield Evidence(kind="task", text=f"{task.name} is still running, at {blocked_at(task)}", place=place)

    def _fds(self) -> Iterator[Evidence]:
        left = {fd: target for fd, target in open_fds().items() if fd not in self.fds}
        places = _opened_at() if left and tracemalloc.is_tracing() else {}
        for fd, target in left.items():
            text = f"{fd} is still open: {target}"
            yield Evidence(kind="file descriptor", text=text, place=places.get(fd, ""))


def summary(evidence: Iterable[Evidence], most: int = 5) -> str:
    """One sentence: alike things once, with how many there are."""
    alike: dict[tuple[str, str], list[Evidence]] = defaultdict(list)
    for item in evidence:
        alike[item.kind, item.place].append(item)
    told = [str(items[0]) if len(items) == 1 else f"{len(items)} times {items[0]}" for items in alike.values()]
    return "; ".join(told[:most]) + (f"; and {len(told) - most} others" if len(told) > most else "")


def _entries(supervisor: Supervisor) -> Iterator[Evidence]:
    for conn in (*supervisor.connections(), *supervisor.stuck()):
        place = "" if conn.task is None else allocated_at(conn.task.coro) or blocked_at(conn.task)
        yield Evidence(kind="entry", text=f"connection {conn.id} of user {conn.user!r} is still there", place=place)
    if seats := supervisor.statistics().seats:
        yield Evidence(kind="token", text=f"{seats} of the total limit are still taken")
    for orphan in supervisor.audit():
        yield Evidence(kind="orphan", text=orphan)


def held(gone: Iterable[Connection]) -> Iterator[Evidence]:
    """Connections that are gone, and who holds them."""
    for conn in gone:
        if conn.closed is not None:
            names = ", ".join(who_holds(conn)) or "somebody unknown"
            yield Evidence(kind="held", text=f"connection {conn.id} is gone, and held by {names}")


def all_tasks() -> Iterator[trio.lowlevel.Task]:
    """Every task of this run, from the root."""
    root = trio.lowlevel.current_root_task()
    waiting = [] if root is None else [root]
    while waiting:
        task = waiting.pop()
        yield task
        waiting += [child for nursery in task.child_nurseries for child in nursery.child_tasks]


def open_fds() -> dict[int, str]:
    """The file descriptors of this process, and what they lead to; empty where there is no ``/proc``."""
    found = {}
    for name in os.listdir(_FDS) if os.path.isdir(_FDS) else ():
        try:
            found[int(name)] = os.readlink(f"{_FDS}/{name}")
        except OSError:
            pass  # the one that has listed the others
    return found


def garbage() -> tuple[Evidence, ...]:
    """Collect cyclic garbage, and tell what was in it: of classes that are nobody's library, and coroutines.

    Tracebacks and frames alone are not told: whoever catches an exception makes some.
    """
    flags = gc.get_debug()
    gc.set_debug(gc.DEBUG_SAVEALL)
    try:
        gc.collect()
        found = [thing for thing in gc.garbage if _is_ours(thing)]
    finally:
        gc.garbage.clear()
        gc.set_debug(flags)
    counts = Counter(type(thing).__qualname__ for thing in found)
    places = {type(thing).__qualname__: allocated_at(thing) for thing in found}
    del found
    gc.collect()  # now that it is known, for good
    return tuple(
        Evidence(kind="garbage", text=f"{count} × {kind} only the collector can free", place=places[kind])
        for kind, count in counts.items()
    )


def _is_ours(thing: object) -> bool:
    """Of a class of this project's, or of whoever uses it; coroutines always are somebody's."""
    if isinstance(thing, CoroutineType):
        return True
    file = getattr(sys.modules.get(type(thing).__module__), "__file__", None)
    return file is not None and (file.startswith(OURS) or not is_library(file))


def _defined_at(task: trio.lowlevel.Task) -> str:
    frame: FrameType | None = getattr(task.coro, "cr_frame", None)
    return "" if frame is None else f"{frame.f_code.co_filename}:{frame.f_code.co_firstlineno}"


def _is_bystander(task: trio.lowlevel.Task) -> bool:
    return task.name.startswith(("pytest_trio.", "_pytest."))


def _opened_at() -> dict[int, str]:
    """The lines at which the files and sockets have been made that are open now."""
    places = {}
    for thing in gc.get_objects():
        if isinstance(thing, socket.socket | io.FileIO):
            try:
                places[thing.fileno()] = allocated_at(thing)
            except ValueError:
                pass  # closed
    return places


@attrs.define
class Timing:
    """Seconds from a first reason to everything given back, of as many as there were."""

    count: int = 0
    total: float = 0.0
    longest: float = 0.0

    def add(self, seconds: float) -> None:
        """One more."""
        self.count += 1
        self.total += seconds
        self.longest = max(self.longest, seconds)


@attrs.define(eq=False)
class LeakTracker:
    """Subscribe it to a supervisor: it times every cleanup, and keeps evidence of whatever went wrong.

    `bound` is how long, in seconds, one connection may take from the first reason to nothing left.
    """

    bound: float = 0.5
    #: How long cleaning up took, by the reason.
    timings: defaultdict[str, Timing] = attrs.field(factory=lambda: defaultdict(Timing))
    evidence: list[Evidence] = attrs.field(factory=list)
    #: Memory, whenever somebody has asked for it to be remembered.
    memory: list[Sample] = attrs.field(factory=list)
    admitted: int = 0
    closed: int = 0

    def __call__(self, event: events.Event) -> None:
        """Hear one event."""
        match event:
            case events.Admitted():
                self.admitted += 1
            case events.Closed():
                self._closed(event)
            case events.Audited(orphans=orphans):
                for orphan in orphans:
                    self._note("orphan", orphan)
            case events.Failed():
                self._note("failure", f"{event.what}: {event.exception!r}", raised_at(event.exception))

    def _closed(self, event: events.Closed) -> None:
        self.closed += 1
        reason = event.reason.word
        self.timings[reason].add(event.cleanup)
        who = f"{event.connection} of user {event.identity.user!r}"
        if event.stuck_at is not None:
            self._note("stuck", f"the handler of {who} ignores its cancellation", event.stuck_at)
        elif event.cleanup > self.bound + OVERRUN:
            self._note("cleanup", f"{who} took {event.cleanup:.3f} s to clean up, bound {self.bound:g} s")

    def _note(self, kind: str, text: str, place: str = "") -> None:
        self.evidence.append(Evidence(kind=kind, text=text, place=place))

    @property
    def violations(self) -> tuple[Evidence, ...]:
        """The evidence that convicts. What handlers raise is evidence too, but their own affair."""
        return tuple(item for item in self.evidence if item.kind != "failure")

    @property
    def cleanup_rate(self) -> float:
        """Which part of those that were admitted has been cleaned up within the bound; 1.0 if nobody came."""
        late = sum(item.kind in ("stuck", "cleanup") for item in self.evidence)
        return 1.0 if not self.admitted else (self.closed - late) / self.admitted

    def check(self, supervisor: Supervisor) -> tuple[Evidence, ...]:
        """Look for what is left in an empty house; it becomes part of the evidence."""
        found = tuple(_entries(supervisor))
        self.evidence += found
        return found

    def report(self) -> dict[str, Any]:
        """Everything, as JSON can carry it."""
        return {
            "admitted": self.admitted,
            "closed": self.closed,
            "cleanup_rate": self.cleanup_rate,
            "cleanup_seconds": {reason: attrs.asdict(timing) for reason, timing in self.timings.items()},
            "evidence": [attrs.asdict(item) for item in self.evidence],
            "memory": [attrs.asdict(sample) for sample in self.memory],
        }
