"""Python's cycle collector, told that there is little to do."""

from __future__ import annotations

import gc

#: A connection's life leaves nothing for the collector, so looking through all that is alive is in vain.
THRESHOLDS = (50_000, 20, 100)


def tune_collector() -> None:
    """Have Python's cycle collector run rarely, and pass over everything that exists now. For the whole process.

    Call it once, when a program has been set up. With 3,000 connections, what the collector does by default costs more
    than serving them. ``ws-supervisor serve`` calls it; the library never does so unasked. Programs whose own code
    makes much cyclic garbage should measure before. Undone by ``gc.unfreeze()`` and ``gc.set_threshold(700, 10, 10)``.
    """
    gc.collect()
    gc.freeze()
    gc.set_threshold(*THRESHOLDS)
