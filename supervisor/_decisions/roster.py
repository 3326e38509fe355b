"""Who is here: the same record for one user and for everybody."""

from __future__ import annotations

from collections import OrderedDict

import attrs

from .seats import Seats
from .stay import Stage, Stay

FILES = (Stage.QUEUED, Stage.CLAIM, Stage.LEAVING, Stage.CLOSING, Stage.STUCK)


def _files() -> dict[Stage, dict[Stay, None]]:
    """Claims are in an ordered one, because it is the first of many that leave: a dictionary passes over each gap."""
    return {stage: OrderedDict() if stage is Stage.CLAIM else {} for stage in FILES}


@attrs.define(eq=False)
class Roster:
    """Every stay under one limit, filed by its stage, oldest first."""

    seats: Seats
    files: dict[Stage, dict[Stay, None]] = attrs.field(factory=_files)
    #: The claims once more, by activity: the longest idle first.
    by_activity: OrderedDict[Stay, None] = attrs.field(factory=OrderedDict)
    #: Claims with a ping or a write outstanding; those among them that stay so may be shed first.
    suspects: dict[Stay, None] = attrs.field(factory=dict)

    @classmethod
    def of(cls, maximum: int) -> Roster:
        """An empty roster for a limit of `maximum`."""
        return cls(Seats(maximum))

    @property
    def maximum(self) -> int:
        """The limit itself."""
        return self.seats.maximum

    @property
    def claims(self) -> dict[Stay, None]:
        """Admitted and not leaving."""
        return self.files[Stage.CLAIM]

    @property
    def full(self) -> bool:
        """Whether another claim would exceed the limit."""
        return len(self.claims) >= self.maximum

    @property
    def occupied(self) -> bool:
        """Whether anybody is here in any stage."""
        return any(self.files.values())

    def refile(self, stay: Stay, stage: Stage) -> None:
        """Move `stay` to its next stage; the only way in, on and out. `stay.stage` still says where it was."""
        if stay.stage is not None:
            del self.files[stay.stage][stay]
        if stay.stage is Stage.CLAIM:
            del self.by_activity[stay]
            self.suspects.pop(stay, None)
            self.seats.heirs.pop(stay, None)
        if stage is Stage.CLAIM:
            self.by_activity[stay] = None
        if stage is not Stage.GONE:
            self.files[stage][stay] = None
