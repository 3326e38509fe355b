"""Keys that come from somewhere else, and change: never on the loop, never too often, never without a bound."""

from __future__ import annotations

import contextlib
import http.server
import json
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import attrs
import jwt
import pytest
import trio
from cryptography.hazmat.primitives.asymmetric import ed25519

from supervisor import JwtAuthenticator, Unavailable
from supervisor._server.keys import ChangingKeys, Key, parse_keys
from supervisor._server.tokens import InvalidToken

KEYS = {name: ed25519.Ed25519PrivateKey.generate() for name in ("old", "new")}


def jwks(*names: str) -> bytes:
    described = [jwt.algorithms.OKPAlgorithm.to_jwk(KEYS[name].public_key(), as_dict=True) for name in names]
    return json.dumps(
        {"keys": [{**jwk, "kid": name, "key_ops": ["verify"]} for name, jwk in zip(names, described, strict=True)]}
    ).encode()


def token(name: str) -> str:
    claims = {"sub": name, "exp": time.time() + 60}
    return jwt.encode(claims, KEYS[name], algorithm="EdDSA", headers={"kid": name})


@attrs.define
class Provider:
    """An identity provider: what it answers, and how often it was asked."""

    content: bytes
    status: int = 200
    piece: int = 1 << 20
    pause: float = 0.0
    location: str = ""
    asked: int = 0
    url: str = ""


@contextlib.contextmanager
def provider(content: bytes) -> Iterator[Provider]:
    said = Provider(content)

    class Answer(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            said.asked += 1
            self.send_response(said.status)
            if said.location:
                self.send_header("Location", said.location)
            self.end_headers()
            with contextlib.suppress(OSError):
                for start in range(0, len(said.content), said.piece):
                    self.wfile.write(said.content[start : start + said.piece])
                    time.sleep(said.pause)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Answer) as server:
        server.daemon_threads = True
        said.url = f"http://127.0.0.1:{server.server_port}/jwks"
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield said
        server.shutdown()
        thread.join()


@pytest.mark.req("R40")
async def test_keys_are_fetched_once_and_again_when_they_are_rotated() -> None:
    with provider(jwks("old")) as idp:
        authenticator = JwtAuthenticator(keys=idp.url)
        authenticator._keys.cooldown = 0.2
        assert idp.asked == 0
        async with trio.open_nursery() as nursery:
            for _ in range(20):
                nursery.start_soon(authenticator.identify, token("old"))
        assert idp.asked == 1
        idp.content = jwks("new", "old")
        with pytest.raises(InvalidToken):  # asked a moment ago
            await authenticator.identify(token("new"))
        assert idp.asked == 1
        await trio.sleep(0.25)
        assert (await authenticator.identify(token("new"))).user == "new"
        assert (await authenticator.identify(token("old"))).user == "old"
        assert idp.asked == 2


@pytest.mark.req("R40")
async def test_a_key_that_is_withdrawn_is_believed_until_the_set_is_old() -> None:
    with provider(jwks("old", "new")) as idp:
        authenticator = JwtAuthenticator(keys=idp.url)
        authenticator._keys.cooldown, authenticator._keys.max_age = 0.0, 0.2
        assert (await authenticator.identify(token("old"))).user == "old"
        idp.content = jwks("new")
        assert (await authenticator.identify(token("old"))).user == "old"
        await trio.sleep(0.25)
        with pytest.raises(InvalidToken):
            await authenticator.identify(token("old"))


@pytest.mark.req("R40")
@pytest.mark.parametrize(
    "trouble",
    [
        {"status": 500},
        {"content": b"nonsense"},
        {"content": b"[" * 100_000},
        {"content": b" " * 1_100_000},
        {"status": 302, "location": "http://127.0.0.1:1/"},
    ],
    ids=["fails", "nonsense", "deep", "huge", "redirects"],
)
async def test_what_was_known_goes_on_when_the_provider_does_not(trouble: dict, caplog) -> None:
    with provider(jwks("old")) as idp:
        authenticator = JwtAuthenticator(keys=idp.url)
        authenticator._keys.cooldown = authenticator._keys.max_age = 0.0
        assert (await authenticator.identify(token("old"))).user == "old"
        for name, value in trouble.items():
            setattr(idp, name, value)
        assert (await authenticator.identify(token("old"))).user == "old"
        assert idp.asked == 2
        with pytest.raises(InvalidToken):
            await authenticator.identify(token("new"))
    assert "the keys for tokens cannot be loaded" in caplog.text


@pytest.mark.req("R40")
async def test_without_any_keys_nobody_is_called_a_liar() -> None:
    authenticator = JwtAuthenticator(keys="http://127.0.0.1:1/jwks")
    with pytest.raises(Unavailable, match="not there yet"):
        await authenticator.identify(token("old"))


@pytest.mark.req("R40")
async def test_a_provider_that_drips_holds_no_thread_for_long(monkeypatch) -> None:
    monkeypatch.setattr("supervisor._server.keys._FETCH", 0.3)
    with provider(jwks("old")) as idp:
        idp.piece, idp.pause = 1, 0.1
        authenticator = JwtAuthenticator(keys=idp.url)
        started = trio.current_time()
        with pytest.raises(Unavailable):
            await authenticator.identify(token("old"))
        assert trio.current_time() - started < 2


@pytest.mark.req("R40")
async def test_keys_that_come_after_their_asker_has_left_are_kept(autojump_clock) -> None:
    """Whoever makes us load them, and leaves, must not keep the others from having them."""
    may_answer = threading.Event()

    def load() -> tuple[Key, ...]:
        may_answer.wait(10)
        return parse_keys(jwks("old"))

    keys = ChangingKeys(load)
    with trio.CancelScope() as scope:
        scope.cancel()
        with pytest.raises(trio.Cancelled):
            await keys.candidates("EdDSA", "old")
    assert keys._tried_at < 0  # cancelled before it began: the next one may try at once
    async with trio.open_nursery() as nursery:
        nursery.start_soon(keys.candidates, "EdDSA", "old")
        await trio.testing.wait_all_tasks_blocked()
        nursery.cancel_scope.cancel()
    may_answer.set()
    while not keys._keys:
        await trio.sleep(0.01)
        await trio.to_thread.run_sync(time.sleep, 0.01)
    assert [key.id for key in await keys.candidates("EdDSA", "old")] == ["old"]


@pytest.mark.req("R40")
async def test_a_file_is_read_again(tmp_path: Path) -> None:
    place = tmp_path / "jwks.json"
    place.write_bytes(jwks("old"))
    authenticator = JwtAuthenticator(keys=str(place))
    authenticator._keys.cooldown = 0.0
    assert (await authenticator.identify(token("old"))).user == "old"
    fresh = tmp_path / "fresh"
    fresh.write_bytes(jwks("new"))
    os.replace(fresh, place)
    assert (await authenticator.identify(token("new"))).user == "new"
    place.write_bytes(b"half a fi")
    assert (await authenticator.identify(token("new"))).user == "new"
