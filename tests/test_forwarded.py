"""Who is behind a proxy, and whose word counts for it."""

from __future__ import annotations

import attrs
import pytest

from supervisor import Options, echo
from supervisor._server.forwarded import behind_proxies, group_of, networks
from supervisor._server.head import Request
from tests.serving import connect, open_server, upgrade_head

REQUEST = Request(
    method="GET", path="/ws", query_string="", http_version="1.1", headers=(), peer="10.0.0.1", secure=False
)


def told(peer: str, *forwarded: str, trusted: tuple[str, ...] = ("10.0.0.0/8",), proto: str | None = None) -> Request:
    headers = tuple(("x-forwarded-for", value) for value in forwarded)
    headers += () if proto is None else (("x-forwarded-proto", proto),)
    return behind_proxies(attrs.evolve(REQUEST, peer=peer, headers=headers), networks(trusted))


@pytest.mark.req("R37")
@pytest.mark.parametrize(
    ("peer", "forwarded", "seen"),
    [
        ("10.0.0.1", ["192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6, 192.0.2.7"], "192.0.2.7"),  # what it said of itself
        ("10.0.0.1", ["6.6.6.6", "192.0.2.7"], "192.0.2.7"),
        ("10.0.0.1", ["192.0.2.7, 10.9.9.9"], "192.0.2.7"),  # two proxies
        ("10.0.0.1", ["10.1.1.1, 10.9.9.9"], "10.1.1.1"),  # somebody inside
        ("10.0.0.1", ["192.0.2.7, nonsense, 10.9.9.9"], "10.9.9.9"),
        ("10.0.0.1", ["nonsense"], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.7:4711"], "192.0.2.7"),
        ("10.0.0.1", ["[2001:db8::1]:4711"], "2001:db8::1"),
        ("10.0.0.1", ["2001:db8::1"], "2001:db8::1"),
        ("::ffff:10.0.0.1", ["::ffff:192.0.2.7"], "192.0.2.7"),
        ("192.0.2.1", ["6.6.6.6"], "192.0.2.1"),  # not our proxy
        ("?", ["6.6.6.6"], "?"),
    ],
)
def test_the_last_hop_that_is_not_ours_is_whom_we_see(peer: str, forwarded: list[str], seen: str) -> None:
    assert told(peer, *forwarded).peer == seen


@pytest.mark.parametrize(("proto", "secure"), [("https", True), ("wss", True), ("http", False), ("http, https", True)])
def test_the_proxy_knows_whether_it_was_asked_securely(proto: str, secure: bool) -> None:
    assert told("10.0.0.1", proto=proto).secure is secure
    assert told("192.0.2.1", proto=proto).secure is False


def test_everybody_may_be_trusted_and_nobody_is_by_default() -> None:
    assert told("192.0.2.1", "6.6.6.6, 7.7.7.7", trusted=("*",)).peer == "6.6.6.6"
    assert told("10.0.0.1", "6.6.6.6", trusted=()).peer == "10.0.0.1"
    with pytest.raises(ValueError, match=r"proxy\.example"):
        Options(forwarded_allow_ips=("proxy.example",))


def test_an_ipv6_network_counts_as_one() -> None:
    assert group_of("2001:db8::1") == group_of("2001:db8::ffff:1") != group_of("2001:db8:0:1::1")
    assert group_of("192.0.2.1") != group_of("192.0.2.2")
    assert group_of("::ffff:192.0.2.1") == group_of("192.0.2.1")
    assert group_of("?") == "?"


@pytest.mark.req("R40")
async def test_what_a_proxy_of_this_machine_brings_is_not_of_this_machine() -> None:
    """Anonymous users may come from here only; a proxy in front must not make everybody one of us."""
    async with open_server(echo) as server, connect(server) as raw:
        await raw.send(upgrade_head(X_Forwarded_For="192.0.2.7"))
        assert (await raw.response())[0] == 401


@pytest.mark.req("R37")
async def test_the_connection_is_known_by_the_address_behind_the_proxy() -> None:
    options = Options(allow_anonymous=True, forwarded_allow_ips=("127.0.0.1",))
    async with open_server(echo, options) as server, connect(server) as raw:
        await raw.upgrade(X_Forwarded_For="6.6.6.6, 192.0.2.7", X_Forwarded_Proto="https", Origin="https://127.0.0.1")
        (conn,) = server.supervisor.connections()
        assert conn.peer == "192.0.2.7"
