"""Who holds on to an object that nobody should need any more, by a name that can be looked up."""

from __future__ import annotations

import gc
import sys
from types import CoroutineType, FrameType, FunctionType, ModuleType

_DEPTH = 6
_MOST = 4


def who_holds(thing: object) -> tuple[str, ...]:
    """Names such as ``app.SOCKETS`` or ``local 'conns' at app.py:12``: where the chains of references begin."""
    namespaces = {
        id(module.__dict__): name for name, module in list(sys.modules.items()) if isinstance(module, ModuleType)
    }
    found: list[str] = []
    seen = {id(thing)}
    level: list[object] = [thing]
    for _ in range(_DEPTH):
        above: list[object] = []
        seen |= {id(level), id(above)}
        for held in level:
            for holder in gc.get_referrers(held):
                if id(holder) in seen or (isinstance(holder, FrameType) and holder.f_globals is globals()):
                    continue
                seen.add(id(holder))
                name = _name(holder, held, namespaces)
                if name:
                    found.append(name)
                else:
                    above.append(holder)
        level = above[:200]
        if len(found) >= _MOST or not level:
            break
    return tuple(dict.fromkeys(found))[:_MOST]


def _name(holder: object, held: object, namespaces: dict[int, str]) -> str:
    if isinstance(holder, dict) and id(holder) in namespaces:
        names = [name for name, value in list(holder.items()) if value is held]
        return f"{namespaces[id(holder)]}.{names[0]}" if names else ""
    if isinstance(holder, FrameType):
        local = next((name for name, value in holder.f_locals.items() if value is held), "?")
        return f"local {local!r} at {holder.f_code.co_filename}:{holder.f_lineno}"
    if isinstance(holder, CoroutineType):
        return f"a coroutine that has not ended: {holder.__qualname__}"
    if isinstance(holder, FunctionType):
        return f"a closure of {holder.__module__}.{holder.__qualname__}"
    return ""
