"""The keys that tokens are verified with: one of ours, or a JWK set from a file or a URL that may change."""

from __future__ import annotations

import contextlib
import json
import logging
import math
import time
import urllib.request
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urlsplit

import attrs
import jwt
import trio
from jwt.algorithms import Algorithm, get_default_algorithms

from .._words.errors import Unavailable
from .strict_json import parse_object

_logger = logging.getLogger("supervisor")
_ALGORITHMS: dict[str, Algorithm] = get_default_algorithms()
_OF_TYPE = {
    "RSA": ("RS256", "RS384", "RS512", "PS256", "PS384", "PS512"),
    "P-256": ("ES256",),
    "P-384": ("ES384",),
    "P-521": ("ES512",),
    "secp256k1": ("ES256K",),
    "Ed25519": ("EdDSA",),
    "Ed448": ("EdDSA",),
    "oct": ("HS256", "HS384", "HS512"),
}
#: A secret has as many bytes as the hash at least (RFC 7518 section 3.2), an RSA key as many bits.
_SECRET_BYTES = {"HS256": 32, "HS384": 48, "HS512": 64}
_RSA_BITS = 2048
_MOST_KEYS = 20
_MOST_BYTES = 1_000_000
#: Seconds; less than a handshake has.
_FETCH = 4.0
_HERE = ("localhost", "127.0.0.1", "::1")


@attrs.frozen
class Key:
    """Something to verify with, and by which algorithms."""

    id: str | None
    algorithms: frozenset[str]
    material: Any = attrs.field(repr=False)


class Keys(Protocol):
    """Where keys are found."""

    async def candidates(self, algorithm: str, key_id: str | None) -> list[Key]:
        """The keys that may have signed a token that names this algorithm and this key. `Unavailable` if that cannot be
        known now.
        """
        ...


@attrs.frozen
class FixedKeys:
    """Keys that do not change."""

    keys: tuple[Key, ...]

    async def candidates(self, algorithm: str, key_id: str | None) -> list[Key]:
        """See `Keys.candidates`. A key without an id fits every token."""
        return _fitting(self.keys, algorithm, key_id)


@attrs.define(eq=False)
class ChangingKeys:
    """A JWK set that is loaded in a thread, and again when it is old, or when a token names a key that is not in it.

    Nobody can have it loaded more often than every `cooldown` seconds. If loading fails, what was known goes on.
    """

    load: Callable[[], tuple[Key, ...]]
    max_age: float = 600.0
    cooldown: float = 30.0
    _keys: tuple[Key, ...] = ()
    _loaded_at: float = -math.inf
    _tried_at: float = -math.inf
    _loading: trio.Lock = attrs.field(factory=trio.Lock)

    async def candidates(self, algorithm: str, key_id: str | None) -> list[Key]:
        """See `Keys.candidates`."""
        found = _fitting(self._keys, algorithm, key_id)
        if not found or trio.current_time() - self._loaded_at > self.max_age:
            await self._renew()
            found = _fitting(self._keys, algorithm, key_id)
        if not self._keys:
            raise Unavailable("the keys for tokens are not there yet")
        return found

    async def _renew(self) -> None:
        """Load once, however many wait for it."""
        asked_at = trio.current_time()
        async with self._loading:
            if self._tried_at >= asked_at or trio.current_time() - self._tried_at < self.cooldown:
                return
            self._tried_at = trio.current_time()
            await trio.to_thread.run_sync(self._load, self._tried_at, abandon_on_cancel=True)

    def _load(self, now: float) -> None:
        """In a thread. It keeps what it has found by itself: whoever waits for it may be cancelled, by a stranger."""
        try:
            self._keys, self._loaded_at = self.load(), now
        except Exception as error:  # noqa: BLE001 - whatever a network and a stranger's JSON can cause
            _logger.error("the keys for tokens cannot be loaded: %s", error)


def _fitting(keys: tuple[Key, ...], algorithm: str, key_id: str | None) -> list[Key]:
    return [
        key
        for key in keys
        if algorithm in key.algorithms and key.id in (None, key_id if key_id is not None else key.id)
    ]


def from_secret(secret: str | bytes, algorithms: frozenset[str]) -> FixedKeys:
    """A shared secret. ValueError if it is too short for an algorithm that it is to be used with."""
    octets = secret.encode() if isinstance(secret, str) else secret
    usable = algorithms & _SECRET_BYTES.keys()
    if not usable:
        raise ValueError(f"a secret is for {', '.join(_SECRET_BYTES)}, not for {', '.join(sorted(algorithms))}")
    for algorithm in sorted(usable):
        if len(octets) < _SECRET_BYTES[algorithm]:
            raise ValueError(
                f"a secret for {algorithm} has at least {_SECRET_BYTES[algorithm]} bytes, not {len(octets)}"
            )
    try:
        material = _ALGORITHMS[min(usable)].prepare_key(octets)
    except jwt.InvalidKeyError as error:
        raise ValueError(str(error)) from None
    return FixedKeys((Key(None, usable, material),))


def from_place(place: str) -> Keys:
    """A file with a public key (PEM) or a JWK set, or the URL of a JWK set. ValueError if the file is neither."""
    if "://" in place:
        target = urlsplit(place)
        if target.scheme != "https" and (target.scheme != "http" or target.hostname not in _HERE):
            raise ValueError("keys come over https, or from this machine")
        return ChangingKeys(partial(_fetch, place))
    content = Path(place).read_bytes()
    if content.lstrip().startswith(b"-----BEGIN"):
        return FixedKeys((_from_pem(content),))
    try:
        known = parse_keys(content)
    except ValueError as error:
        raise ValueError(f"{place} holds neither a public key nor a JWK set: {error}") from None
    return ChangingKeys(partial(_read, Path(place)), max_age=5.0, cooldown=1.0, keys=known)


def _read(path: Path) -> tuple[Key, ...]:
    return parse_keys(path.read_bytes())


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Where the keys are is configured, and nobody else says otherwise."""

    def redirect_request(self, *_: object) -> None:
        return None


def _fetch(url: str) -> tuple[Key, ...]:
    """In bounded time and size, also from somebody who sends one byte after another."""
    last_moment, content = time.monotonic() + _FETCH, b""
    with contextlib.closing(urllib.request.build_opener(_NoRedirect).open(url, timeout=_FETCH)) as answer:
        while data := answer.read1(65_536):
            content += data
            if len(content) > _MOST_BYTES or time.monotonic() > last_moment:
                raise ValueError(f"a JWK set of more than {_MOST_BYTES} bytes, or {_FETCH:g} s")
    return parse_keys(content)


def _from_pem(content: bytes) -> Key:
    for name in ("RS256", "ES256", "EdDSA"):
        try:
            material = _ALGORITHMS[name].prepare_key(content)
        except (jwt.InvalidKeyError, ValueError, TypeError):
            continue
        described = json.loads(type(_ALGORITHMS[name]).to_jwk(material))
        return _from_jwk({**described, "use": "sig", "key_ops": ["verify"]})
    raise ValueError("the file holds no public key that tokens can be verified with")


def parse_keys(content: bytes) -> tuple[Key, ...]:
    """The keys of a JWK set (RFC 7517) that are there to verify signatures with; others are passed over.

    ValueError if it is none, or if nothing in it can be used.
    """
    listed = parse_object(content).get("keys")
    if not isinstance(listed, list) or len(listed) > _MOST_KEYS:
        raise ValueError(f"a JWK set is an object with a list of at most {_MOST_KEYS} keys")
    found = []
    for jwk in listed:
        with contextlib.suppress(ValueError, TypeError, jwt.PyJWTError):
            found.append(_from_jwk(jwk))
    if not found:
        raise ValueError("no key in the JWK set is there to verify signatures with")
    return tuple(found)


def _from_jwk(jwk: Any) -> Key:
    if not isinstance(jwk, dict):
        raise ValueError("a key is an object")
    if jwk.get("use", "sig") != "sig" or "verify" not in jwk.get("key_ops", ["verify"]):
        raise ValueError("a key for something else")
    kind = str(jwk.get("crv") if jwk.get("kty") in ("EC", "OKP") else jwk.get("kty"))
    algorithms = frozenset(_OF_TYPE.get(kind, ())) & {jwk.get("alg", name) for name in _ALGORITHMS}
    key_id = jwk.get("kid")
    if not algorithms or not (key_id is None or isinstance(key_id, str)):
        raise ValueError("a key for no algorithm that is known here")
    public = {name: value for name, value in jwk.items() if name != "d"}  # what only a signer needs is not kept
    material = jwt.PyJWK(public, algorithm=min(algorithms)).key
    if kind == "oct":
        algorithms = frozenset(name for name in algorithms if len(material) >= _SECRET_BYTES[name])
    if not algorithms or (kind == "RSA" and material.key_size < _RSA_BITS):
        raise ValueError("a key that is too short")
    return Key(key_id, algorithms, material)
