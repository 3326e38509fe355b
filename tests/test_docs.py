"""What the documents say is so: their code runs, their references lead somewhere, their commands are those of CI."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import trio
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser
from trio_websocket import HandshakeError, open_websocket_url

from supervisor.testing import FaultWire
from tests.serving import open_server

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def run_blocks(page: Path) -> dict[str, object]:
    """Run the Python blocks of one page, one after another; returns what they have defined."""
    document = Sybil(parsers=[PythonCodeBlockParser()], path=str(page.parent), filenames=[page.name]).parse(page)
    for example in document.examples():
        example.evaluate()
    return document.namespace


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_the_code_of_every_page_runs(page: Path) -> None:
    run_blocks(page)


async def test_the_first_example_of_the_readme_works() -> None:
    handler = run_blocks(ROOT / "README.md")["handler"]
    async with open_server(handler) as server:
        url = f"ws://127.0.0.1:{server.port}/ws?user="
        async with open_websocket_url(url + "ann") as ann, open_websocket_url(url + "bob") as bob:
            while len(server.supervisor.room("lobby").members) < 2:
                await trio.sleep(0.005)
            await ann.send_message("hello")
            assert await bob.get_message() == "hello"


async def test_the_second_example_of_the_readme_works(autojump_clock, capsys) -> None:
    own_transport = run_blocks(ROOT / "README.md")["own_transport"]
    wire = FaultWire()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(own_transport, wire)
        await trio.sleep(1)
        wire.hang_up()
    assert capsys.readouterr().out == "1000 closed by the peer {'peer_closed': 1} ()\n"


@pytest.mark.req("R03")
async def test_the_two_changed_lines_work() -> None:
    names = run_blocks(ROOT / "docs" / "serve-websocket.md")
    async with trio.open_nursery() as nursery:
        with trio.socket.socket() as free:
            await free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        nursery.start_soon(names["main"], port)
        while True:
            try:
                async with open_websocket_url(f"ws://127.0.0.1:{port}/ann") as ws:
                    await ws.send_message("hello")
                    assert await ws.get_message() == "hello"
                    break
            except HandshakeError:  # not listening yet
                await trio.sleep(0.01)
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_references_lead_somewhere(page: Path) -> None:
    text = page.read_text()
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (page.parent / target).exists(), target
    for path, name in re.findall(r"`(supervisor/[\w/]+\.py)::([\w.]+)`", text):
        found = importlib.import_module(path.removesuffix(".py").replace("/", "."))
        for part in name.split("."):
            found = getattr(found, part)


def test_ci_runs_the_readmes_test_command() -> None:
    first_lines = (ROOT / "README.md").read_text().splitlines()[:6]
    commands = [line.split("#")[0].strip("$ ") for line in first_lines if line.startswith("$ ")]
    assert commands == ["python3 .ci/start.py serve", "python3 .ci/start.py test"]
