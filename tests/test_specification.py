"""The specification of admission among nodes, checked by Spin: of six designs, only those hold that are said to."""

from __future__ import annotations

import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.requirements import NO_SPIN

MODEL = Path(__file__).parent.parent / "docs" / "specification" / "admission.pml"


@pytest.mark.slow
@pytest.mark.req("R41", "A59")
@pytest.mark.skipif(not (shutil.which("spin") and shutil.which("cc")), reason=NO_SPIN)
@pytest.mark.parametrize(
    ("design", "holds"),
    [
        (("LEASE",), False),
        (("ATOMIC", "CRASH"), False),
        (("ATOMIC", "LEASE", "CRASH"), True),
        (("ATOMIC", "LEASE", "PAUSE"), False),
        (("ATOMIC", "LEASE", "PAUSE", "FENCE"), True),
        (("ATOMIC", "LEASE", "PAUSE", "FENCE", "CRASH"), True),
    ],
    ids=lambda it: "+".join(it) if isinstance(it, tuple) else "holds" if it else "does not",
)
def test_only_an_atomic_claim_with_a_lease_and_a_fence_holds(
    design: tuple[str, ...], *, holds: bool, tmp_path: Path, record_property: Any
) -> None:
    def run(*command: str) -> str:
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60).stdout

    run("spin", *(f"-D{flag}=1" for flag in design), "-a", str(MODEL))
    run("cc", "-w", "-O1", "-DSAFETY", "-o", "pan", "pan.c")
    told = run("./pan", "-m100000")
    states = re.search(r"(\d+) states, stored", told)
    assert states is not None, told
    assert ("errors: 0" in told) is holds, told
    record_property(f"states of {'+'.join(design)}", int(states[1]))
