"""What was agreed on before the first frame."""

from __future__ import annotations

import attrs


@attrs.frozen
class Upgrade:
    """A valid opening handshake: what is to be answered."""

    #: ``Sec-WebSocket-Key``, checked.
    key: str
    #: The one that was agreed on.
    subprotocol: str | None = None
    #: What the client offers, as it says it.
    extensions: str = ""
