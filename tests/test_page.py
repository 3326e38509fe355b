"""What a person sees: the page in a real browser, against a server in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import time
import urllib.request
from collections.abc import Iterator
from shutil import which
from typing import Any

import pytest

from tests.requirements import NO_BROWSER
from tests.serving import Process, frame, upgrade_head
from tests.test_runs import GOLDEN

try:
    from playwright.sync_api import sync_playwright
except ImportError:
    sync_playwright = None
CHROMIUM = sync_playwright and (which("chromium") or which("chromium-headless-shell"))
pytestmark = [pytest.mark.slow, pytest.mark.skipif(CHROMIUM is None, reason=NO_BROWSER)]
ARGS = ["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"]


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM, args=ARGS)
        yield chromium
        chromium.close()


@pytest.fixture
def page(browser: Any) -> Iterator[Any]:
    """A page of which nothing has been complained, in the end; what the network says when a server is killed aside."""
    context = browser.new_context(viewport={"width": 1280, "height": 860})
    said: list[str] = []
    tab = context.new_page()
    tab.set_default_timeout(15_000)
    tab.on("console", lambda message: said.append(message.text) if message.type in ("error", "warning") else None)
    tab.on("pageerror", lambda error: said.append(str(error)))
    yield tab
    context.close()
    network = ("Failed to load resource", "WebSocket connection to")
    assert [line for line in said if not any(word in line for word in network)] == []


@pytest.fixture
def server() -> Iterator[Process]:
    with Process() as process:
        yield process


def visit(page: Any, server: Process, state: str = "well") -> None:
    page.goto(f"http://127.0.0.1:{server.port}/")
    page.wait_for_selector(f"#state[data-state={state}]")


def order(server: Process, path: str, **body: object) -> Any:
    request = urllib.request.Request(f"http://127.0.0.1:{server.port}/api/{path}", json.dumps(body).encode())
    with urllib.request.urlopen(request) as answer:
        return json.load(answer)


@contextlib.contextmanager
def crowd(server: Process, users: int, each: int, first: int = 0) -> Iterator[list[socket.socket]]:
    with contextlib.ExitStack() as stack:
        socks = []
        for number in range(users * each):
            sock = stack.enter_context(socket.create_connection(("127.0.0.1", server.port)))
            sock.sendall(upgrade_head(f"/ws?user=user-{first + number // each:03d}"))
            socks.append(sock)
        yield socks


def until(page: Any, expression: str, seconds: float = 15) -> None:
    """Wait until it is so. The page itself must not evaluate texts, so it is asked from outside."""
    patience = time.monotonic() + seconds
    while not page.evaluate(expression):
        assert time.monotonic() < patience, expression
        page.wait_for_timeout(20)


def seats(page: Any, count: int, state: str = "here") -> None:
    """Wait until so many are drawn in this state."""
    until(page, f"document.querySelectorAll('#users .seat.{state}').length === {count}")


@pytest.mark.req("R17", "R35")
def test_somebody_connects_speaks_and_is_disconnected_by_hand(page: Any, server: Process) -> None:
    visit(page, server)
    assert page.is_visible("#empty")
    page.click("#connect")
    seats(page, 1)
    assert page.text_content("#users .name") == "ann1/5"
    page.click("#connect")
    seats(page, 2)
    page.fill("#message", "hello")
    page.press("#message", "Enter")
    until(page, "document.getElementById('log').innerText.includes('ann: \"hello\"')")
    page.click("#users .seat.here")
    page.wait_for_selector("#life-here dl")
    told = page.inner_text("#life")
    assert "s left, then idle" in told
    assert "admitted" in told
    assert "lobby" in told
    page.click("#life-end")
    until(page, "document.getElementById('life').innerText.includes('Not here any more')")
    until(page, "document.getElementById('story').innerText.includes('kicked')")
    page.keyboard.press("Escape")
    seats(page, 1)
    until(page, "document.getElementById('log').innerText.includes('4503 kicked')")


@pytest.mark.req("R32")
def test_the_demo_agent_is_seen_at_work(page: Any, server: Process) -> None:
    visit(page, server)
    page.click("#run")
    until(page, "document.getElementById('log').innerText.includes('connect first')")
    page.click("#connect")
    seats(page, 1)
    until(page, "document.getElementById('log').innerText.includes('tab 1 is c1')")
    page.click("#run")
    for event in (*GOLDEN, "run_ended"):
        until(page, f"document.getElementById('log').innerText.includes('{event}')")
    until(page, "document.getElementById('news').innerText.includes('run ended')")


@pytest.mark.req("R26")
def test_eight_tabs_and_the_three_oldest_are_evicted(page: Any, server: Process) -> None:
    visit(page, server)
    page.click("#tabs")
    until(page, "(document.getElementById('log').innerText.match(/closed: 4505/g) ?? []).length === 3")
    seats(page, 5)
    told = "user 'ann' exceeded maximum connections per user limit (5/5)"
    until(page, f'document.getElementById("news").innerText.includes("{told}")')
    assert page.get_attribute("#users > li", "class") == "high full"


def test_a_thousand_connections_are_drawn_and_the_emergency_is_seen(page: Any, server: Process) -> None:
    visit(page, server)
    with crowd(server, 158, 5):
        seats(page, 790)
        assert page.get_attribute("#state", "data-state") == "well"
        with crowd(server, 42, 5, first=158):
            page.wait_for_selector("#state[data-state=emergency]")
            seats(page, 1000)
            assert page.inner_text("#here") == "1,000"
            page.fill("#find", "user-03")
            assert page.locator("#users > li:visible").count() == 10
            page.reload()
            seats(page, 1000)
    until(page, "document.querySelectorAll('#users > li').length === 0")


def test_limits_that_are_changed_and_only_watched_are_seen(page: Any, server: Process) -> None:
    visit(page, server)
    with crowd(server, 2, 2):
        seats(page, 4)
        order(server, "limits", per_user=1)
        seats(page, 2)
        until(page, "document.querySelector('#users .name').textContent.includes('1/1')")
        order(server, "limits", enforce=False)
        page.wait_for_selector("#state[data-state=watching]")


def test_a_drain_is_seen(page: Any, server: Process) -> None:
    visit(page, server)
    page.click("#connect")
    seats(page, 1)
    order(server, "drain")
    page.wait_for_selector("#state[data-state=draining]")
    seats(page, 0)
    until(page, "document.getElementById('log').innerText.includes('1012 server restart')")


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM])
def test_the_server_goes_away_and_comes_back(page: Any, unused_port: int, end: signal.Signals) -> None:
    with Process(port=unused_port) as server:
        visit(page, server)
        page.click("#connect")
        seats(page, 1)
        os.kill(server.process.pid, end)
        page.wait_for_selector("#state[data-state=lost]")
    with Process(port=unused_port) as server:
        page.wait_for_selector("#state[data-state=well]")
        # what was there before is not there any more; but its tab comes back by itself
        until(page, "document.getElementById('log').innerText.includes(', again')", 60)
        seats(page, 1)
        page.click("#connect")
        seats(page, 2)


def test_after_a_restart_nobody_is_taken_for_somebody_else(page: Any, unused_port: int) -> None:
    with Process(port=unused_port) as server:
        visit(page, server)
        with crowd(server, 1, 2):
            seats(page, 2)
            page.click("#users .name")
            page.wait_for_selector("dialog[open]")
            os.kill(server.process.pid, signal.SIGKILL)
            page.wait_for_selector("#state[data-state=lost]")
    with Process(port=unused_port) as server, crowd(server, 1, 3, first=7):
        page.wait_for_selector("#state[data-state=well]")
        seats(page, 3)
        assert page.text_content("#users") == "user-0073/5"
        assert not page.evaluate("document.getElementById('life').open")


def test_who_does_not_look_takes_no_connection(page: Any, browser: Any, server: Process) -> None:
    visit(page, server)
    hide = """Object.defineProperty(document, 'hidden', {value: %s, configurable: true});
        document.dispatchEvent(new Event('visibilitychange'))"""
    page.evaluate(hide % "true")
    seats(page, 0)
    with crowd(server, 1, 2):
        page.wait_for_timeout(600)
        assert page.locator("#users .seat.here").count() == 0
        page.evaluate(hide % "false")
        seats(page, 2)


def test_the_dialog_keeps_focus_and_says_what_went_wrong(page: Any, server: Process) -> None:
    visit(page, server)
    with crowd(server, 1, 2):
        seats(page, 2)
        page.click("#users .name")
        page.wait_for_selector("#life-here button")
        page.focus("#life-here button:nth-child(2)")
        before = page.text_content("#life-here button:nth-child(2)")
        until(page, f"document.querySelector('#life-here button:nth-child(2)').textContent !== {before!r}")
        assert page.evaluate("document.activeElement === document.querySelector('#life-here button:nth-child(2)')")
        page.route("**/api/disconnect", lambda route: route.fulfill(status=403, json={"detail": "you may not"}))
        page.click("#life-end")
        until(page, "document.getElementById('life-error').textContent === 'you may not'")


def test_names_are_only_text(page: Any, server: Process) -> None:
    visit(page, server)
    page.fill("#user", "<img src=x onerror=document.title=1>")
    page.fill("#room", "<b>room</b>")
    page.click("#connect")
    seats(page, 1)
    page.click("#users .name")
    page.wait_for_selector("#life-here button")
    assert "<img" in page.inner_text("#life-title")
    assert page.locator("#users img, #life img, #log b").count() == 0
    assert page.title() == "websocket-supervisor"


def test_who_looks_must_have_the_admin_token(page: Any) -> None:
    with Process("--admin-token", "secret") as server:
        page.goto(f"http://127.0.0.1:{server.port}/")
        for token, state in (("wrong", "lost"), ("пароль", "lost"), ("secret", "well")):
            page.wait_for_selector("#login:not([hidden])")
            page.fill("#token", token)
            page.press("#token", "Enter")
            page.wait_for_selector(f"#state[data-state={state}]")
        assert page.is_hidden("#login")


def test_it_can_be_used_without_a_mouse(page: Any, server: Process) -> None:
    visit(page, server)
    page.focus("#connect")
    page.keyboard.press("Enter")
    seats(page, 1)
    page.focus("#find")
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.ariaLabel") == "ann: 1 of 5 connections"
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] #life-here button")
    page.focus("#life-here button")
    page.keyboard.press("Enter")
    page.wait_for_selector("dialog[open] #life-here dl")
    page.keyboard.press("Escape")
    until(page, "!document.getElementById('life').open")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [320, 390, 1280])
def test_nothing_is_cut_off_and_everything_has_a_name(page: Any, server: Process, width: int, scheme: str) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    page.emulate_media(color_scheme=scheme)
    visit(page, server)
    page.click("#tabs")
    seats(page, 5)
    assert page.evaluate("document.documentElement.scrollWidth <= innerWidth")
    assert page.evaluate(NAMELESS) == []
    assert page.evaluate(CONTRASTS) == []


NAMELESS = """[...document.querySelectorAll('button, input:not([hidden]), [role=img]')]
  .filter((it) => !(it.ariaLabel || it.getAttribute('aria-label') || it.innerText || it.labels?.length))
  .map((it) => it.outerHTML)"""
#: Texts whose contrast with what is behind them is less than WCAG's 4.5.
CONTRASTS = """(() => {
  const rgb = (text) => text.match(/[\\d.]+/g).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4)
    .reduce((all, c, index) => all + c * [0.2126, 0.7152, 0.0722][index], 0);
  const ground = (it) => { for (; it; it = it.parentElement) {
    const colour = rgb(getComputedStyle(it).backgroundColor);
    if (colour.length < 4 || colour[3] > 0.99) return colour;
  } return [255, 255, 255]; };
  const poor = [];
  for (const it of document.querySelectorAll('h1, h2, p, b, span, dt, dd, label, button, li, figcaption')) {
    if (!it.innerText?.trim() || !it.checkVisibility({ checkVisibilityCSS: true }) || it.disabled) continue;
    const [one, other] = [light(rgb(getComputedStyle(it).color)), light(ground(it))];
    const contrast = (Math.max(one, other) + 0.05) / (Math.min(one, other) + 0.05);
    if (contrast < 4.5) poor.push(`${it.tagName} ${it.innerText.slice(0, 20)} ${contrast.toFixed(2)}`);
  }
  return poor;
})()"""


def test_a_connection_that_ends_is_visible_for_a_moment(page: Any, server: Process) -> None:
    visit(page, server)
    with crowd(server, 1, 1) as (sock,):
        seats(page, 1)
        sock.sendall(frame(8, (1000).to_bytes(2, "big")))
        seats(page, 1, "leaving")
        seats(page, 0, "leaving")
