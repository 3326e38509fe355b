"""Which line has made something, outside of libraries: for whoever must be told where to look."""

from __future__ import annotations

import gc
import os
import tracemalloc
from collections import Counter

OURS = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_STDLIB = os.path.dirname(os.__file__) + os.sep


def is_library(filename: str) -> bool:
    """Whether a file is none of those that are being tested: installed, part of Python, or of this project."""
    return "<" in filename or f"{os.sep}site-packages{os.sep}" in filename or filename.startswith((OURS, _STDLIB))


def allocated_at(thing: object) -> str:
    """``file:line`` of whoever made `thing`, outside libraries; empty unless that was traced."""
    trace = tracemalloc.get_object_traceback(thing)
    if trace is None:
        return ""
    frame = next((frame for frame in reversed(trace) if not is_library(frame.filename)), trace[-1])
    return f"{frame.filename}:{frame.lineno}"


def lines_alive() -> Counter[str]:
    """How many traced allocations each line has alive that is in nobody's library, as ``file:line``."""
    gc.collect()
    counts: Counter[str] = Counter()
    for entry in tracemalloc.take_snapshot().statistics("lineno"):
        frame = entry.traceback[0]
        if not is_library(frame.filename):
            counts[f"{frame.filename}:{frame.lineno}"] = entry.count
    return counts


def raised_at(exception: BaseException) -> str:
    """``file:line`` of the innermost frame of its traceback."""
    trace = exception.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return "" if trace is None else f"{trace.tb_frame.f_code.co_filename}:{trace.tb_lineno}"
