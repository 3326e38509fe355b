"""Records, errors, reasons, profiles: validated, documented, complete."""

from __future__ import annotations

import ast
import inspect
import itertools
import math

import attrs
import pytest

from supervisor import (
    CloseReason,
    ConnectionClosed,
    Draining,
    Frame,
    HardLimitReached,
    Identity,
    LimitReached,
    Limits,
    Options,
    Policies,
    Refused,
    Superseded,
    Timeouts,
    choose_profile,
)
from supervisor._words.frames import close_payload


@pytest.mark.parametrize(
    ("record", "bad"),
    [
        *[(Limits, {name: bad}) for name in ("per_user", "total", "lobby") for bad in (0, -1, 1.5, True, "5", None)],
        *[(Limits, {"idle_ttl": bad}) for bad in (0, -1, math.nan, "300", None, True)],
        *[(Timeouts, {"close": bad}) for bad in (0, -1, math.nan)],
        (Timeouts, {"evict": -0.1}),
        *[(Policies, {"shed_at": bad}) for bad in (0, 1.1, -1)],
        (Policies, {"shed_at": 0.5, "shed_to": 0.6}),
        (Policies, {"shed_idle_after": 0}),
        (Options, {"port": 70000}),
        (Options, {"allowed_origins": ["example.com"]}),
    ],
)
def test_bad_settings_are_refused_by_name(record: type, bad: dict[str, object]) -> None:
    with pytest.raises((ValueError, TypeError), match=list(bad)[-1].removeprefix("allowed_").removesuffix("s")):
        record(**bad)


def test_the_defaults_are_those_promised() -> None:
    assert (Limits().per_user, Limits().total, Limits().idle_ttl) == (5, 1000, 300)
    assert Limits(per_user=7).stuck_per_user == 7
    assert Limits(stuck=0).stuck_per_user == 0
    timeouts = Timeouts()
    assert (timeouts.close, timeouts.handler_exit, timeouts.evict) == (0.5, 0.5, 0.1)


@pytest.mark.parametrize("record", [Limits, Timeouts, Policies, Options])
def test_every_setting_says_what_it_does(record: type) -> None:
    body = ast.parse(inspect.getsource(record)).body[0].body
    documented = {
        node.target.id
        for node, after in itertools.pairwise(body)
        if isinstance(node, ast.AnnAssign) and isinstance(after, ast.Expr) and isinstance(after.value, ast.Constant)
    }
    undocumented = {field.name for field in attrs.fields(record)} - documented
    assert undocumented <= {"host"}


@pytest.mark.parametrize("reason", CloseReason)
def test_reasons_have_codes_that_may_be_sent_and_say_whether_to_return(reason: CloseReason) -> None:
    assert (
        reason.code in (1000, 1001, 1002, 1003, 1006, 1007, 1008, 1009, 1011, 1012, 1013) or 4000 <= reason.code < 5000
    )
    assert reason.on_wire is (reason.code != 1006)
    if reason.code >= 4000:
        assert reason.may_return is (reason.code < 4500)
    assert len(close_payload(reason.code, reason.text)) <= 125


@pytest.mark.req("R03")
@pytest.mark.parametrize(
    ("refusal", "sentence", "status", "retry_after", "reason"),
    [
        (
            LimitReached("ann", "per user", 5, 5),
            "user 'ann' exceeded maximum connections per user limit (5/5)",
            *(429, 1.0, CloseReason.LIMIT_REACHED),
        ),
        (
            LimitReached("ann", "total", 9, 9),
            "user 'ann' exceeded maximum connections total limit (9/9)",
            *(503, 1.0, CloseReason.LIMIT_REACHED),
        ),
        (
            HardLimitReached("ann", 5, 5, 6),
            "HARD LIMIT: user 'ann' still over limit after cleanup (5/5, 6 stuck)",
            *(429, 1.0, CloseReason.LIMIT_REACHED),
        ),
        (
            Draining(),
            "draining: no new connections are admitted",
            *(503, 5.0, CloseReason.RESTART),
        ),
        (
            Superseded("server restart", CloseReason.RESTART),
            "server restart",
            *(429, 1.0, CloseReason.RESTART),
        ),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Refused) else "",
)
def test_a_refusal_is_one_sentence_and_what_http_answers(
    refusal: Refused, sentence: str, status: int, retry_after: float, reason: CloseReason
) -> None:
    assert str(refusal) == sentence
    assert (refusal.status, refusal.retry_after, refusal.reason) == (status, retry_after, reason)


def test_a_closed_connection_says_what_its_close_frame_says() -> None:
    assert str(ConnectionClosed(CloseReason.KICKED)) == "kicked"
    assert str(ConnectionClosed(CloseReason.CLOSED, "bye")) == "bye"


@pytest.mark.req("R18")
@pytest.mark.parametrize("bad", [0, False, None, b"ann", 1.0])
def test_a_user_of_another_type_is_nobody(bad: object) -> None:
    with pytest.raises(TypeError, match="user must be a str"):
        Identity(user=bad)


@pytest.mark.req("R18")
def test_names_are_bounded_and_expiry_is_finite() -> None:
    for bad in ("", "x" * 257):
        with pytest.raises(ValueError, match="1 to 256 characters"):
            Identity(user=bad)
        with pytest.raises(ValueError, match="1 to 256 characters"):
            Identity(user="ann", session=bad)
    for bad in (math.inf, math.nan):
        with pytest.raises(ValueError, match="expires_at"):
            Identity(user="ann", expires_at=bad)
    with pytest.raises(TypeError):
        Identity(user="ann").labels["x"] = "y"


@pytest.mark.req("R08")
@pytest.mark.parametrize(
    ("environ", "name"),
    [
        ({}, "production"),
        ({"CI": "true"}, "ci"),
        ({"GITHUB_ACTIONS": "true"}, "ci"),
        ({"CI": "false"}, "production"),
        ({"CI": "true", "WS_SUPERVISOR_ENV": "staging"}, "staging"),
    ],
)
def test_the_profile_is_chosen_by_the_environment(environ: dict[str, str], name: str) -> None:
    assert choose_profile(environ=environ).name == name
    assert choose_profile("test", environ).name == "test"


@pytest.mark.req("R08")
def test_the_profiles_are_those_promised() -> None:
    figures = {
        name: attrs.astuple(choose_profile(name))[1:] for name in ("development", "test", "ci", "staging", "production")
    }
    assert figures == {
        "development": (60, 300, 100, 100),
        "test": (30, 500, 100, 100),
        "ci": (30, 1000, 50, 50),
        "staging": (300, 500, 75, 100),
        "production": (300, 500, 75, 100),
    }
    with pytest.raises(ValueError, match="unknown environment 'prod'"):
        choose_profile("prod")


@pytest.mark.parametrize("size", [0, 1, 125, 126, 65535, 65536, 200_000])
def test_frames_are_spelled_as_the_rfc_wants_them(size: int) -> None:
    from wsproto.frame_protocol import FrameDecoder, Opcode

    decoder = FrameDecoder(client=True)
    decoder.receive_bytes(Frame(b"x" * size).octets)
    payload = b""
    while (part := decoder.process_buffer()) is not None:
        assert part.opcode is Opcode.BINARY
        payload += bytes(part.payload)
        if part.message_finished:
            break
    assert payload == b"x" * size


def test_a_long_reason_is_cut_at_a_character() -> None:
    payload = close_payload(1000, "é" * 100)
    assert len(payload) <= 125
    assert payload[2:].decode() == "é" * 61
