"""Who judges credentials while connections are open: whoever serves them gives a supervisor one."""

from __future__ import annotations

from typing import Protocol

from .._words.identity import Identity


class Authority(Protocol):
    """Knows whose a token is, and what is not believed any more."""

    async def identify(self, token: str, peer: str) -> Identity:
        """Whose `token` it is; `Unauthorized` if it cannot be believed."""
        ...

    def revoke(self, user: str) -> None:
        """Believe nothing any more that was issued to `user` until now."""
        ...
