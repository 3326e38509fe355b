"""The page of the agent that is an example: whoever reloads it, or is cut off, sees all of an answer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from docs.examples.agent import app
from tests.serving import Process
from tests.test_page import browser as browser  # fixtures
from tests.test_page import page as page
from tests.test_page import pytestmark as pytestmark
from tests.test_page import until
from tests.test_runs import GOLDEN

QUESTION = "Who leaves when a sixth tab is opened?"
OWN = ("--app", "docs.examples.agent.app:handler", "--page", str(Path(app.__file__).parent / "page"), "--linger", "60")


def ask(page: Any, question: str = QUESTION) -> None:
    page.fill("#question", question)
    page.press("#question", "Enter")
    until(page, "(document.querySelector('article p')?.innerText ?? '').split(' ').length > 5")


def answered(page: Any) -> str:
    page.wait_for_selector("article[data-outcome=completed]")
    assert page.locator("ol li").all_inner_texts() == GOLDEN
    assert page.locator(".gap").count() == 0
    return page.inner_text("article p")


@pytest.mark.req("R32", "R39")
@pytest.mark.parametrize("trouble", ["none", "reload", "cut"])
def test_a_page_shows_all_of_an_answer(page: Any, trouble: str) -> None:
    with Process(*OWN) as server:
        page.goto(f"http://127.0.0.1:{server.port}/")
        page.wait_for_selector("#state[data-state=connected]")
        ask(page)
        if trouble == "reload":
            page.reload()
        if trouble == "cut":
            page.click("#cut")
            page.wait_for_selector("#state[data-state=reconnecting]")
        assert answered(page) == app.compose(QUESTION, app.search(QUESTION))


def test_an_answer_can_be_cancelled(page: Any) -> None:
    with Process(*OWN) as server:
        page.goto(f"http://127.0.0.1:{server.port}/")
        ask(page)
        page.click("article button")
        page.wait_for_selector("article[data-outcome=cancelled]")
        page.goto(f"http://127.0.0.1:{server.port}/page/")
        page.wait_for_selector("#state[data-state=well]")
