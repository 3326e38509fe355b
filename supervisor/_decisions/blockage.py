"""Where a task hangs."""

from __future__ import annotations

import trio

# What a task's innermost coroutine is called while it waits, at the end of a nursery's block, for the children.
_WAITS_FOR_CHILDREN = "_nested_child_finished"


def blocked_at(task: trio.lowlevel.Task) -> str:
    """``file:line`` of the innermost line outside Trio at which `task`, or the child it waits for, is blocked."""
    place, waits_for = "?", None
    for frame, line in task.iter_await_frames():
        if not frame.f_globals.get("__name__", "").startswith("trio."):
            place, waits_for = f"{frame.f_code.co_filename}:{line}", None
        elif frame.f_code.co_name == _WAITS_FOR_CHILDREN:
            waits_for = frame.f_locals.get("self")
    children = waits_for.child_tasks if isinstance(waits_for, trio.Nursery) else ()
    return blocked_at(next(iter(children))) if children else place
