"""The agent that is an example: what it answers."""

from __future__ import annotations

import pytest
import trio

from docs.examples.agent import app
from supervisor.client import RunEvent, open_client
from tests.serving import open_server
from tests.test_runs import GOLDEN

QUESTION = "What does a keeper sleep in?"


@pytest.mark.req("R32")
async def test_it_answers_in_five_events_and_many_words() -> None:
    async with open_server(app.handler) as server, open_client(f"ws://127.0.0.1:{server.port}/ws?user=ann") as client:
        with trio.fail_after(20):
            run = await client.run("librarian", QUESTION)
            told = [await anext(client)]
            while getattr(told[-1], "event", None) != "run_ended":
                told.append(await anext(client))
    events = [it for it in told if isinstance(it, RunEvent) and it.run == run]
    assert [it.event for it in events if it.event != "word"] == [*GOLDEN, "run_ended"]
    answer = events[-1].data["result"]["answer"]
    assert answer == app.compose(QUESTION, app.search(QUESTION))
    assert " ".join(it.data for it in events if it.event == "word") == answer


async def test_what_it_cannot_answer_it_says() -> None:
    assert app.search("xylophone zeppelin") is None
    async with open_server(app.handler) as server, open_client(f"ws://127.0.0.1:{server.port}/ws?user=ann") as client:
        with trio.fail_after(20):
            await client.run("librarian", 7)
            while not isinstance(it := await anext(client), RunEvent):
                pass
    assert it.data == {"outcome": "failed", "error": "ValueError", "result": None}
