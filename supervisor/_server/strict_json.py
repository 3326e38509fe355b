"""JSON of which there can be no two opinions: for what is trusted because it was signed."""

from __future__ import annotations

import json
from typing import Any, NoReturn


def parse_object(content: bytes) -> dict[str, Any]:
    """An object in UTF-8, no name in it twice, no NaN, no infinity. ValueError for everything else."""
    try:
        parsed = json.loads(content.decode(), object_pairs_hook=_unique, parse_constant=_reject)
    except RecursionError:
        raise ValueError("JSON nested too deeply") from None
    if not isinstance(parsed, dict):
        raise ValueError("JSON, but no object")
    return parsed


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name stands twice in one JSON object")
    return found


def _reject(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")
