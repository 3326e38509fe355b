"""The opening handshake and the Origin rule, as pure judgements."""

from __future__ import annotations

import pytest

from supervisor import BadRequest, Forbidden, Request
from supervisor._server.head import SUBPROTOCOL, Upgrade, judge_upgrade, origin_allowed
from tests.serving import KEY

GOOD = {
    "host": "example.com",
    "upgrade": "websocket",
    "connection": "keep-alive, Upgrade",
    "sec-websocket-key": KEY,
    "sec-websocket-version": "13",
}


def head(
    method: str = "GET",
    path: str = "/ws",
    query: str = "",
    version: str = "1.1",
    peer: str = "127.0.0.1",
    secure: bool = False,
    more: tuple[tuple[str, str], ...] = (),
    **changed: str | None,
) -> Request:
    headers = GOOD | {name.replace("_", "-"): value for name, value in changed.items()}
    return Request(
        method=method,
        path=path,
        query_string=query,
        http_version=version,
        headers=(*((name, value) for name, value in headers.items() if value is not None), *more),
        peer=peer,
        secure=secure,
    )


def judge(request: Request, *, trailing: bool = False) -> Upgrade:
    return judge_upgrade(request, trailing=trailing, allowed_origins=frozenset(), require_origin=False)


def test_a_good_handshake() -> None:
    assert judge(head()) == Upgrade(KEY, None)
    assert judge(head(upgrade="WebSocket", connection="UPGRADE")) == Upgrade(KEY, None)
    assert judge(head(sec_websocket_protocol=f"other, {SUBPROTOCOL}")) == Upgrade(KEY, SUBPROTOCOL)
    assert judge(head(sec_websocket_protocol="other")) == Upgrade(KEY, None)


@pytest.mark.parametrize(
    ("request_head", "status"),
    [
        (head(upgrade=None), 426),
        (head(upgrade="h2c"), 426),
        (head(connection="close"), 426),
        (head(method="POST"), 400),
        (head(version="1.0"), 400),
        (head(sec_websocket_version="12"), 426),
        (head(sec_websocket_version=None), 426),
        (head(sec_websocket_key=None), 400),
        (head(sec_websocket_key="short"), 400),
        (head(sec_websocket_key=KEY[:-4] + "===="), 400),
        (head(sec_websocket_key="\xff" * 24), 400),
        (head(more=(("sec-websocket-key", KEY),)), 400),
        (head(more=(("sec-websocket-version", "13"),)), 400),
        (head(content_length="5"), 400),
        (head(transfer_encoding="chunked"), 400),
        (head(host="\xff"), 400),
        (head(connection="Upgrade\xe9"), 400),
        (head(sec_websocket_protocol="\xff"), 400),
        (head(sec_websocket_extensions="\xff"), 400),
        (head(origin="http://\xff"), 400),
        (head(origin="http://evil.com"), 403),
        (head(more=(("host", "other.com"), ("origin", "http://example.com"))), 400),
    ],
)
def test_bad_handshakes_are_refused(request_head: Request, status: int) -> None:
    with pytest.raises((BadRequest, Forbidden)) as refused:
        judge(request_head)
    assert refused.value.status == status


def test_nothing_may_follow_the_head() -> None:
    with pytest.raises(BadRequest, match="nothing may follow"):
        judge(head(), trailing=True)


@pytest.mark.parametrize("origin", ["http://example.com", "http://EXAMPLE.com", "http://example.com:80"])
def test_the_same_origin_may(origin: str) -> None:
    host = "example.com:80" if origin.endswith(":80") else "example.com"
    assert origin_allowed(head(origin=origin, host=host), frozenset(), require_origin=True)


@pytest.mark.parametrize(
    "origin",
    [
        *(
            "null",
            "",
            "evil",
            "http://evil.com",
            "https://example.com",
            "http://example.com.evil",
            "http://evilexample.com",
        ),
        *("http://example.com:8080", "http://example.com/", "http://user@example.com", "http://example.com`evil"),
        *("http://listed.com.evil", "http://listed.com:80", "xhttp://listed.com", "http://example.com http://evil.com"),
    ],
)
def test_another_origin_may_not(origin: str) -> None:
    assert not origin_allowed(head(origin=origin), frozenset({"http://listed.com"}), require_origin=False)


def test_origins_may_be_listed_exactly_absent_or_required() -> None:
    listed = frozenset({"https://listed.com"})
    assert origin_allowed(head(origin="https://listed.com"), listed, require_origin=True)
    assert origin_allowed(head(), listed, require_origin=False)
    assert not origin_allowed(head(), listed, require_origin=True)
    two = head(more=(("origin", "https://listed.com"), ("origin", "https://listed.com")))
    assert not origin_allowed(two, listed, require_origin=False)


def test_tls_is_part_of_the_origin() -> None:
    assert origin_allowed(head(origin="https://example.com", secure=True), frozenset(), require_origin=False)
    assert not origin_allowed(head(origin="http://example.com", secure=True), frozenset(), require_origin=False)


@pytest.mark.parametrize(
    ("peer", "host", "local"),
    [
        ("127.0.0.1", "localhost:8765", True),
        ("127.0.0.1", "127.0.0.1", True),
        ("::1", "[::1]:8765", True),
        ("127.9.9.9", "LOCALHOST", True),
        ("127.0.0.1", "evil.com:8765", False),  # a name of somebody's that resolves to this machine
        ("127.0.0.1", "localhost.evil.com", False),
        ("127.0.0.1", "", False),
        ("10.0.0.1", "localhost", False),
    ],
)
def test_who_is_local(peer: str, host: str, local: bool) -> None:
    assert head(peer=peer, host=host).is_local is local


def test_query_parameters() -> None:
    assert head(query="user=a%20b&session=").query("user") == "a b"
    assert head(query="user=a%20b&session=").query("session") == ""
    assert head().query("user") is None
    for bad in ("user=a&user=b", "user=%ff", "&".join(f"x{number}=1" for number in range(60))):
        with pytest.raises(BadRequest):
            head(query=bad).query("user")


def test_tokens_are_not_shown() -> None:
    assert "s3cret" not in repr(head(query="token=s3cret", authorization="Bearer s3cret"))
