"""A cable that is really pulled: two hosts in network namespaces, a link between them, and the link goes down."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

#: Runs in a network namespace of its own: the server's host.
SERVER = """
import json, logging, subprocess, sys, time
from functools import partial
import trio
from supervisor import Options, Timeouts, echo, events, serve

logging.disable(logging.CRITICAL)
meanwhile, client = sys.argv[1:]
ip = partial(subprocess.run, check=True)

async def handler(conn):
    while meanwhile == "sending":
        await conn.send(bytes(1000))
        await trio.sleep(0.05)
    await echo(conn)

async def main():
    ip(["ip", "link", "set", "lo", "up"])
    process = subprocess.Popen(["unshare", "--net", sys.executable, "-c", client], stdin=subprocess.PIPE)
    time.sleep(0.3)  # it has its namespace by then
    ip(["ip", "link", "add", "near", "type", "veth", "peer", "name", "far"])
    ip(["ip", "link", "set", "far", "netns", str(process.pid)])
    ip(["ip", "addr", "add", "10.77.0.1/24", "dev", "near"])
    ip(["ip", "link", "set", "near", "up"])
    timeouts = Timeouts(ping_interval=0.5, pong=0.5, write_progress=1.0)
    options = Options(host="10.77.0.1", port=8765, allow_anonymous=True)
    async with trio.open_nursery() as nursery:
        server = await nursery.start(partial(serve, handler, options, timeouts=timeouts, signals=False))
        ends = []
        server.supervisor.subscribe(lambda event: ends.append(event) if isinstance(event, events.Closed) else None)
        process.stdin.write(b"connect")
        process.stdin.close()
        while not server.supervisor.connections():
            await trio.sleep(0.01)
        await trio.sleep(0.5)
        pulled = trio.current_time()
        ip(["nsenter", "-t", str(process.pid), "--net", "ip", "link", "set", "far", "down"])
        while not ends:
            await trio.sleep(0.01)
        print(json.dumps({"took": ends[0].at - pulled, "reason": ends[0].reason.name.lower()}))
        process.kill()
        nursery.cancel_scope.cancel()

trio.run(main)
"""

#: The client's host: it answers pings as any client does, until nothing reaches it.
CLIENT = """
import subprocess, sys
sys.stdin.read()
subprocess.run(["ip", "addr", "add", "10.77.0.2/24", "dev", "far"], check=True)
subprocess.run(["ip", "link", "set", "far", "up"], check=True)
from websockets.sync.client import connect
with connect("ws://10.77.0.1:8765/ws?user=ann") as peer:
    for _ in peer:
        pass
"""


def can_be_two_hosts() -> bool:
    command = ["unshare", "--net", "ip", "link", "add", "near", "type", "veth", "peer", "name", "far"]
    try:
        return subprocess.run(command, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not can_be_two_hosts(), reason="this machine makes no network namespaces")
@pytest.mark.parametrize(
    ("meanwhile", "bound", "reasons"),
    [("idle", 0.5 + 0.5, {"unresponsive"}), ("sending", 1.0, {"unresponsive", "too_slow", "peer_lost"})],
)
def test_a_peer_whose_host_vanishes_is_found_in_time(meanwhile: str, bound: float, reasons: set[str]) -> None:
    command = ["unshare", "--net", sys.executable, "-c", SERVER, meanwhile, CLIENT]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT, timeout=30)
    found = json.loads(done.stdout)
    assert found["reason"] in reasons
    assert found["took"] <= bound + 0.5 + 0.2  # and what a busy machine adds
