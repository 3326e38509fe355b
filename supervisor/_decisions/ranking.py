"""Who holds most: users by the number of their claims, so that the greediest is found without a search."""

from __future__ import annotations

from collections import OrderedDict

import attrs

from .stay import User


@attrs.define(eq=False)
class Ranking:
    """Told of each change of a user's number; every question and every answer takes the same time."""

    #: By number; nobody is in two, and nobody with none is in any. Within one, who has come to that number first.
    _holding: dict[int, OrderedDict[User, None]] = attrs.field(factory=dict)
    _most: int = 0

    def note(self, user: User, claims: int) -> None:
        """`user` has so many claims now."""
        if claims == user.ranked:
            return
        if user.ranked:
            self._leave(user)
        user.ranked = claims
        if claims:
            self._holding.setdefault(claims, OrderedDict())[user] = None
            self._most = max(self._most, claims)

    def _leave(self, user: User) -> None:
        peers = self._holding[user.ranked]
        del peers[user]
        if not peers:
            del self._holding[user.ranked]
            while self._most and self._most not in self._holding:
                self._most -= 1

    def count(self, claims: int) -> int:
        """How many users have so many, or more."""
        return sum(len(users) for number, users in self._holding.items() if number >= claims)

    def greediest(self) -> User:
        """Who holds most; of several, who has held as many for longest. KeyError if nobody holds anything."""
        return next(iter(self._holding[self._most]))
