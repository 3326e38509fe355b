"""A client of the hub for Trio programs: it comes back by itself, and misses nothing without saying so.

::

    async with open_client("ws://127.0.0.1:8765/ws?user=ann") as client:
        await client.join("lobby")
        await client.publish("lobby", "hello")
        async for happening in client:
            print(happening)
"""

from .._words.errors import OutcomeUnknown
from .client import Client, open_client
from .happenings import Connected, Disconnected, Gap, Happening, Message, Presence, RoomLost, RunEvent
from .line import Dismissed
from .requests import RequestFailed

__all__ = [
    "Client",
    "Connected",
    "Disconnected",
    "Dismissed",
    "Gap",
    "Happening",
    "Message",
    "OutcomeUnknown",
    "Presence",
    "RequestFailed",
    "RoomLost",
    "RunEvent",
    "open_client",
]
