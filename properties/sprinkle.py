"""More checkpoints than there are: between what is decided and what follows, so that more schedules can be told apart.

Only here, in tests. They cannot be cancelled, because where the code has no checkpoint it may rely on that.
"""

from __future__ import annotations

import contextlib
import functools
import random
from collections.abc import Awaitable, Callable, Iterator
from typing import Any

import trio

from supervisor._mechanisms import lifecycle

PLACES = ("_wait_for_claim", "_wait_for_seats", "_serve", "_open", "_wind_up", "_close", "_run_hook")


@contextlib.contextmanager
def sprinkled(seed: int) -> Iterator[None]:
    """Up to two passes more before and after each of these."""
    rng = random.Random(seed)
    originals = {place: getattr(lifecycle, place) for place in PLACES}
    for place, original in originals.items():
        setattr(lifecycle, place, _dawdling(original, rng))
    try:
        yield
    finally:
        for place, original in originals.items():
            setattr(lifecycle, place, original)


def _dawdling(async_fn: Callable[..., Awaitable[Any]], rng: random.Random) -> Callable[..., Awaitable[Any]]:
    @functools.wraps(async_fn)
    async def dawdling(*args: Any, **kwargs: Any) -> Any:
        for _ in range(rng.randrange(3)):
            await trio.lowlevel.cancel_shielded_checkpoint()
        result = await async_fn(*args, **kwargs)
        for _ in range(rng.randrange(3)):
            await trio.lowlevel.cancel_shielded_checkpoint()
        return result

    return dawdling
