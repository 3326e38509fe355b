"""An agent that only pretends, to try runs with: it thinks, uses a tool, and answers, in five events."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import trio

from .._mechanisms.run import Run

#: Seconds that each step takes.
STEP = 0.2


async def demo(run: Run, data: Any) -> str:
    """Say what time it is, whatever was asked."""
    run.emit("agent_started", {"asked": data})
    await trio.sleep(STEP)
    run.emit("agent_thinking", {"thought": "this needs a clock"})
    await trio.sleep(STEP)
    run.emit("tool_executing", {"tool": "clock"})
    await trio.sleep(STEP)
    now = datetime.now(UTC).strftime("%H:%M:%S")
    run.emit("tool_completed", {"tool": "clock", "answer": now})
    answer = f"It is {now} in UTC."
    run.emit("agent_completed", {"answer": answer})
    return answer
