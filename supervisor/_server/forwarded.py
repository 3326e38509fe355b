"""Who is behind a proxy: believed only from proxies that are listed. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable

import attrs

from .head import Request

Network = ipaddress.IPv4Network | ipaddress.IPv6Network
Address = ipaddress.IPv4Address | ipaddress.IPv6Address
_EVERYBODY = ("0.0.0.0/0", "::/0")


def networks(names: Iterable[str]) -> tuple[Network, ...]:
    """Addresses and networks, ``*`` for all of them. ValueError for what is neither."""
    chosen = [name for each in names for name in (_EVERYBODY if each == "*" else (each,))]
    return tuple(ipaddress.ip_network(name) for name in chosen)


def address(text: str) -> Address | None:
    """An address as proxies write it: plain, in brackets, with a port, or an IPv4 one in an IPv6 one."""
    host = text.strip()
    if host.startswith("["):
        host = host[1:].partition("]")[0]
    elif host.count(":") == 1:
        host = host.partition(":")[0]
    try:
        found = ipaddress.ip_address(host)
    except ValueError:
        return None
    return getattr(found, "ipv4_mapped", None) or found


def group_of(peer: str) -> str:
    """Whom a rate for one address is for: an IPv6 host has a whole network of 64 bits to choose addresses from."""
    found = address(peer)
    if isinstance(found, ipaddress.IPv6Address):
        return str(ipaddress.ip_network((int(found), 64), strict=False))
    return peer if found is None else str(found)


def behind_proxies(request: Request, trusted: tuple[Network, ...]) -> Request:
    """`request`, with the address that the last proxy to be trusted has seen, and the scheme that it was asked by.

    ``X-Forwarded-For`` is read from its end: what stands before the first hop that is not trusted may be anybody's
    invention. Both headers mean nothing from anybody else.
    """
    if not trusted or not _trusts(trusted, address(request.peer)):
        return request
    peer = request.peer
    for hop in reversed(request.tokens("x-forwarded-for")):
        found = address(hop)
        if found is None:
            break
        peer = str(found)
        if not _trusts(trusted, found):
            break
    scheme = [token.lower() for token in request.tokens("x-forwarded-proto")[-1:]]
    return attrs.evolve(request, peer=peer, secure=scheme[0] in ("https", "wss") if scheme else request.secure)


def _trusts(trusted: tuple[Network, ...], found: Address | None) -> bool:
    return found is not None and any(found in network for network in trusted)
