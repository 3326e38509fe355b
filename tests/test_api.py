"""HTTP: the page, health, and cleaning up by hand."""

from __future__ import annotations

import contextlib
import math

import pytest
import trio

from supervisor import Identity, Limits, Options, Overflow, Policies, Request, Server, Timeouts, Unauthorized, events
from tests.serving import connect, open_server, request, settled, upgrade_head


@contextlib.asynccontextmanager
async def guests(server: Server, *users: str):
    """Some connections, of which nothing is asked."""
    async with contextlib.AsyncExitStack() as stack:
        for user in users:
            raw = await stack.enter_async_context(connect(server))
            await raw.upgrade(f"/ws?user={user}&session=s-{user}")
            await raw.message()
        yield


@pytest.mark.req("R17")
async def test_cleaning_up_by_hand_over_http() -> None:
    async with open_server() as server, guests(server, "ann", "ann", "bob", "cid", "cid", "dan"):
        status, listed = await request(server, "GET", "/api/connections?user=ann")
        assert (status, listed["total"]) == (200, 2)
        assert {card["session"] for card in listed["connections"]} == {"s-ann"}
        first = listed["connections"][0]["connection"]
        status, ended = await request(server, "POST", "/api/disconnect", {"connection": first})
        assert (status, ended["closed"], ended["connections"][0]["connection"]) == (200, 1, first)
        assert ended["connections"][0]["reason"] == "kicked"
        assert (await request(server, "POST", "/api/disconnect", {"user": "bob"}))[1]["closed"] == 1
        assert (await request(server, "POST", "/api/disconnect", {"user": "cid", "session": "s-cid"}))[1]["closed"] == 2
        assert (await request(server, "POST", "/api/expire", {"older_than": 1000}))[1]["closed"] == 0
        assert (await request(server, "POST", "/api/shed"))[1]["closed"] == 0
        assert (await request(server, "POST", "/api/expire", {"older_than": 0}))[1]["closed"] == 2
        assert (await request(server, "POST", "/api/disconnect", {"all": True}))[1]["closed"] == 0
        assert await request(server, "GET", "/api/audit") == (200, {"orphans": [], "runs": 1, "failures": 0})


@pytest.mark.req("R17")
@pytest.mark.parametrize(
    ("path", "body", "status"),
    [
        ("/api/disconnect", {"user": "nobody"}, 404),
        ("/api/disconnect", {"connection": "c999"}, 404),
        ("/api/disconnect", {}, 400),
        ("/api/disconnect", {"user": "ann", "all": True}, 400),
        ("/api/disconnect", {"user": ""}, 400),
        ("/api/disconnect", {"user": 0}, 400),
        ("/api/disconnect", {"all": False}, 400),
        ("/api/expire", {}, 400),
        ("/api/expire", {"older_than": "60"}, 400),
        ("/api/expire", {"older_than": -1}, 400),
        ("/api/expire", {"older_than": True}, 400),
        ("/api/drain", {"rate": 0}, 400),
        ("/api/drain", {"rate": "fast"}, 400),
        ("/api/drain", [1], 400),
        ("/api/nothing", {}, 404),
        ("/api/statistics", {}, 405),
    ],
)
async def test_an_unknown_key_or_a_bad_body_is_an_error(path: str, body: object, status: int) -> None:
    async with open_server() as server, guests(server, "ann"):
        got, answer = await request(server, "POST", path, body)
        assert got == status, answer
        assert answer["detail"]
        assert server.supervisor.statistics().connections == 1
        assert not server.supervisor.draining


async def test_connections_are_not_dumped_without_a_question() -> None:
    async with open_server() as server, guests(server, "ann", "bob"):
        assert (await request(server, "GET", "/api/connections"))[0] == 400
        assert (await request(server, "GET", "/api/connections?limit=x"))[0] == 400
        status, listed = await request(server, "GET", "/api/connections?limit=1")
        assert (status, len(listed["connections"]), listed["total"]) == (200, 1, 2)
        assert (await request(server, "GET", "/api/connections?user=nobody"))[1]["connections"] == []


async def test_statistics_health_and_readiness() -> None:
    async with open_server() as server, guests(server, "ann"):
        status, figures = await request(server, "GET", "/api/statistics")
        assert (status, figures["connections"], figures["users"], figures["seats"]) == (200, 1, 1, 1)
        assert await request(server, "GET", "/healthz") == (200, {"status": "ok"})
        assert await request(server, "GET", "/readyz") == (200, {"ready": True, "because": []})
        assert (await request(server, "POST", "/api/drain"))[1]["closed"] == 1
        assert await request(server, "GET", "/readyz") == (503, {"ready": False, "because": ["draining"]})
        assert (await request(server, "GET", "/healthz"))[0] == 200
        async with connect(server) as raw:
            await raw.send(upgrade_head())
            status, headers, body = await raw.response()
            assert (status, headers["retry-after"]) == (503, "5")
            assert b'"close_code": 1012' in body


@pytest.mark.req("R12")
async def test_too_many_stuck_handlers_are_not_ready() -> None:
    async def stubborn(conn) -> None:
        with trio.CancelScope(shield=True):
            await release.wait()

    release = trio.Event()
    async with open_server(stubborn, limits=Limits(stuck_total=0)) as server, connect(server) as raw:
        await raw.upgrade()
        await request(server, "POST", "/api/disconnect", {"user": "ann"})
        assert await request(server, "GET", "/readyz") == (503, {"ready": False, "because": ["1 stuck handlers"]})
        release.set()
        await settled(server.supervisor)
        assert (await request(server, "GET", "/readyz"))[0] == 200


@pytest.mark.req("R40")
async def test_the_api_wants_the_admin_token_where_there_is_one() -> None:
    async with open_server(options=Options(admin_token="s3cret")) as server:
        assert (await request(server, "GET", "/api/statistics"))[0] == 401
        assert (await request(server, "GET", "/api/statistics", Authorization="Bearer wrong"))[0] == 401
        assert (await request(server, "GET", "/api/statistics", Authorization="Bearer s3cret"))[0] == 200
        assert "s3cret" not in repr(server.options)


@pytest.mark.parametrize("header", [{"Origin": "http://evil.example"}, {"Host": "rebound.example"}])
async def test_somebody_elses_page_may_not_use_the_api(header: dict[str, str]) -> None:
    async with open_server() as server, guests(server, "ann"), connect(server) as raw:
        lines = {"Host": "127.0.0.1", "Content-Type": "text/plain", **header}
        head = "".join(f"{name}: {value}\r\n" for name, value in lines.items())
        await raw.send(f"POST /api/disconnect HTTP/1.1\r\n{head}Content-Length: 13\r\n\r\n".encode() + b'{"all": true}')
        assert (await raw.response())[0] == 403
        assert server.supervisor.statistics().connections == 1


@pytest.mark.req("R03")
async def test_refusals_say_why_before_the_upgrade() -> None:
    policies = Policies(overflow_user=Overflow.REJECT)
    async with open_server(limits=Limits(per_user=1, total=2), policies=policies) as server:
        async with guests(server, "ann", "bob"):
            for user, status, limit in (("ann", 429, "per user limit (1/1)"), ("cid", 503, "total limit (2/2)")):
                async with connect(server) as raw:
                    await raw.send(upgrade_head(f"/ws?user={user}"))
                    got, headers, body = await raw.response()
                    assert (got, headers["retry-after"], headers["content-type"]) == (status, "1", "application/json")
                    assert f"user '{user}' exceeded maximum connections {limit}" in body.decode()
                    assert b'"close_code": 4504' in body


async def test_a_plain_get_of_the_endpoint_is_told_to_upgrade() -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.send(b"GET /ws HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        status, headers, _ = await raw.response()
        assert (status, headers["sec-websocket-version"], headers["upgrade"]) == (426, "13", "websocket")


@pytest.mark.parametrize(
    ("path", "kind"),
    [
        ("/", "text/html"),
        ("/page/main.js", "text/javascript"),
        ("/page/style.css", "text/css"),
        ("/page/icon.svg", "image/svg+xml"),
    ],
)
async def test_the_page_is_served_and_may_load_nothing_from_elsewhere(path: str, kind: str) -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.send(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
        status, headers, body = await raw.response()
        assert (status, headers["content-type"].split(";")[0]) == (200, kind)
        assert headers["content-security-policy"].startswith("default-src 'self'")
        assert b"http://" not in body.replace(b"http://www.w3.org/2000/svg", b"")
        assert b"https://" not in body


async def test_a_failing_request_is_answered_reported_and_alone(monkeypatch) -> None:
    def broken(supervisor) -> tuple[str, ...]:
        raise RuntimeError("readiness raises")

    monkeypatch.setattr("supervisor._server.server.not_ready", broken)
    async with open_server() as server:
        assert (await request(server, "GET", "/readyz"))[0] == 500
        assert (await request(server, "GET", "/healthz"))[0] == 200
        assert server.supervisor.statistics().failures == {"request": 1}


async def test_a_body_is_bounded() -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.send(b"POST /api/shed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100000\r\n\r\n" + bytes(70_000))
        assert (await raw.response())[0] == 413


async def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    async with open_server(timeouts=Timeouts(handshake=0.2)) as server, connect(server) as raw:
        await raw.send(b"POST /api/shed HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 100\r\n\r\n{")
        assert (await raw.response())[0] == 408


async def test_head_is_answered_without_a_body() -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.send(b"HEAD /healthz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
        assert (await raw.read_until(b"\r\n\r\n")).startswith(b"HTTP/1.1 200")
        await raw.ended()
        assert raw.buffer == b""


async def test_a_host_that_is_none_is_not_local() -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.send(b"GET /api/statistics HTTP/1.1\r\nHost: [\r\n\r\n")
        assert (await raw.response())[0] == 403


async def test_a_number_too_large_to_be_one_is_a_bad_request() -> None:
    async with open_server() as server, connect(server) as raw:
        body = b'{"older_than": ' + b"9" * 400 + b"}"
        head = f"POST /api/expire HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: {len(body)}\r\n\r\n"
        await raw.send(head.encode() + body)
        assert (await raw.response())[0] == 400


@pytest.mark.parametrize(("status", "retry_after"), [(499, 1.0), (429, math.inf), (403, -5.0)])
async def test_a_hook_may_refuse_in_unusual_ways(status: int, retry_after: float) -> None:
    def authenticate(request: Request) -> Identity:
        refusal = Unauthorized("unusual")
        refusal.status, refusal.retry_after = status, retry_after
        raise refusal

    async with open_server(options=Options(authenticate=authenticate)) as server:
        async with connect(server) as raw:
            await raw.send(upgrade_head())
            assert (await raw.response())[0] == status
        assert (await request(server, "GET", "/healthz"))[0] == 200


@pytest.mark.req("R03")
async def test_waiting_for_a_seat_may_take_longer_than_a_handshake() -> None:
    policies = Policies(overflow_user=Overflow.WAIT)
    timeouts = Timeouts(handshake=0.1, wait=0.4)
    async with open_server(limits=Limits(per_user=1), policies=policies, timeouts=timeouts) as server:
        async with guests(server, "ann"), connect(server) as raw:
            await raw.send(upgrade_head())
            status, _, body = await raw.response()
            assert status == 429
            assert b"per user limit (1/1)" in body


# -- limits, why, publishing -----------------------------------------------------------------------------------


@pytest.mark.req("R49")
async def test_limits_are_read_and_changed() -> None:
    async with open_server(limits=Limits(lifetime=60)) as server, guests(server, "ann", "ann", "ann"):
        status, answer = await request(server, "GET", "/api/limits")
        assert (status, answer["limits"]["per_user"], answer["limits"]["control_rate"]) == (200, 5, "1000/10s")
        body = {"per_user": 1, "lifetime": None, "message_rate": "5/s", "enforce": True}
        status, answer = await request(server, "POST", "/api/limits", body)
        assert (status, answer["closed"], answer["connections"][0]["reason"]) == (200, 2, "evicted")
        assert answer["limits"] | body == answer["limits"]
        assert math.isinf(server.supervisor.limits.lifetime)


@pytest.mark.req("R49", "R17")
@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({}, "give some of per_user, total"),
        ({"per_uesr": 3}, "give some of per_user, total"),
        ({"per_user": 3, "total": 0}, "total must be a whole number of at least 1"),
        ({"per_user": "3"}, "per_user must be a whole number"),
        ({"idle_ttl": "1h"}, "idle_ttl must be a number of seconds"),
        ({"message_rate": 5}, "a rate is spelled like"),
        ({"enforce": "no"}, "enforce"),
    ],
)
async def test_bad_limits_change_nothing(body: dict[str, object], says: str) -> None:
    async with open_server() as server:
        status, answer = await request(server, "POST", "/api/limits", body)
        assert (status, server.supervisor.limits) == (400, Limits())
        assert says in answer["detail"]


@pytest.mark.req("R35")
async def test_why_somebody_was_disconnected_and_what_is_known_of_who_is_here() -> None:
    async with open_server(limits=Limits(per_user=1)) as server, guests(server, "ann", "ann"):
        with trio.fail_after(5):
            while server.supervisor.statistics().closing:  # its peer does not answer the goodbye
                await trio.sleep(0.01)
        status, answer = await request(server, "GET", "/api/why?connection=c1")
        assert (status, answer["here"]) == (200, [])
        assert [event["event"] for event in answer["story"]] == ["admitted", "leaving", "closed"]
        assert answer["story"][-1]["text"] == "user 'ann' exceeded maximum connections per user limit (1/1)"
        assert answer["story"][0]["at"].endswith("+00:00")
        _, answer = await request(server, "GET", "/api/why?user=ann")
        (card,) = answer["here"]
        assert (card["connection"], card["expires_for"]) == ("c2", "idle")
        assert 290 < card["expires_in"] <= 300
        assert card["bytes_sent"] > 100
        assert card["bytes_received"] > 100
        assert len(answer["story"]) == 4
        assert (await request(server, "GET", "/api/why?user=bob"))[0] == 404
        assert (await request(server, "GET", "/api/why?connection=c9"))[0] == 404
        for query in ("", "?user=ann&connection=c1"):
            assert (await request(server, "GET", f"/api/why{query}"))[0] == 400


async def test_publishing_from_outside() -> None:
    async with open_server() as server, connect(server) as raw:
        await raw.upgrade("/ws?user=ann")
        await raw.message()
        await raw.say(op="join", room="r")
        await raw.message()
        for whom in ({"room": "r"}, {"user": "ann"}):
            status, answer = await request(server, "POST", "/api/publish", {**whom, "data": [1]})
            assert (status, answer["delivered"]) == (200, 1)
            expected = {"type": "message", **whom, "from": None, "data": [1], "seq": answer["seq"]}
            assert await raw.message() == expected
        for body in ({"room": "r"}, {"data": 1}, {"room": "r", "user": "ann", "data": 1}, {"room": 3, "data": 1}):
            assert (await request(server, "POST", "/api/publish", body))[0] == 400


@pytest.mark.req("R17", "R35")
async def test_orders_are_written_down_and_secrets_are_not(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO", "supervisor")
    options = Options(admin_token="a secret word")
    async with open_server(options=options) as server, guests(server, "ann"):
        ask = {"Authorization": "Bearer a secret word", "X-Request-ID": "order-1"}
        await request(server, "POST", "/api/disconnect", {"user": "ann"}, **ask)
        await request(server, "POST", "/api/disconnect", {"user": "bob"}, **ask)
        await request(server, "POST", "/api/publish", {"user": "ann", "data": "what I tell you"}, **ask)
    said = [record.getMessage() for record in caplog.records if record.getMessage().startswith("ordered")]
    assert said == [
        "ordered peer=127.0.0.1 order=disconnect body='{\"user\": \"ann\"}' status=200 outcome='closed 1'"
        " request=order-1",
        'ordered peer=127.0.0.1 order=disconnect body=\'{"user": "bob"}\' status=404'
        " outcome=\"user 'bob' has no connections\" request=order-1",
        "ordered peer=127.0.0.1 order=publish body='{\"user\": \"ann\"}' status=200 outcome='delivered 0, seq 1'"
        " request=order-1",
    ]
    assert "secret" not in caplog.text
    assert "what I tell you" not in caplog.text


async def test_every_answer_says_what_the_log_calls_the_request() -> None:
    async with open_server() as server:
        for given, expected in (("q-17", "q-17"), ("no plain word", None), ("x" * 129, None), (None, None)):
            async with connect(server) as raw:
                await raw.send(upgrade_head("/ws", Sec_WebSocket_Version="7", X_Request_ID=given))
                status, headers, _ = await raw.response()
                assert status == 426
                assert headers["x-request-id"] == expected or (expected is None and len(headers["x-request-id"]) == 16)


@pytest.mark.req("R35")
async def test_an_order_cannot_hide_behind_what_it_does_not_need(caplog: pytest.LogCaptureFixture) -> None:
    async with open_server() as server:
        await request(server, "POST", "/api/revoke", {"pad": "x" * 400, "session": "y" * 400, "user": "ann"})
    (line,) = (record.getMessage() for record in caplog.records if record.getMessage().startswith("ordered"))
    assert "pad" not in line
    assert '"user": "ann"' in line


async def test_the_id_of_a_request_is_the_same_behind_a_proxy() -> None:
    heard: list[events.Event] = []
    async with open_server(options=Options(forwarded_allow_ips=("127.0.0.1",))) as server, connect(server) as raw:
        server.supervisor.subscribe(heard.append)
        await raw.send(upgrade_head("/ws", Sec_WebSocket_Version="7", X_Forwarded_For="192.0.2.1"))
        _, headers, _ = await raw.response()
        (turned_away,) = heard
        assert isinstance(turned_away, events.TurnedAway)
        assert (turned_away.request, turned_away.peer) == (headers["x-request-id"], "192.0.2.1")


async def test_another_method_is_told_which_there_are() -> None:
    async with open_server() as server:
        for path, allow in (("/api/limits", "GET, POST"), ("/api/drain", "POST"), ("/healthz", "GET")):
            async with connect(server) as raw:
                await raw.send(f"DELETE {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode())
                status, headers, _ = await raw.response()
                assert (status, headers["allow"]) == (405, allow)


@pytest.mark.req("R17")
def test_an_empty_admin_token_is_none_at_all() -> None:
    for token in ("", "  "):
        with pytest.raises(ValueError, match="admin_token is empty"):
            Options(admin_token=token)


async def test_a_token_is_a_bearer_token() -> None:
    async with open_server(options=Options(admin_token="secret")) as server:
        for given, status in (("Bearer secret", 200), ("bearer secret", 200), ("secret", 401), ("Basic secret", 401)):
            assert (await request(server, "GET", "/api/statistics", Authorization=given))[0] == status
