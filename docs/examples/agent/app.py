"""An agent whose answers are streamed, and go on while the page that wanted them is reloaded, or its network is lost.

    python -m docs.examples.agent.app          # from a checkout; then open http://127.0.0.1:8765/

It answers questions about this project out of its own documents: there is a tool that searches them, in a thread, and
the answer comes word by word. Put a model in the place of `compose`, and tools of your own beside `search`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import attrs
import trio

from supervisor import Hub, Options, Run, Timeouts, serve

HERE = Path(__file__).parent
DOCUMENTS = HERE.parent.parent
#: Seconds between two words.
PACE = 0.03
_CODE = re.compile(r"^```.*?^```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\[([^]]*)\]\([^)]*\)")
_WORD = re.compile(r"[a-z]{3,}")
_COMMON = frozenset(
    _WORD.findall(
        "and are but can does for from has have how its not that the this was what when where which who why with"
    )
)


@attrs.frozen
class Passage:
    """A paragraph of one document, and the words in it."""

    document: str
    text: str
    words: frozenset[str]


def words_of(text: str) -> frozenset[str]:
    """What may be looked for: words without their plural, and not those that are everywhere."""
    return frozenset(word.removesuffix("s") for word in _WORD.findall(text.lower())) - _COMMON


def _passages() -> Iterator[Passage]:
    for path in sorted(DOCUMENTS.rglob("*.md")):
        for paragraph in _CODE.sub("", path.read_text()).split("\n\n"):
            if not paragraph.startswith(("|", "#", "<")):
                plain = _LINK.sub(r"\1", paragraph).replace("**", "").replace("`", "")
                text = " ".join(plain.split())
                yield Passage(str(path.relative_to(DOCUMENTS)), text, words_of(text))


passages = cache(lambda: tuple(_passages()))
weights = cache(lambda: Counter(word for passage in passages() for word in passage.words))


def search(question: str) -> Passage | None:
    """The passage that has most of the question's words, the rare ones first of all; None if none has any."""
    wanted = words_of(question)

    def fits(passage: Passage) -> float:
        return sum(1 / weights()[word] for word in wanted & passage.words) / (10 + len(passage.words)) ** 0.5

    best = max(passages(), key=fits)
    return best if wanted & best.words else None


def compose(question: str, found: Passage | None) -> str:
    """What to answer."""
    if found is None:
        return "The documents of this project say nothing about that."
    return f"{found.text} (docs/{found.document})"


async def librarian(run: Run, question: Any) -> dict[str, Any]:
    """One question, in five events and as many words as the answer has."""
    if not isinstance(question, str) or not question.strip():
        raise ValueError("a question is a text")
    run.emit("agent_started", {"question": question})
    run.emit("agent_thinking", {"words": sorted(words_of(question))})
    run.emit("tool_executing", {"tool": "search"})
    found = await trio.to_thread.run_sync(search, question, abandon_on_cancel=True)
    run.emit("tool_completed", {"tool": "search", "found": None if found is None else found.document})
    answer = compose(question, found)
    for word in answer.split():
        run.emit("word", word)
        await run.drained()  # never faster than who reads it
        await trio.sleep(PACE)
    run.emit("agent_completed", {"answer": answer})
    return {"answer": answer}


handler = Hub({"librarian": librarian})


async def main(port: int = 8765) -> None:
    """Serve the agent and its page; a user's work goes on for a minute without any connection of theirs."""
    await serve(handler, Options(port=port, page=str(HERE / "page")), timeouts=Timeouts(linger=60))


if __name__ == "__main__":
    trio.run(main)
