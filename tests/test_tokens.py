"""JSON Web Tokens: whose connection it is, for how long, and the many that must not be believed."""

from __future__ import annotations

import base64
import gc
import json
import logging
import time
from functools import partial
from typing import Any

import jwt
import pytest
import trio
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from hypothesis import given
from hypothesis import strategies as st
from websockets.sync.client import connect as peer_connect

from supervisor import ClaimRules, JwtAuthenticator, Limits, Options, Overflow, Policies, Timeouts, hub
from supervisor._server.keys import parse_keys
from supervisor._server.tokens import Compact, InvalidToken, issue
from tests.serving import connect, open_server, request, settled, upgrade_head

SECRET = "a secret of the tests, with at least 32 bytes"
RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
ED = ed25519.Ed25519PrivateKey.generate()


def b64(data: bytes | dict[str, Any]) -> str:
    octets = data if isinstance(data, bytes) else json.dumps(data).encode()
    return base64.urlsafe_b64encode(octets).rstrip(b"=").decode()


def claims(**changed: Any) -> dict[str, Any]:
    now = time.time()
    all_claims = {"sub": "ann", "iat": now - 1, "exp": now + 3600, **changed}
    return {name: value for name, value in all_claims.items() if value is not None}


def signed(payload: dict[str, Any] | bytes, header: dict[str, Any] | None = None, secret: str = SECRET) -> str:
    """Signed with HS256, whatever its header says."""
    octets = payload if isinstance(payload, bytes) else json.dumps(payload).encode()
    message = f"{b64({'alg': 'HS256', 'typ': 'JWT', **(header or {})})}.{b64(octets)}"
    signature = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256).sign(
        message.encode(), secret.encode()
    )
    return f"{message}.{b64(signature)}"


def pem(key: Any) -> bytes:
    return key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)


def jwk(key: Any, **more: Any) -> dict[str, Any]:
    algorithm = {RSA: "RS256", EC: "ES256", ED: "EdDSA"}[key]
    described = type(jwt.algorithms.get_default_algorithms()[algorithm]).to_jwk(key.public_key(), as_dict=True)
    return {name: value for name, value in described.items() if name != "key_ops"} | more


def judged(token: str, authenticator: JwtAuthenticator | None = None):
    return trio.run((authenticator or JwtAuthenticator(secret=SECRET)).identify, token)


# -- believed --------------------------------------------------------------------------------------------------


@pytest.mark.req("R40")
def test_a_good_token_says_who_it_is_and_for_how_long() -> None:
    expires = time.time() + 60
    identity = judged(signed(claims(sid="s1", exp=expires)))
    assert (identity.user, identity.session) == ("ann", "s1")
    assert identity.expires_at == pytest.approx(expires + 5)  # as much as two clocks may differ by


@pytest.mark.req("R40")
@pytest.mark.parametrize(("key", "algorithm"), [(RSA, "RS256"), (RSA, "PS256"), (EC, "ES256"), (ED, "EdDSA")])
@pytest.mark.parametrize("form", ["pem", "jwks"])
def test_public_keys(tmp_path, key, algorithm: str, form: str) -> None:
    place = tmp_path / "keys"
    place.write_bytes(pem(key) if form == "pem" else json.dumps({"keys": [jwk(EC), jwk(key, kid="k1")]}).encode())
    authenticator = JwtAuthenticator(keys=str(place))
    token = jwt.encode(claims(), key, algorithm=algorithm, headers={"kid": "k1"})
    assert judged(token, authenticator).user == "ann"
    with pytest.raises(InvalidToken, match="signature is not valid"):
        judged(token[:-8] + "AAAAAAAA", authenticator)


# -- not believed ----------------------------------------------------------------------------------------------

GOOD = signed(claims())
HEAD, PAYLOAD, SIGNATURE = GOOD.split(".")
MALFORMED = {
    "empty": "",
    "one part": HEAD,
    "two parts": f"{HEAD}.{PAYLOAD}",
    "four parts": f"{GOOD}.{SIGNATURE}",
    "no signature": f"{HEAD}.{PAYLOAD}.",
    "trailing dot": f"{GOOD}.",
    "leading dot": f".{GOOD}",
    "padded": f"{HEAD}.{PAYLOAD}.{SIGNATURE}=",
    "white space": f"{HEAD}.{PAYLOAD}.{SIGNATURE} ",
    "a new line inside": f"{HEAD}.{PAYLOAD[:5]}\n{PAYLOAD[5:]}.{SIGNATURE}",
    "a stranger inside": f"{HEAD}.{PAYLOAD}.{SIGNATURE[:9]}!{SIGNATURE[9:]}",
    "the other base64": f"{HEAD}.{PAYLOAD}.{SIGNATURE[:-2]}+/",
    "not canonical": f"{HEAD}.{PAYLOAD}.{SIGNATURE[:-1]}{chr(ord(SIGNATURE[-1]) + 1)}",
    "no json": f"{b64(b'nonsense')}.{PAYLOAD}.{SIGNATURE}",
    "json serialization": json.dumps({"payload": PAYLOAD, "signatures": []}),
    "no object": f"{b64(b'[]')}.{PAYLOAD}.{SIGNATURE}",
    "not utf-8": f"{b64(bytes([255, 254]))}.{PAYLOAD}.{SIGNATURE}",
    "eight megabytes": f"{HEAD}.{'A' * 8_000_000}.{SIGNATURE}",
    "deep": signed(b"[" * 3000 + b"]" * 3000),
}
HEADERS = {
    "none": {"alg": "none"},
    "None": {"alg": "None"},
    "nOnE": {"alg": "nOnE"},
    "no algorithm": {"alg": None},
    "a number": {"alg": 256},
    "a list": {"alg": ["HS256"]},
    "lower case": {"alg": "hs256"},
    "another hash": {"alg": "HS384"},
    "public key": {"alg": "RS256"},
    "critical": {"crit": ["exp"]},
    "critical and empty": {"crit": []},
    "unencoded": {"b64": False},
    "kid a number": {"kid": 7},
    "kid an object": {"kid": {"a": 1}},
}
CLAIMS = {
    "expired": {"exp": time.time() - 6},
    "no exp": {"exp": None},
    "exp a string": {"exp": "99999999999"},
    "exp true": {"exp": True},
    "exp a list": {"exp": [9999999999]},
    "exp negative": {"exp": -1},
    "exp too far": {"exp": 1e300},
    "not yet": {"nbf": time.time() + 1800},
    "nbf a string": {"nbf": "0"},
    "issued tomorrow": {"iat": time.time() + 86_400},
    "iat a string": {"iat": "0"},
    "no sub": {"sub": None},
    "sub empty": {"sub": ""},
    "sub a number": {"sub": 7},
    "sub false": {"sub": False},
    "sub too long": {"sub": "x" * 257},
    "sid a number": {"sid": 7},
    "for somebody": {"aud": "somebody"},
    "for a list": {"aud": ["somebody"]},
}


@pytest.mark.req("R40", "A49")
@pytest.mark.parametrize("token", MALFORMED.values(), ids=MALFORMED.keys())
def test_malformed_tokens_are_refused(token: str) -> None:
    with pytest.raises(InvalidToken, match="the token is malformed"):
        judged(token)


@pytest.mark.req("R40", "A49")
@pytest.mark.parametrize("header", HEADERS.values(), ids=HEADERS.keys())
def test_a_header_chooses_nothing(header: dict[str, Any]) -> None:
    token = signed(claims(), header)
    for attempt in (token, token.rpartition(".")[0] + ".AA"):
        with pytest.raises(InvalidToken, match=r"malformed|extensions|not allowed"):
            judged(attempt)


@pytest.mark.req("R40", "A50")
@pytest.mark.parametrize("changed", CLAIMS.values(), ids=CLAIMS.keys())
def test_claims_must_say_enough(changed: dict[str, Any]) -> None:
    with pytest.raises(InvalidToken):
        judged(signed(claims(**changed)))


@pytest.mark.req("R40", "A49")
@pytest.mark.parametrize("payload", [b'{"sub":"ann","sub":"bob","exp":9999999999}', b'{"sub":"ann","exp":NaN}'])
def test_claims_can_be_read_in_one_way_only(payload: bytes) -> None:
    with pytest.raises(InvalidToken, match="malformed"):
        judged(signed(payload))


@pytest.mark.req("R40", "A50")
def test_times_hold_to_the_second() -> None:
    rules = ClaimRules(leeway=0)
    assert rules.judge({"sub": "ann", "exp": 101}, 100.999).expires_at == 101
    for wrong in ({"exp": 101, "nbf": 102}, {"exp": 101, "iat": 102}, {"exp": 100}):
        with pytest.raises(InvalidToken):
            rules.judge({"sub": "ann", **wrong}, 101.0 if wrong["exp"] == 100 else 100.0)
    assert rules.judge({"sub": "ann", "exp": 101, "nbf": 100, "iat": 100}, 100.0).user == "ann"


@pytest.mark.req("R40", "A50")
@pytest.mark.parametrize(
    ("rules", "said", "good"),
    [
        (ClaimRules(audience="us"), {"aud": "us"}, True),
        (ClaimRules(audience="us"), {"aud": ["them", "us"]}, True),
        (ClaimRules(audience="us"), {"aud": "us-too"}, False),
        (ClaimRules(audience="us"), {}, False),
        (ClaimRules(audience="us"), {"aud": {"us": 1}}, False),
        (ClaimRules(issuer="it"), {"iss": "it"}, True),
        (ClaimRules(issuer="it"), {"iss": ["it"]}, False),
        (ClaimRules(issuer="it"), {}, False),
        (ClaimRules(user_claim="email"), {"email": "a@b"}, True),
        (ClaimRules(user_claim="email"), {}, False),
    ],
)
def test_for_whom_and_from_whom(rules: ClaimRules, said: dict[str, Any], good: bool) -> None:
    authenticator = JwtAuthenticator(secret=SECRET, rules=rules)
    if good:
        assert judged(signed(claims(**said)), authenticator).user in ("ann", "a@b")
    else:
        with pytest.raises(InvalidToken):
            judged(signed(claims(**said)), authenticator)


@pytest.mark.req("R40", "A49")
def test_a_public_key_is_no_secret(tmp_path) -> None:
    """Whoever knows the public key, and that is everybody, could sign with it if the token chose the algorithm."""
    place = tmp_path / "key.pem"
    place.write_bytes(pem(RSA))
    message = f"{b64({'alg': 'HS256'})}.{b64(claims())}"
    algorithm = jwt.algorithms.HMACAlgorithm(jwt.algorithms.HMACAlgorithm.SHA256)
    token = f"{message}.{b64(algorithm.sign(message.encode(), pem(RSA)))}"
    with pytest.raises(InvalidToken, match="not allowed"):
        judged(token, JwtAuthenticator(keys=str(place)))
    with pytest.raises(InvalidToken, match="signature"):
        judged(token, JwtAuthenticator(keys=str(place), algorithms=["HS256", "RS256"]))
    with pytest.raises(ValueError, match="asymmetric key"):
        JwtAuthenticator(secret=pem(RSA))


@pytest.mark.req("R40", "A49")
@pytest.mark.parametrize("place", ["jwk", "jku", "x5u", "x5c", "kid"])
def test_keys_that_a_token_brings_itself_are_not_looked_at(place: str) -> None:
    brought = {"jwk": {"kty": "oct", "k": b64(b"x" * 32)}, "kid": "../../dev/null"}.get(place, "http://127.0.0.1:1/")
    with pytest.raises(InvalidToken, match="signature"):
        judged(signed(claims(), {place: brought}, secret="x" * 32))


@pytest.mark.req("R40")
@given(st.text(max_size=200) | st.binary(max_size=100).map(lambda data: f"{b64(data)}.{b64(data)}.{b64(data)}"))
def test_nothing_but_invalid_token_comes_out(text: str) -> None:
    with pytest.raises(InvalidToken):
        Compact.parse(text)


@pytest.mark.req("R40", "A49")
@given(st.data())
def test_one_changed_character_is_one_too_many(data) -> None:
    place = data.draw(st.integers(0, len(GOOD) - 1))
    other = data.draw(st.characters(codec="ascii").filter(lambda character: character != GOOD[place]))
    with pytest.raises(InvalidToken):
        judged(GOOD[:place] + other + GOOD[place + 1 :])


# -- settings --------------------------------------------------------------------------------------------------


@pytest.mark.req("R40")
@pytest.mark.parametrize(
    ("settings", "complaint"),
    [
        ({}, "give one of them"),
        ({"secret": SECRET, "keys": "k"}, "give one of them"),
        ({"secret": "short"}, "at least 32 bytes"),
        ({"secret": SECRET, "algorithms": ["HS256", "HS512"]}, "at least 64 bytes"),
        ({"secret": SECRET, "algorithms": ["none"]}, "unknown algorithms: none"),
        ({"secret": SECRET, "algorithms": ["RS256"]}, "a secret is for"),
        ({"keys": "http://example.com/jwks"}, "come over https"),
        ({"keys": "file://localhost/etc/passwd"}, "come over https"),
        ({"keys": __file__}, "neither a public key nor a JWK set"),
    ],
)
def test_what_cannot_be_used_is_said_before_anybody_connects(settings: dict[str, Any], complaint: str) -> None:
    with pytest.raises(ValueError, match=complaint):
        JwtAuthenticator(**settings)


@pytest.mark.req("R40", "A49")
@pytest.mark.parametrize(
    "unfit",
    [
        {"use": "enc"},
        {"key_ops": ["encrypt"]},
        {"alg": "RSA-OAEP"},
        {"alg": "ES256"},
        {"kid": 7},
        {"kty": "rsa"},
        {"n": "AQAB"},
    ],
    ids=str,
)
def test_keys_for_something_else_verify_nothing(unfit: dict[str, Any]) -> None:
    assert len(parse_keys(json.dumps({"keys": [jwk(EC), jwk(RSA, **unfit)]}).encode())) == 1
    with pytest.raises(ValueError, match="no key"):
        parse_keys(json.dumps({"keys": [jwk(RSA, **unfit)]}).encode())


@pytest.mark.req("R40", "A49")
def test_a_short_key_is_none() -> None:
    short = rsa.generate_private_key(public_exponent=65537, key_size=1024)
    described = jwt.algorithms.RSAAlgorithm.to_jwk(short.public_key(), as_dict=True)
    with pytest.raises(ValueError, match="no key"):
        parse_keys(json.dumps({"keys": [described, {"kty": "oct", "k": "c2hvcnQ"}]}).encode())


@pytest.mark.req("R40")
@pytest.mark.parametrize("content", [b"", b"[]", b"{}", b'{"keys":{}}', b'{"keys":[]}', b'{"keys":[7]}', b"\xff"])
def test_a_key_set_is_one_or_an_error(content: bytes) -> None:
    with pytest.raises(ValueError, match=r"."):
        parse_keys(content)


@pytest.mark.req("R40", "A52")
def test_a_key_is_never_shown() -> None:
    authenticator = JwtAuthenticator(secret=SECRET)
    judged(GOOD, authenticator)
    shown = repr((authenticator, authenticator._keys, Options(authenticate=authenticator)))
    assert SECRET not in shown


# -- on connections --------------------------------------------------------------------------------------------


def guarded(**settings: Any) -> Options:
    return Options(authenticate=JwtAuthenticator(secret=SECRET, **settings))


@pytest.mark.req("R40")
@pytest.mark.parametrize("place", ["header", "query", "subprotocol"])
async def test_a_token_comes_in_one_of_three_ways(place: str) -> None:
    token = signed(claims(sid="s1"))
    path = "/ws?token=" + token if place == "query" else "/ws"
    headers = {"header": {"Authorization": f"bearer {token}"}, "subprotocol": {}, "query": {}}[place]
    protocols = ["supervisor.v1.json", f"bearer.{token}"] if place == "subprotocol" else None

    def talk(url: str) -> tuple[Any, Any]:
        with peer_connect(url, additional_headers=headers, subprotocols=protocols) as peer:
            return json.loads(peer.recv(5)), peer.subprotocol

    async with open_server(hub, guarded()) as server:
        welcome, subprotocol = await trio.to_thread.run_sync(talk, f"ws://127.0.0.1:{server.port}{path}")
        assert (welcome["user"], welcome["session"]) == ("ann", "s1")
        assert subprotocol == ("supervisor.v1.json" if protocols else None)
        await settled(server.supervisor)


@pytest.mark.req("R40", "R29")
@pytest.mark.parametrize(
    ("path", "headers", "status", "error"),
    [
        ("/ws", {}, 401, "unauthorized"),
        ("/ws", {"Authorization": "Basic YW5uOg=="}, 401, "unauthorized"),
        ("/ws", {"Authorization": "Bearer nonsense"}, 401, "unauthorized"),
        ("/ws?user=ann", {}, 401, "unauthorized"),
        (f"/ws?token={GOOD}", {"Authorization": f"Bearer {GOOD}"}, 400, "bad_request"),
        (f"/ws?token={GOOD}&token={GOOD}", {}, 400, "bad_request"),
        (f"/ws?token={GOOD}&user=bob", {}, 400, "identity_mismatch"),
        (f"/ws?token={signed(claims(sid='s1'))}&session=s2", {}, 400, "identity_mismatch"),
        (f"/ws?token={GOOD}&session=", {}, 400, "bad_request"),
        (f"/ws?token={GOOD}&user=ann&session=s2", {}, 101, None),
    ],
)
async def test_what_is_said_in_two_places_must_agree(path, headers, status: int, error: str | None) -> None:
    async with open_server(hub, guarded()) as server:
        async with connect(server) as raw:
            await raw.send(upgrade_head(path, **headers))
            got, answered, body = await raw.response()
            assert got == status, body
            if error is not None:
                assert json.loads(body)["error"] == error
                assert server.supervisor.statistics().turned_away == {error: 1}
                assert ("www-authenticate" in answered) == (status == 401)


@pytest.mark.req("R40", "A50")
async def test_a_connection_ends_with_its_credential() -> None:
    async with open_server(hub, guarded(rules=ClaimRules(leeway=0))) as server, connect(server) as raw:
        expires = time.time() + 0.5
        await raw.upgrade(f"/ws?token={signed(claims(exp=expires))}")
        assert await raw.closed_with() == (4005, "credential expired")
        assert -0.05 <= time.time() - expires <= 0.5


@pytest.mark.req("R40", "A50")
async def test_or_it_is_renewed_in_time() -> None:
    rules = ClaimRules(leeway=0)
    async with open_server(hub, guarded(rules=rules)) as server, connect(server) as raw:
        await raw.upgrade(f"/ws?token={signed(claims(exp=time.time() + 0.6))}")
        assert (await raw.message())["type"] == "welcome"
        expires = time.time() + 1.5
        bad = {
            "nonsense": "unauthorized",
            signed(claims(sub="bob")): "identity_mismatch",
            signed(claims(sid="other")): "identity_mismatch",
            signed(claims(exp=time.time() - 1)): "unauthorized",
        }
        for token, error in bad.items():
            await raw.say(op="refresh", ref=1, token=token)
            assert (await raw.message())["code"] == error
        await raw.say(op="refresh", ref=2, token=signed(claims(exp=expires)))
        assert await raw.message() == {"type": "reply", "ref": 2, "expires_at": pytest.approx(expires)}
        assert await raw.closed_with() == (4005, "credential expired")
        assert time.time() >= expires - 0.05


@pytest.mark.req("R40")
async def test_without_anybody_who_judges_tokens_none_can_be_renewed() -> None:
    async with open_server(hub) as server, connect(server) as raw:
        await raw.upgrade()
        await raw.message()
        for token, error in (("x", "not_found"), (7, "bad_request")):
            await raw.say(op="refresh", token=token)
            assert (await raw.message())["code"] == error


@pytest.mark.req("R40", "A51")
async def test_revoking_ends_all_of_a_users_connections_and_their_tokens() -> None:
    async with open_server(hub, guarded()) as server:
        token, bobs = signed(claims(iat=time.time())), signed(claims(sub="bob"))
        async with connect(server) as first, connect(server) as second, connect(server) as other:
            await first.upgrade(f"/ws?token={token}")
            await second.upgrade(f"/ws?token={token}")
            await other.upgrade(f"/ws?token={bobs}")
            started = trio.current_time()
            async with trio.open_nursery() as nursery:
                nursery.start_soon(partial(request, server, "POST", "/api/revoke", {"user": "ann"}))
                assert await first.closed_with() == await second.closed_with() == (4506, "revoked")
            assert trio.current_time() - started <= 1.0
            assert [conn.user for conn in server.supervisor.connections()] == ["bob"]
        for late, status in ((token, 401), (signed(claims(iat=None)), 401), (signed(claims(iat=time.time())), 101)):
            async with connect(server) as raw:
                await raw.send(upgrade_head(f"/ws?token={late}"))
                assert (await raw.response())[0] == status
        assert (await request(server, "POST", "/api/revoke", {"user": "nobody"}))[1]["closed"] == 0


@pytest.mark.req("R40", "A51")
async def test_revoking_finds_those_who_wait_too() -> None:
    settings = {"limits": Limits(per_user=1), "policies": Policies(overflow_user=Overflow.WAIT)}
    async with open_server(hub, guarded(), timeouts=Timeouts(wait=30), **settings) as server:
        async with connect(server) as first, connect(server) as waiting:
            await first.upgrade(f"/ws?token={GOOD}")
            await waiting.send(upgrade_head(f"/ws?token={GOOD}"))
            while not server.supervisor.statistics().waiting:
                await trio.sleep(0.005)
            await server.supervisor.revoke("ann")
            assert (await waiting.response())[0] in (401, 429)
            assert await first.closed_with() == (4506, "revoked")


@pytest.mark.req("R40", "A52")
async def test_tokens_are_written_down_nowhere(caplog) -> None:
    caplog.set_level(logging.DEBUG)
    tokens = [GOOD, signed(claims(exp=1)), signed(claims(), {"crit": ["x"]}), "secret-nonsense"]
    async with open_server(hub, guarded()) as server:
        for token in tokens:
            for path, headers in (
                (f"/ws?token={token}", {}),
                ("/ws", {"Authorization": f"Bearer {token}"}),
                ("/ws", {"Sec_WebSocket_Protocol": f"supervisor.v1.json, bearer.{token}"}),
                (f"/nowhere?token={token}", {}),
                (f"/ws?token={token}", {"Host": "\xff"}),
            ):
                async with connect(server) as raw:
                    await raw.send(upgrade_head(path, **headers))
                    _, answered, body = await raw.response()
                    caplog.records.append(logging.makeLogRecord({"msg": f"{answered} {body!r}"}))
        kept = [repr(conn) for conn in server.supervisor.connections()]
        kept += [str(server.supervisor.statistics()), repr(server)]
    written = caplog.text + "".join(kept) + "".join(str(record.__dict__) for record in caplog.records)
    assert all(token not in written for token in tokens)


@pytest.mark.req("R40")
async def test_a_token_is_not_kept_in_memory_by_its_connection() -> None:
    token = signed(claims(jti="to be forgotten"))
    async with open_server(hub, guarded()) as server, connect(server) as raw:
        await raw.upgrade("/ws", Authorization=f"Bearer {token}")
        await raw.message()
        gc.collect()
        holding = [
            thing
            for thing in gc.get_objects()
            if type(thing) in (dict, list, tuple) and any(item is not token and item == token for item in _items(thing))
        ]
        assert holding == []


def _items(thing: Any) -> list[Any]:
    return [item for item in (thing.values() if isinstance(thing, dict) else thing) if type(item) is str]


# -- for development -------------------------------------------------------------------------------------------


@pytest.mark.req("R40")
def test_the_command_line_makes_tokens_that_its_server_believes() -> None:
    token = issue(SECRET, "ann", session="s1", seconds=60, now=time.time())
    identity = judged(token)
    assert (identity.user, identity.session) == ("ann", "s1")
    with pytest.raises(ValueError, match="at least 32 bytes"):
        issue("short", "ann", now=0)
