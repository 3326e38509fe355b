"""The pytest plugin, run on tests that leak, each in its own way, and on one that does not."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

HEAD = """
import socket
import trio
from supervisor import Identity

async def sleeper(conn):
    await trio.sleep_forever()

async def in_and_out(supervisor, wire):
    conn = await supervisor.start(wire, Identity(user="ann"), sleeper)
    wire.hang_up()
    await conn.wait_gone()
    return conn
"""

LEAKS = {
    "task": (
        "trio.lowlevel.spawn_system_task(trio.sleep_forever)  # here",
        ["*task: trio.sleep_forever is still running*"],
    ),
    "file": (
        "global kept; kept = socket.socket()  # here",
        ["*file descriptor: * is still open: socket:*"],
    ),
    "connection": (
        'await supervisor.start(fault_wire(), Identity(user="ann"), sleeper)  # here',
        ["*entry: connection c1 of user 'ann' is still there*", "*token: 1 of the total limit are still taken*"],
    ),
    "held": (
        "global kept; kept = await in_and_out(supervisor, fault_wire())  # here",
        ["*held: connection c1 is gone, and held by *.kept*"],
    ),
    "garbage": (
        "wire = fault_wire(); wire.inbox.append(wire)  # here",
        ["*garbage: 1 × FaultWire only the collector can free*"],
    ),
}


def run(pytester: pytest.Pytester, line: str) -> pytest.RunResult:
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    test = f"async def test_it(supervisor, fault_wire, leak_check):\n    {line}\n"
    pytester.makepyfile(HEAD + test)
    return pytester.runpytest_subprocess("-q")


@pytest.mark.req("R23")
@pytest.mark.parametrize(
    "leak", [leak if number == 0 else pytest.param(leak, marks=pytest.mark.slow) for number, leak in enumerate(LEAKS)]
)
def test_a_leak_fails_its_test_and_the_line_is_named(pytester: pytest.Pytester, leak: str) -> None:
    line, told = LEAKS[leak]
    result = run(pytester, line)
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(told)
    if leak == "held":
        return  # by a name, not by a line
    number = HEAD.count("\n") + 1  # after the one at its beginning has been stripped
    assert f"test_a_leak_fails_its_test_and_the_line_is_named.py:{number}" in result.stdout.str()


@pytest.mark.slow
@pytest.mark.req("R23")
def test_what_the_documents_show_works(pytester: pytest.Pytester) -> None:
    pytester.makeini("[pytest]\ntrio_mode = true\n")
    page = Path(__file__).parent.parent / "docs" / "testing.md"
    pytester.makepyfile("\n".join(re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)))
    pytester.runpytest_subprocess("-q").assert_outcomes(passed=2)


@pytest.mark.req("R23")
def test_nothing_left_nothing_said(pytester: pytest.Pytester) -> None:
    run(pytester, "await in_and_out(supervisor, fault_wire())").assert_outcomes(passed=1)
