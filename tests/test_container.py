"""In a container: process 1, no terminal, a file system that cannot be written, one processor, few file descriptors."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.serving import connect, request

#: Made by the namespaces themselves, so that nothing needs to be installed and nothing is left.
CONTAINER = """
set -e
mount -t proc proc /proc
mount -o remount,ro,bind /
ulimit -n 64
cd /
exec taskset -c 0 "$PYTHON" -m supervisor serve --port "$PORT" --log-format json </dev/null
"""


def can_unshare() -> bool:
    tried = subprocess.run(["unshare", "--pid", "--fork", "--mount", "true"], capture_output=True, check=False)
    return tried.returncode == 0


pytestmark = pytest.mark.skipif(not can_unshare(), reason="this machine makes no namespaces")


def run_container(port: int) -> subprocess.Popen[bytes]:
    environment = {"PYTHON": sys.executable, "PORT": str(port), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.Popen(
        ["unshare", "--pid", "--fork", "--mount", "--kill-child", "sh", "-c", CONTAINER],
        env={**environment, "PATH": os.environ["PATH"], "PYTHONPATH": str(Path(__file__).parent.parent)},
        stderr=subprocess.PIPE,
        start_new_session=True,
    )


async def start(port: int) -> subprocess.Popen[bytes]:
    process = run_container(port)
    assert process.stderr is not None
    while b"serving on" not in (line := await trio.to_thread.run_sync(process.stderr.readline)):
        assert line, "it did not start"
    return process


def first_of(process: subprocess.Popen[bytes]) -> int:
    """Our number of the process that is number 1 to itself."""
    (child,) = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    status = Path(f"/proc/{child}/status").read_text()
    assert "NSpid:\t" + child + "\t1\n" in status
    return int(child)


@pytest.mark.req("R47")
async def test_process_number_one_is_ready_serves_and_drains(unused_port: int) -> None:
    process = await start(unused_port)
    try:
        with trio.fail_after(10):
            async with connect(unused_port) as raw:
                await raw.send(b"GET /readyz HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
                assert (await raw.response())[0] == 200  # the audit has run before the first accept
            async with connect(unused_port) as raw:
                await raw.upgrade()
                assert (await raw.message())["type"] == "welcome"
                os.kill(first_of(process), signal.SIGTERM)
                assert (await raw.closed_with())[0] == 1012
            assert await trio.to_thread.run_sync(process.wait) == 0
    finally:
        process.kill()
        process.communicate()


@pytest.mark.req("R47")
async def test_few_file_descriptors_are_few_connections_and_no_crash(unused_port: int) -> None:
    process = await start(unused_port)
    try:
        with trio.fail_after(20):
            async with trio.open_nursery() as nursery:
                for _ in range(100):
                    nursery.start_soon(hang_around, unused_port)
                await trio.sleep(1)
                nursery.cancel_scope.cancel()
            async with connect(unused_port) as raw:
                await raw.upgrade()
            assert process.poll() is None
    finally:
        os.kill(first_of(process), signal.SIGKILL)
        process.communicate()


async def hang_around(port: int) -> None:
    async with connect(port):
        await trio.sleep_forever()


@pytest.mark.req("R47")
async def test_without_its_background_task_it_is_not_ready(monkeypatch) -> None:
    """Shown in this process: the audit is what is looked at, and a server whose audit has not run does not listen."""
    from supervisor._mechanisms import supervisor as mechanism
    from tests.serving import open_server

    async def never(ledger, health, *, task_status=trio.TASK_STATUS_IGNORED) -> None:
        await trio.sleep_forever()

    monkeypatch.setattr(mechanism, "audit_periodically", never)
    with trio.move_on_after(0.3) as patience:
        async with open_server():
            pytest.fail("it listens, though its audit has never run")
    assert patience.cancelled_caught
    monkeypatch.undo()
    async with open_server() as server:
        server.supervisor.audit_health.last_at -= 10_000
        assert (await request(server, "GET", "/readyz"))[0] == 503
