"""Environment profiles: how often to audit, and by what a leak hunt judges. They never change a limit or a bound."""

from __future__ import annotations

import os
from collections.abc import Mapping

import attrs

ENV = "WS_SUPERVISOR_ENV"


@attrs.frozen
class Profile:
    """The thresholds of one environment."""

    name: str
    #: Seconds between two audits.
    audit_interval: float
    #: Milliseconds of cleanup above which a suite warns; the bound on closing stays what ``timeouts.close`` says.
    cleanup_warning_ms: int
    #: Megabytes of growth above which a suite convicts.
    memory_growth_mb: int
    #: Connect/close cycles of a stress suite.
    stress_cycles: int


PROFILES: Mapping[str, Profile] = {
    profile.name: profile
    for profile in (
        Profile("development", 60, 300, 100, 100),
        Profile("test", 30, 500, 100, 100),
        Profile("ci", 30, 1000, 50, 50),
        Profile("staging", 300, 500, 75, 100),
        Profile("production", 300, 500, 75, 100),
    )
}


def choose_profile(name: str | None = None, environ: Mapping[str, str] = os.environ) -> Profile:
    """The profile called `name`; else by ``WS_SUPERVISOR_ENV``; else ``ci`` under CI; else ``production``.

    Raises ValueError for a name that is none of them.
    """
    on_ci = any(environ.get(variable, "").lower() in ("1", "true") for variable in ("CI", "GITHUB_ACTIONS"))
    chosen = name or environ.get(ENV) or ("ci" if on_ci else "production")
    try:
        return PROFILES[chosen]
    except KeyError:
        raise ValueError(f"unknown environment {chosen!r}: must be one of {', '.join(PROFILES)}") from None
