"""What several checks do with several clients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import trio

from ..._words.closing import CloseReason
from ..labs import Supervised
from ..leaks import summary
from ..subject import Client, NotHere, Subject, expect
from ..wire import Peer

#: Seconds within which everything of a connection is gone; the promise.
BOUND = 0.5
#: What may come on top on a real machine: a busy loop's delay.
DELAY = 0.5
#: The close codes that a handler did not choose.
_OURS = frozenset(reason.code for reason in CloseReason)


async def all_at_once(subject: Subject, users: Iterable[str], peer: Peer = Peer.HEALTHY) -> list[Client]:
    """Everybody connects in the same moment."""
    clients: list[Client] = []

    async def one(user: str) -> None:
        clients.append(await subject.connect(user, peer=peer))

    async with trio.open_nursery() as nursery:
        for user in users:
            nursery.start_soon(one, user)
    return clients


async def disconnected(subject: Subject, whom: Iterable[tuple[str, str | None]]) -> int:
    """All of these users, or their sessions, are ended by hand at the same time; how many connections that were."""
    counts: list[int] = []

    async def one(user: str, session: str | None) -> None:
        counts.append(await subject.disconnect(user, session))

    async with trio.open_nursery() as nursery:
        for user, session in whom:
            nursery.start_soon(one, user, session)
    return sum(counts)


def inside(clients: Iterable[Client]) -> list[Client]:
    """Those who have been let in."""
    return [client for client in clients if not client.refused]


async def everybody_leaves(clients: Iterable[Client]) -> None:
    """Each says goodbye, at the same time."""
    async with trio.open_nursery() as nursery:
        for client in clients:
            nursery.start_soon(client.leave)


async def closes(client: Client, seconds: float = BOUND) -> int:
    """The close code of a client who is about to be told; 0 if nothing comes."""
    with trio.move_on_after(seconds + DELAY):
        return await client.over()
    return 0


def ends_by_itself(codes: Iterable[int | None]) -> None:
    """What can be said of those who stay cannot be said of a handler that returns, fails or closes."""
    if any(code in (1000, 1011) or (code is not None and code >= 4000 and code not in _OURS) for code in codes):
        raise NotHere(f"the handler ends connections by itself ({', '.join(map(str, set(codes)))})")


async def settle_at(subject: Subject, before: Mapping[str, int] | None = None, seconds: float = BOUND) -> None:
    """Convict the subject of whatever is left of anybody after the bound."""
    remains = await wait_for_nobody(subject, before, seconds)
    told = ", ".join(f"{count} orphaned {index} remain" for index, count in remains.items())
    if isinstance(subject, Supervised) and subject.tracker.violations:
        told += f" ({summary(subject.tracker.violations)})"
    expect(not remains, told)


async def wait_for_nobody(
    subject: Subject, before: Mapping[str, int] | None = None, seconds: float = BOUND
) -> Mapping[str, int]:
    """Wait for the bound, and no longer; what is left of anybody then."""
    baseline = before or {}
    with trio.move_on_after(seconds + DELAY):
        while _remains(await subject.census(), baseline):  # noqa: ASYNC110 - a subject can only be asked
            await trio.sleep(0.01)
    return _remains(await subject.census(), baseline)


def _remains(census: Mapping[str, int], baseline: Mapping[str, int]) -> dict[str, int]:
    return {index: count - baseline.get(index, 0) for index, count in census.items() if count > baseline.get(index, 0)}
