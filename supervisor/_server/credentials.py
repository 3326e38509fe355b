"""Where a request carries its token, and how it is kept out of everything that is written down. Pure."""

from __future__ import annotations

import attrs

from .._words.errors import BadRequest, IdentityMismatch
from .._words.identity import Identity
from .head import Request

#: How a browser, which cannot set headers, offers a token: as one of its subprotocols.
SUBPROTOCOL_PREFIX = "bearer."


def bearer_token(request: Request) -> str | None:
    """The one token of a request: ``Authorization: Bearer``, ``?token=``, or the subprotocol ``bearer.<token>``.

    None if there is none; `BadRequest` if there is more than one, which would leave open whose request it is.
    """
    scheme, _, credential = (request.header("authorization") or "").partition(" ")
    found = [credential.strip()] if scheme.lower() == "bearer" else []
    offered = request.tokens("sec-websocket-protocol")
    found += [token.removeprefix(SUBPROTOCOL_PREFIX) for token in offered if token.startswith(SUBPROTOCOL_PREFIX)]
    in_query = request.query("token")
    found += [] if in_query is None else [in_query]
    if len(found) > 1:
        raise BadRequest("more than one token")
    return found[0] if found else None


def carrying(token: str, peer: str, *, secure: bool) -> Request:
    """A request that consists of nothing but a token: what an open connection comes with to renew its credential."""
    return Request(
        method="GET",
        path="/ws",
        query_string="",
        http_version="1.1",
        headers=(("authorization", f"Bearer {token}"),),
        peer=peer,
        secure=secure,
    )


def agreeing(request: Request, identity: Identity) -> Identity:
    """`identity`, as the token has it, completed by ``?session=``. `IdentityMismatch` if the query says otherwise.

    One identity, made once: a name in the query that is not the token's is a mistake that would be found much later.
    """
    user, session = request.query("user"), request.query("session")
    if user is not None and user != identity.user:
        raise IdentityMismatch("the user in the query is not the token's")
    if session is None or session == identity.session:
        return identity
    if identity.session is not None:
        raise IdentityMismatch("the session in the query is not the token's")
    return attrs.evolve(identity, session=session)
