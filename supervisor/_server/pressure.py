"""Whether memory is about to run out: this process's own, where what it may have is limited."""

from __future__ import annotations

import math
import resource
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

import attrs
import trio

#: Newcomers are refused from here on; what is left is for those who are in.
_FULL = 0.9
#: From here on everybody who comes is looked at; below, an answer is good for so many seconds.
_NEAR = 0.8
_FRESH = 0.05
_PIECE = 1_000_000
_CGROUP = Path("/sys/fs/cgroup")
_PAGE = resource.getpagesize()

#: What is used, and what may be, in bytes.
Gauge = Callable[[], tuple[float, float]]


@attrs.define(eq=False)
class Pressure:
    """Looks at every limit there is: ``RLIMIT_AS``, and the memory limit of the control group (a container's)."""

    gauges: tuple[Gauge, ...] = attrs.field(factory=lambda: tuple(_gauges()))
    _high: bool = False
    _fresh_until: float = -math.inf

    def high(self) -> bool:
        """Whether nine tenths of what there may be are used."""
        if self.gauges and trio.current_time() >= self._fresh_until:
            figures = [gauge() for gauge in self.gauges]
            self._high = any(used >= _FULL * maximum for used, maximum in figures)
            near = any(used >= _NEAR * maximum for used, maximum in figures)
            self._fresh_until = trio.current_time() + (0.0 if near else _FRESH)
        return self._high


def _gauges() -> Iterator[Gauge]:
    if Path("/proc/self/statm").exists():
        yield _address_space
    for usage, maximum, statistics in _control_groups():
        if maximum.exists():
            yield partial(_control_group, usage, maximum, statistics)
            return


def _address_space() -> tuple[float, float]:
    maximum = resource.getrlimit(resource.RLIMIT_AS)[0]
    if maximum == resource.RLIM_INFINITY:
        return 0.0, math.inf
    used = int(Path("/proc/self/statm").read_text().split()[0]) * _PAGE
    if used >= _FULL * maximum and _can_be_had((1 - _FULL) / 2 * maximum):
        return _NEAR * maximum, maximum  # it was freed, and only the address space was not given back
    return used, maximum


def _can_be_had(octets: float) -> bool:
    """Whether there is so much, in pieces of the size of a large message."""
    try:
        pieces = [bytes(_PIECE) for _ in range(int(octets / _PIECE) + 1)]
    except MemoryError:
        return False
    return bool(pieces)


def _control_groups() -> Iterator[tuple[Path, Path, Path]]:
    """Where the second and the first version keep their books, of this group or, in a container, of all there is."""
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if "memory" in controllers.split(","):
            for place in (_CGROUP / "memory" / path.lstrip("/"), _CGROUP / "memory"):
                yield place / "memory.usage_in_bytes", place / "memory.limit_in_bytes", place / "memory.stat"
        elif not controllers:
            for place in (_CGROUP / path.lstrip("/"), _CGROUP):
                yield place / "memory.current", place / "memory.max", place / "memory.stat"


def _control_group(usage: Path, maximum: Path, statistics: Path) -> tuple[float, float]:
    """What can be had back at once, files that nobody uses, does not count."""
    try:
        limit = maximum.read_text().strip()
        if limit == "max":
            return 0.0, math.inf
        figures = dict(line.split() for line in statistics.read_text().splitlines())
        idle = int(figures.get("total_inactive_file", figures.get("inactive_file", 0)))
        return int(usage.read_text()) - idle, int(limit)
    except (OSError, ValueError):  # it has gone, or it looks different here
        return 0.0, math.inf
