"""What was seen in production, and how it must end."""

from __future__ import annotations

import trio

from ..._words.limits import Limits
from ..checks import OURS, Budget, check
from ..subject import Client, Lab, Settings, expect
from ..wire import Peer
from ._crowd import DELAY, closes, disconnected, inside, settle_at


@check("R26")
async def a_browser_with_eight_tabs(lab: Lab, budget: Budget) -> None:
    async with lab.open() as subject:
        limit, before = subject.limits.per_user, dict(await subject.census())
        tabs = [await subject.connect("verify-tabs") for _ in range(8)]
        evicted = tabs[: max(0, 8 - limit)]
        codes = [await closes(tab) for tab in evicted]
        expect(codes == [4505] * len(evicted), f"the oldest tabs ended with {codes}, expected 4505")
        count = await subject.count("verify-tabs")
        expect(count == min(8, limit), f"Expected {min(8, limit)} connections, got {count}")
        for tab in tabs[len(evicted) :]:
            tab.vanish()
        await settle_at(subject, before)


@check("R27", doors=OURS)
async def a_cold_start_of_twenty_five_against_twenty(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(per_user=20), background=False)) as subject:
        started = trio.current_time()
        clients = [await subject.connect("ann") for _ in range(25)]
        took = trio.current_time() - started
        expect(took < 2, f"25 connects took {took:.2f} s")
        refused = [client.text for client in clients if client.refused]
        expect(not refused, f"{len(refused)} were refused: {refused[:1]}")
        count = await subject.count("ann")
        expect(count == 20, f"Expected 20 connections, got {count}")
        for client in clients:
            client.vanish()
        await settle_at(subject)


@check("R28")
async def a_phone_that_reconnects_while_its_old_socket_is_half_open(lab: Lab, budget: Budget) -> None:
    async with lab.open() as subject:
        limit, before = subject.limits.per_user, dict(await subject.census())
        old: list[Client] = []
        for _ in range(15):
            phone = await subject.connect("verify-phone", session="phone", peer=Peer.NEVER_READS)
            expect(not phone.refused, f"locked out by its own dead sockets: {phone.text}")
            old.append(phone)
            await trio.sleep(0.2)
        count = await subject.count("verify-phone")
        expect(count <= limit, f"Expected at most {limit} connections, got {count}")
        for phone in old:
            phone.vanish()
        await settle_at(subject, before)


@check("R29", doors=OURS)
async def a_hundred_whose_session_and_socket_were_named_differently(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(per_user=5))) as subject:
        for number in range(100):
            kind = "session" if number % 2 else "websocket_factory"
            await subject.connect(f"user-{number // 5}", session=f"thread_{kind}_{number}")
        found = await disconnected(subject, [(f"user-{number}", None) for number in range(20)])
        expect(found == 100, f"{100 - found} of 100 were not found under their key: {100 - found} % key mismatch")
        await settle_at(subject)


@check("R30", doors=OURS)
async def arrivals_that_outpace_any_periodic_cleanup(lab: Lab, budget: Budget) -> None:
    pauses = (0.5, 0.01) if lab.door == "memory" else (0.01,)
    async with lab.open(Settings(limits=Limits(per_user=20), background=False)) as subject:
        for pause in pauses:
            clients = []
            for _ in range(int((10 if lab.door == "memory" else 2) / pause)):
                client = await subject.connect("ann")
                expect(not client.refused, f"locked out: {client.text}")
                clients.append(client)
                await trio.sleep(pause)
            await trio.sleep(0.01)
            count = await subject.count("ann")
            alive = min(20, sum(client.code is None for client in clients))
            expect(count == alive, f"Expected {alive} connections, got {count}")
            for client in inside(clients):
                client.vanish()
            await settle_at(subject)


@check("R31", doors=OURS)
async def a_noisy_user_does_not_hurt_the_others(lab: Lab, budget: Budget) -> None:
    async with lab.open(Settings(limits=Limits(per_user=20))) as subject:
        for _ in range(20):
            await subject.connect("noisy", peer=Peer.NEVER_READS)
        others = [await subject.connect("busy") for _ in range(18)] + [await subject.connect("calm") for _ in range(5)]
        for _ in range(20):
            before = trio.current_time()
            await subject.connect("noisy", peer=Peer.NEVER_READS)
            took = trio.current_time() - before
            expect(took <= 0.1 + (1e-6 if lab.door == "memory" else DELAY), f"an arrival took {took:.3f} s")
        lost = [other.code for other in others if other.code is not None]
        expect(not lost, f"{len(lost)} of the others were ended: {lost}")
        for name, expected in (("busy", 18), ("calm", 5)):
            count = await subject.count(name)
            expect(count == expected, f"Expected {expected} connections of {name!r}, got {count}")
