"""Compression (permessage-deflate, RFC 7692), each message by itself.

So one compressed message serves every receiver, and no connection keeps a window, which would be 300 kB for each.
"""

from __future__ import annotations

from websockets.exceptions import InvalidHeader, NegotiationError
from websockets.extensions.permessage_deflate import PerMessageDeflate, ServerPerMessageDeflateFactory
from websockets.headers import build_extension, parse_extension

from .._words.frames import WINDOW_BITS

_OURS = ServerPerMessageDeflateFactory(server_no_context_takeover=True, client_no_context_takeover=True)


def agree(offers: str) -> tuple[str, PerMessageDeflate] | None:
    """The answer to what a client offers, and what decodes its messages. None if it offers nothing that will do.

    It decodes no more than the protocol's ``max_size``, whatever a few bytes would have become.
    """
    try:
        offered = parse_extension(offers)
    except InvalidHeader:
        return None
    for name, parameters in offered:
        if name == PerMessageDeflate.name:
            try:
                answer, extension = _OURS.process_request_params(parameters, ())
            except NegotiationError:
                continue
            if extension.local_max_window_bits == WINDOW_BITS:
                return build_extension([(name, answer)]), extension
    return None
