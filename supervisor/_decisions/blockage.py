"""Where a task hangs."""

from __future__ import annotations

import trio


def blocked_at(task: trio.lowlevel.Task) -> str:
    """``file:line`` of the innermost line outside Trio at which `task`, or the child it waits for, is blocked."""
    while task.child_nurseries and (children := task.child_nurseries[-1].child_tasks):
        task = next(iter(children))
    place = "?"
    for frame, line in task.iter_await_frames():
        if not frame.f_globals.get("__name__", "").startswith("trio."):
            place = f"{frame.f_code.co_filename}:{line}"
    return place
