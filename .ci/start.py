"""Set everything up in ``.venv`` and start it: ``python3 .ci/start.py serve|test|slow [arguments]``.

Needs nothing but Python 3.11 or newer, and an index to install from: no pip, no ensurepip, no rights.
"""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
import tempfile
import urllib.request
import venv
from pathlib import Path
from urllib.parse import urljoin

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
BIN = VENV / ("Scripts" if os.name == "nt" else "bin")
PYTHON = BIN / "python"
PINNED = ROOT / ".ci" / "constraints.txt"
COMMANDS = {
    "serve": ("cli,metrics", ["-m", "supervisor", "serve"]),
    "test": ("dev", ["-m", "pytest", "-n", "2", "--dist", "worksteal"]),
    "slow": ("ci", ["-m", "pytest", "-m", "slow"]),
}


def main() -> int:
    if sys.version_info < (3, 11):
        return complain("Python 3.11 or newer is needed, this is " + sys.version.split()[0])
    if len(sys.argv) < 2 or sys.argv[1] not in COMMANDS:
        return complain(__doc__ or "")
    extra, command = COMMANDS[sys.argv[1]]
    set_up(extra)
    os.chdir(ROOT)
    return subprocess.run([PYTHON, *command, *sys.argv[2:]], check=False).returncode


def complain(text: str) -> int:
    print(text, file=sys.stderr)
    return 2


def set_up(extra: str) -> None:
    """Install the project with `extra`, unless just that has been done."""
    wanted = hashlib.sha256((ROOT / "pyproject.toml").read_bytes() + PINNED.read_bytes()).hexdigest()
    done = VENV / f"installed-{extra}"
    if done.exists() and done.read_text() == wanted:
        return
    if not PYTHON.exists():
        venv.create(VENV, with_pip=False, symlinks=os.name != "nt")
    print(f"installing into {VENV} ...", file=sys.stderr)
    pip = [*find_pip(), "install", "--quiet", "--disable-pip-version-check", "--constraint", str(PINNED)]
    subprocess.run([*pip, "--editable", f"{ROOT}[{extra}]"], check=True)
    done.write_text(wanted)


def find_pip() -> list[str]:
    """A pip that installs into the environment: its own, this Python's, or one from the index."""
    if subprocess.run([PYTHON, "-m", "ensurepip"], capture_output=True, check=False).returncode == 0:
        return [str(PYTHON), "-m", "pip"]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode == 0:
        return [sys.executable, "-m", "pip", "--python", str(PYTHON)]
    return [str(PYTHON), str(Path(fetch_pip()) / "pip")]


def fetch_pip() -> str:
    """A wheel of pip, which can be run as it is; the newest that the index lists."""
    index = os.environ.get("PIP_INDEX_URL", "https://pypi.org/simple").rstrip("/") + "/pip/"
    with urllib.request.urlopen(index) as page:
        wheels = re.findall(r'href="([^"]*/pip-([\d.]+)-py3-none-any\.whl)[^"]*"', page.read().decode())
    newest = max(wheels, key=lambda wheel: [int(part) for part in wheel[1].split(".") if part])[0]
    target = Path(tempfile.mkdtemp()) / newest.rsplit("/", 1)[1]
    with urllib.request.urlopen(urljoin(index, newest)) as wheel:
        target.write_bytes(wheel.read())
    return str(target)


if __name__ == "__main__":
    sys.exit(main())
