"""The alert rules in docs/alerts.yml: each fires when it must, and is silent when all is well."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from shutil import which
from typing import Any

import attrs
import pytest

from tests.requirements import NO_PROMTOOL

RULES = Path(__file__).parent.parent / "docs" / "alerts.yml"
P = "ws_supervisor_"
BUCKETS = ("0.05", "0.1", "0.25", "0.5", "1.0", "+Inf")

pytestmark = pytest.mark.skipif(which("promtool") is None, reason=NO_PROMTOOL)


def histogram(name: str, *per_minute: int) -> dict[str, str]:
    """So many observations in each bucket, each minute."""
    total, series = 0, {}
    for bucket, count in zip(BUCKETS, per_minute, strict=True):
        total += count
        series[f'{P}{name}_bucket{{instance="i",le="{bucket}"}}'] = f"0+{total}x600"
    return series


def steady(name: str, value: float, labels: str = "") -> dict[str, str]:
    return {f'{P}{name}{{instance="i"{labels}}}': f"{value}x600"}


def rising(name: str, per_minute: float, labels: str = "") -> dict[str, str]:
    return {f'{P}{name}{{instance="i"{labels}}}': f"0+{per_minute}x600"}


MEMORY = 'process_resident_memory_bytes{instance="i"}'
WELL = (
    steady("audit_age_seconds", 10)
    | steady("audit_interval_seconds", 300)
    | steady("orphans", 0)
    | steady("handlers_stuck_now", 0)
    | steady("connections", 100)
    | rising("audit_failures_total", 0)
    | rising("emergency_cleanups_total", 10, ',outcome="succeeded"')
    | rising("emergency_cleanups_total", 0, ',outcome="failed"')
    | histogram("admission_seconds", 100, 0, 0, 0, 0, 0)
    | histogram("loop_lag_seconds", 100, 0, 0, 0, 0, 0)
    | {MEMORY: "100000000+1000x600"}
)


@attrs.frozen
class Ill:
    alert: str
    severity: str
    series: dict[str, str]
    also: tuple[str, ...] = ()


ILL = (
    Ill("AuditDead", "page", steady("audit_age_seconds", 700)),
    Ill("AuditFails", "warn", rising("audit_failures_total", 1)),
    Ill("Orphans", "page", steady("orphans", 1)),
    Ill("EmergencyCleanupFails", "warn", rising("emergency_cleanups_total", 1, ',outcome="failed"')),
    Ill("AdmissionSlow", "warn", histogram("admission_seconds", 90, 0, 10, 0, 0, 0)),
    Ill("AdmissionVerySlow", "page", histogram("admission_seconds", 90, 0, 0, 0, 10, 0), also=("AdmissionSlow",)),
    Ill("HandlersStuck", "warn", steady("handlers_stuck_now", 2)),
    Ill("MemoryGrows", "warn", {MEMORY: "100000000+100000x600"}),
    Ill("LoopLate", "warn", histogram("loop_lag_seconds", 90, 0, 10, 0, 0, 0)),
)


def firing(folder: Path, series: dict[str, str]) -> set[str]:
    """Which alerts fire after eight hours of these series: promtool names those that it was not told to expect."""
    test: dict[str, Any] = {
        "interval": "1m",
        "input_series": [{"series": key, "values": values} for key, values in series.items()],
        "alert_rule_test": [{"eval_time": "8h", "alertname": ill.alert, "exp_alerts": []} for ill in ILL],
    }
    plan = folder / "test.yml"
    plan.write_text(json.dumps({"rule_files": [str(RULES)], "evaluation_interval": "1m", "tests": [test]}))
    done = subprocess.run(["promtool", "test", "rules", str(plan)], capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    fired = set(re.findall(r"alertname: (\w+), time: 8h", said))
    assert bool(fired) is bool(done.returncode), said
    for ill in ILL:
        assert ill.alert not in fired or f'severity="{ill.severity}"' in said, said
    return fired


@pytest.mark.req("R48")
def test_nothing_fires_when_all_is_well(tmp_path: Path) -> None:
    assert firing(tmp_path, WELL) == set()


@pytest.mark.req("R48")
@pytest.mark.parametrize("ill", ILL, ids=lambda ill: ill.alert)
def test_it_fires(ill: Ill, tmp_path: Path) -> None:
    assert firing(tmp_path, WELL | ill.series) == {ill.alert, *ill.also}


@pytest.mark.req("R48")
def test_every_rule_is_tested() -> None:
    rules = [line.split(":")[1].strip() for line in RULES.read_text().splitlines() if "- alert:" in line]
    assert sorted(rules) == sorted(ill.alert for ill in ILL)
