"""The client for browsers, in a real one, against the real server, and through a proxy that cuts."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from supervisor.client import Gap, Message, RunEvent
from tests.cutting import NAMES, Talker, judge
from tests.proxy import Proxy, open_proxy
from tests.serving import Process
from tests.test_client import deal
from tests.test_page import browser as browser  # a fixture
from tests.test_page import pytestmark as pytestmark

TALK = (Path(__file__).parent / "talk.js").read_text()


class ProxyThread(threading.Thread):
    """A proxy beside a test that drives a browser, which knows nothing of Trio."""

    def __init__(self, target: int, count: int, seed: int) -> None:
        super().__init__()
        self.target, self.cuts = target, deal(count, seed)
        self.proxy: Proxy | None = None
        self.ready, self.over = threading.Event(), trio.Event()

    def run(self) -> None:
        trio.run(self.main)

    async def main(self) -> None:
        self.token = trio.lowlevel.current_trio_token()
        async with open_proxy(self.target, self.cuts) as self.proxy:
            self.ready.set()
            await self.over.wait()

    def __enter__(self) -> Proxy:
        self.start()
        assert self.ready.wait(10)
        assert self.proxy is not None
        return self.proxy

    def __exit__(self, *_: object) -> None:
        self.token.run_sync_soon(self.over.set)
        self.join(10)


def written_down(record: dict[str, Any]) -> Talker:
    """What a talker in the browser has written down, as ours do."""
    talker = Talker(record["user"], begun=record["begun"])
    talker.said = [(text, number) for text, number in record["said"]]
    talker.heard = [Message(it["room"], it["from"], it["data"], it["seq"]) for it in record["heard"]]
    talker.gaps = [Gap(it["after"], it["until"], it["room"], it["run"]) for it in record["gaps"]]
    for run, events in record["runs"].items():
        talker.runs[run] = [RunEvent(it["run"], it["event"], it["data"], it["seq"]) for it in events]
    return talker


def converse(browser: Any, cuts: int, port: int, *options: str) -> tuple[Proxy, list[Talker]]:
    """See `tests.cutting.converse`."""
    own = ("--app", "tests.cutting:hub", "--allowed-origins", f"http://127.0.0.1:{port}", "--linger", "30")
    limits = ("--per-user", "1", "--runs", "100", "--overflow-user", "reject")
    with Process(*own, *limits, *options, port=port) as server, ProxyThread(server.port, cuts, cuts) as proxy:
        context = browser.new_context(bypass_csp=True)  # the proxy is another origin
        page = context.new_page()
        page.goto(f"http://127.0.0.1:{port}/page/style.css")  # a page of the server that connects to nothing
        address = {"names": NAMES, "address": f"http://127.0.0.1:{proxy.port}", "clerk": f"http://127.0.0.1:{port}"}
        page.evaluate(f"(settings) => {{ window.result = ({TALK})(settings); }}", address)
        patience = time.monotonic() + cuts / 2
        while not proxy.exhausted.is_set():
            assert time.monotonic() < patience, proxy.done
            page.wait_for_timeout(50)
        records = page.evaluate("() => { window.enough = true; return window.result; }")
        context.close()
    return proxy, [written_down(record) for record in records]


@pytest.mark.req("R39")
@pytest.mark.parametrize("cuts", [1000])
def test_random_cuts_lose_nothing(browser: Any, unused_port: int, cuts: int, record_property: Any) -> None:
    ample = ("--history-messages", "10000", "--history-bytes", "10000000")
    proxy, (clerk, *talkers) = converse(browser, cuts, unused_port, *ample)
    judge(talkers, clerk.heard)
    assert proxy.done.total() >= cuts
    assert [talker.gaps for talker in (clerk, *talkers)] == [[], [], [], []]
    assert all(number is not None for talker in talkers for _, number in talker.said)
    record_property("cuts", cuts)
    record_property("messages", len(clerk.heard))
    record_property("runs", sum(len(talker.runs) for talker in talkers))


@pytest.mark.req("R39")
def test_what_is_lost_is_said(browser: Any, unused_port: int) -> None:
    _, (clerk, *talkers) = converse(browser, 100, unused_port, "--history-messages", "3", "--run-messages", "2")
    judge(talkers, clerk.heard)
    assert any(talker.gaps for talker in talkers)
