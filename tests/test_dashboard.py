"""The dashboard in docs/grafana.json: it asks for nothing that is not there, in a language that Prometheus knows."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from shutil import which

import pytest
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.requirements import NO_PROMTOOL
from tests.serving import open_server
from tests.test_metrics import scrape

DASHBOARD = json.loads((Path(__file__).parent.parent / "docs" / "grafana.json").read_text())
QUERIES = [
    target["expr"].replace("$instance", "i").replace("$__rate_interval", "1m")
    for panel in DASHBOARD["panels"]
    for target in panel["targets"]
]


@pytest.mark.req("R34")
async def test_every_figure_that_it_shows_is_exposed() -> None:
    async with open_server() as server:
        families = {family.name for family in parse((await scrape(server))[2])}
    asked = {name for query in QUERIES for name in re.findall(r"\b(?:ws_supervisor|process)_\w+", query)}
    asked = {re.sub(r"_(bucket|total)$", "", name) for name in asked}
    assert asked - families == set()
    assert len(asked) > 20


@pytest.mark.skipif(which("promtool") is None, reason=NO_PROMTOOL)
def test_prometheus_understands_every_query(tmp_path: Path) -> None:
    rules = [{"record": f"panel:{number}", "expr": query} for number, query in enumerate(QUERIES)]
    (tmp_path / "rules.json").write_text(json.dumps({"groups": [{"name": "dashboard", "rules": rules}]}))
    subprocess.run(["promtool", "check", "rules", tmp_path / "rules.json"], check=True, capture_output=True)


def test_panels_do_not_lie_upon_each_other() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        place = panel["gridPos"]
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
