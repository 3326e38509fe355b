"""JSON Web Tokens as credentials: signatures are PyJWT's business, everything else is judged here, and strictly."""

from __future__ import annotations

import base64
import math
import re
import time
from collections.abc import Iterable
from typing import Any

import attrs
import jwt

from .._words.errors import Refused, Unauthorized
from .._words.identity import Identity
from .credentials import agreeing, bearer_token
from .head import Request
from .keys import Keys, from_place, from_secret
from .strict_json import parse_object

_COMPACT = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)", re.ASCII)
MAX_TOKEN = 8192
DEFAULT_ALGORITHMS = ("RS256", "PS256", "ES256", "EdDSA")
KNOWN_ALGORITHMS = frozenset(f"{family}{bits}" for family in ("HS", "RS", "PS", "ES") for bits in (256, 384, 512)) | {
    "ES256K",
    "EdDSA",
}
#: Users whose tokens were revoked and are remembered; the oldest are forgotten first.
_MOST_REVOKED = 100_000

Claims = dict[str, Any]


class InvalidToken(Unauthorized):
    """The token cannot be believed; `str` says no more than a stranger may know."""


def _algorithms(names: Iterable[str]) -> frozenset[str]:
    return frozenset(names)


@attrs.frozen(kw_only=True)
class ClaimRules:
    """What the claims of a token must say. Times are judged by the wall clock."""

    audience: str | None = None
    """``aud`` must be this, or a list with this. None: a token that names any audience is for somebody else."""
    issuer: str | None = None
    """``iss`` must be this. None: anybody."""
    leeway: float = 5.0
    """Seconds by which the clocks of two machines may differ. A connection ends by so much after ``exp``."""
    user_claim: str = "sub"
    """Names the user."""
    session_claim: str = "sid"
    """Names the session, if it is there."""

    def judge(self, claims: Claims, now: float) -> Identity:
        """Whose token it is. `InvalidToken` if it says too little, or the wrong thing, or not now."""
        expires_at = _time(claims, "exp") + self.leeway
        if now >= expires_at:
            raise InvalidToken("the token has expired")
        if any(name in claims and _time(claims, name) > now + self.leeway for name in ("nbf", "iat")):
            raise InvalidToken("the token is not valid yet")
        if self.issuer is not None and claims.get("iss") != self.issuer:
            raise InvalidToken("the token is from somebody else")
        if not self._is_for_us(claims.get("aud")):
            raise InvalidToken("the token is for somebody else")
        user: Any = claims.get(self.user_claim)
        try:
            return Identity(user=user, session=claims.get(self.session_claim), expires_at=expires_at)
        except (TypeError, ValueError):
            raise InvalidToken("the token does not say whose it is") from None

    def _is_for_us(self, audience: Any) -> bool:
        named = audience if isinstance(audience, list) else [] if audience is None else [audience]
        return self.audience in named if self.audience is not None else not named


def _time(claims: Claims, name: str) -> float:
    value = claims.get(name)
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1e12:
        raise InvalidToken(f"the token has no usable {name}")
    return float(value)


@attrs.frozen
class Compact:
    """A token taken apart (RFC 7515, compact serialization), and not believed yet."""

    algorithm: str
    key_id: str | None
    claims: Claims

    @classmethod
    def parse(cls, token: str) -> Compact:
        """`InvalidToken` for whatever could be read in two ways."""
        parts = _COMPACT.fullmatch(token) if len(token) <= MAX_TOKEN else None
        if parts is None:
            raise InvalidToken("the token is malformed")
        try:
            header, claims, _ = (_octets(part) for part in parts.groups())
            return cls._of(parse_object(header), parse_object(claims))
        except ValueError:
            raise InvalidToken("the token is malformed") from None

    @classmethod
    def _of(cls, header: Claims, claims: Claims) -> Compact:
        algorithm, key_id = header.get("alg"), header.get("kid")
        if not isinstance(algorithm, str) or not (key_id is None or isinstance(key_id, str)):
            raise InvalidToken("the token is malformed")
        if "crit" in header or "b64" in header:
            raise InvalidToken("the token asks for extensions that are not known here")
        return cls(algorithm, key_id, claims)


def _octets(part: str) -> bytes:
    """Base64 without padding, and the only spelling of what it stands for."""
    octets = base64.urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if base64.urlsafe_b64encode(octets).rstrip(b"=").decode() != part:
        raise ValueError("not the canonical spelling")
    return octets


@attrs.define(eq=False, kw_only=True)
class JwtAuthenticator:
    """Makes an `Identity` of the token that a request carries; for `Options.authenticate`. Needs the extra ``jwt``.

    Exactly one of `secret` (a shared one, for HS256 and its kin) and `keys` (a file with a PEM public key or a JWK set,
    or the URL of a JWK set). `algorithms` are pinned: a token never chooses another. By default HS256 for a secret;
    RS256, PS256, ES256 and EdDSA otherwise. ValueError, before anybody connects, for what cannot be used.
    """

    secret: str | bytes | None = attrs.field(default=None, repr=False)
    keys: str | None = None
    algorithms: frozenset[str] = attrs.field(default=(), converter=_algorithms)
    rules: ClaimRules = ClaimRules()
    _keys: Keys = attrs.field(init=False, repr=False)
    _signatures: jwt.PyJWS = attrs.field(init=False, repr=False)
    #: When each user's tokens were revoked, oldest first.
    _revoked: dict[str, float] = attrs.field(factory=dict, init=False, repr=False)

    def __attrs_post_init__(self) -> None:
        if (self.secret is None) == (self.keys is None):
            raise ValueError("tokens are verified by a secret or by keys: give one of them")
        if not self.algorithms:
            self.algorithms = frozenset(("HS256",) if self.secret is not None else DEFAULT_ALGORITHMS)
        if unknown := self.algorithms - KNOWN_ALGORITHMS:
            raise ValueError(f"unknown algorithms: {', '.join(sorted(unknown))}")
        if self.secret is not None:
            self._keys = from_secret(self.secret, self.algorithms)
        else:
            assert self.keys is not None
            self._keys = from_place(self.keys)
        self._signatures = jwt.PyJWS(algorithms=sorted(self.algorithms))

    async def __call__(self, request: Request) -> Identity:
        """Whose request it is. `Unauthorized` without a token that can be believed; `IdentityMismatch` if the query
        says otherwise.
        """
        token = bearer_token(request)
        if token is None:
            raise Unauthorized("a token is needed")
        return agreeing(request, await self.identify(token))

    async def identify(self, token: str) -> Identity:
        """Whose `token` it is; `InvalidToken` if it cannot be believed."""
        parts = Compact.parse(token)
        if parts.algorithm not in self.algorithms:
            raise InvalidToken("the token is signed by an algorithm that is not allowed")
        candidates = await self._keys.candidates(parts.algorithm, parts.key_id)
        if not any(self._signed(token, parts.algorithm, key.material) for key in candidates):
            raise InvalidToken("the token's signature is not valid")
        identity = self.rules.judge(parts.claims, time.time())
        revoked_at = self._revoked.get(identity.user)
        if revoked_at is not None and not _issued(parts.claims) > revoked_at:
            raise InvalidToken("the token has been revoked")
        return identity

    def _signed(self, token: str, algorithm: str, material: Any) -> bool:
        try:
            self._signatures.decode_complete(token, material, algorithms=[algorithm])
        except (jwt.PyJWTError, ValueError, TypeError):
            return False
        return True

    def revoke(self, user: str) -> None:
        """Believe no token of `user` any more that was issued until now; one that does not say when is such a one.

        Kept in memory, for the last 100,000 users. Connections that are open are not ended by this: `Supervisor` ends
        them, ``POST /api/revoke`` does both.
        """
        self._revoked.pop(user, None)
        self._revoked[user] = time.time()
        if len(self._revoked) > _MOST_REVOKED:
            del self._revoked[next(iter(self._revoked))]


def _issued(claims: Claims) -> float:
    try:
        return _time(claims, "iat")
    except Refused:
        return -math.inf


def issue(secret: str, user: str, *, session: str | None = None, seconds: float = 3600.0, now: float) -> str:
    """A token for development, signed with HS256: what ``ws-supervisor token`` prints."""
    claims: Claims = {"sub": user, "iat": math.floor(now), "exp": math.floor(now + seconds)}
    if session is not None:
        claims["sid"] = session
    from_secret(secret, frozenset({"HS256"}))
    return jwt.encode(claims, secret, algorithm="HS256")
