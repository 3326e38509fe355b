"""Where log lines go: to standard error, written by a thread, so that a terminal that is stopped stops nothing else."""

from __future__ import annotations

import json
import logging
import logging.handlers
import queue
import sys
import time
from typing import Any, Literal

#: Lines that wait to be written; of more, only the number is told.
MAX_WAITING = 10_000
#: Characters of a traceback that are written.
_LONGEST = 20_000
#: Seconds that the last lines are given when the process ends.
_LAST = 0.5


class TextLine(logging.Formatter):
    """A line of text; a traceback below it is indented, so that what somebody else has said cannot look like a line."""

    def __init__(self) -> None:
        super().__init__("%(asctime)s %(levelname)-8s %(message)s")

    def formatException(self, exc_info: Any) -> str:  # noqa: N802 - its name in logging
        """The traceback, without anything that a terminal would obey."""
        lines = super().formatException(exc_info)[:_LONGEST].splitlines()
        return "\n".join("    " + "".join(it if it.isprintable() else "·" for it in line) for line in lines)


class LogLine(logging.Formatter):
    """One JSON object per line: time, level, message, the event's fields, and a traceback if there is one."""

    def format(self, record: logging.LogRecord) -> str:
        """Spell one record."""
        line = {"time": self.formatTime(record), "level": record.levelname.lower(), "message": record.getMessage()}
        line |= getattr(record, "event", {})
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return json.dumps(line, default=repr)


class Spooler(logging.handlers.QueueHandler):
    """Spells records, and leaves the writing to a thread. Nobody ever waits for it."""

    def __init__(self) -> None:
        self.waiting: queue.Queue[logging.LogRecord] = queue.Queue(MAX_WAITING)
        super().__init__(self.waiting)
        self.lost = 0

    def enqueue(self, record: logging.LogRecord) -> None:
        """Take one line, or count it."""
        try:
            if self.lost:
                told = f"{self.lost} log lines were lost: nobody read them"
                self.waiting.put_nowait(logging.makeLogRecord({"msg": told}))
                self.lost = 0
            self.waiting.put_nowait(record)
        except queue.Full:
            self.lost += 1

    def flush(self) -> None:
        """Wait until everything is written, for half a second at most."""
        until = time.monotonic() + _LAST
        while self.waiting.unfinished_tasks and time.monotonic() < until:
            time.sleep(0.01)


def log_to_stderr(form: Literal["text", "json"], level: str) -> None:
    """Write the log of the supervisor, and what else there is to say, to standard error."""
    spooler = Spooler()
    spooler.setFormatter(LogLine() if form == "json" else TextLine())
    writer = logging.StreamHandler(sys.stderr)
    writer.setFormatter(logging.Formatter("%(message)s"))
    logging.basicConfig(level=level.upper(), handlers=[spooler], force=True)
    logging.getLogger("trio-websocket").setLevel(logging.WARNING)
    logging.handlers.QueueListener(spooler.waiting, writer).start()
