"""``doctor``: whether this machine is fit to serve, and what to do where it is not."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import platform
import socket
import sys
from collections.abc import Iterator

import attrs

from .._server.options import Options
from .._words.limits import Limits
from .app import app
from .operations import columns

#: File descriptors that are used for other things than connections.
_OTHERS = 64
_EXTRAS = {
    "websockets": "websockets",
    "jwt": "jwt",
    "metrics": "prometheus_client",
    "testing": "hypothesis",
    "plot": "matplotlib",
    "opentelemetry": "opentelemetry",
}


@attrs.frozen
class Finding:
    """One thing that was looked at."""

    what: str
    #: ``well``, ``note`` or ``ill``.
    state: str
    text: str


def examine(host: str, port: int, limits: Limits) -> Iterator[Finding]:
    """Everything there is to look at."""
    yield _versions()
    yield _name()
    yield from _descriptors(limits)
    yield _port(host, port)
    yield _backlog()
    yield _extras()


def _versions() -> Finding:
    packages = ("websocket-supervisor", "trio", "trio-websocket", "attrs", "h11")
    told = ", ".join(f"{name} {importlib.metadata.version(name)}" for name in packages)
    fit = sys.version_info >= (3, 11)
    return Finding("versions", "well" if fit else "ill", f"Python {platform.python_version()}, {told}")


def _name() -> Finding:
    """PyPI's supervisor installs a package of the same name, and overwrites ours without a word."""
    owners = sorted(set(importlib.metadata.packages_distributions().get("supervisor", ())))
    others = [owner for owner in owners if owner != "websocket-supervisor"]
    if others:
        told = f"{', '.join(others)} has a package of this name too: uninstall it, then install us again"
        return Finding("the name supervisor", "ill", told)
    return Finding("the name supervisor", "well", "is ours alone")


def _descriptors(limits: Limits) -> Iterator[Finding]:
    try:
        import resource
    except ImportError:  # not on Windows
        yield Finding("file descriptors", "note", "this system does not say how many there may be")
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = limits.total + limits.lobby + _OTHERS
    told = f"{soft} (at most {hard}); {needed} for --total {limits.total} and --lobby {limits.lobby}"
    if soft >= needed:
        yield Finding("file descriptors", "well", told)
    else:
        yield Finding("file descriptors", "ill", f"{told}: raise it with ulimit -n")


def _port(host: str, port: int) -> Finding:
    try:
        with socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET):
            return Finding("the port", "well", f"{host}:{port} is free")
    except OSError as error:
        return Finding("the port", "ill", f"{host}:{port}: {error.strerror or error}")


def _backlog() -> Finding:
    try:
        with open("/proc/sys/net/core/somaxconn") as file:
            most = int(file.read())
    except (OSError, ValueError):
        return Finding("the backlog", "note", "this system does not say")
    told = f"{most} may wait to be accepted"
    return Finding("the backlog", "well" if most >= 1024 else "note", told)


def _extras() -> Finding:
    there = [name for name, module in _EXTRAS.items() if importlib.util.find_spec(module) is not None]
    absent = [name for name in _EXTRAS if name not in there]
    told = f"installed: {', '.join(there) or 'none'}" + (f"; not: {', '.join(absent)}" if absent else "")
    return Finding("extras", "well", told)


@app.command
def doctor(
    *,
    host: str = Options().host,
    port: int = Options().port,
    total: int = Limits().total,
    lobby: int = Limits().lobby,
) -> int:
    """Look whether this machine is fit to serve: 0 if it is, 1 if something must be mended.

    Parameters
    ----------
    host
        Where serve would listen.
    port
        On which port.
    total
        For how many connections.
    lobby
        With how many half-open ones.
    """
    Options(port=port)
    findings = list(examine(host, port, Limits(total=total, lobby=lobby)))
    print("\n".join(columns([[it.state, it.what, it.text] for it in findings])))
    return 1 if any(it.state == "ill" for it in findings) else 0
