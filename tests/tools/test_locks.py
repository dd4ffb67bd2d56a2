"""What the tests run with is what the locks name: `tools/bootstrap` has installed that and nothing else."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
from importlib.metadata import version

REPO = pathlib.Path(__file__).resolve().parents[2]
LOCKS = REPO / "tools/locks"


def test_every_package_has_the_version_of_the_lock() -> None:
    pinned = dict(re.findall(r"^(\S+)==(\S+) ", (LOCKS / "dev.lock").read_text(), re.MULTILINE))
    assert len(pinned) > 20
    assert {name: version(name) for name in pinned} == pinned


def test_nothing_is_installed_that_no_lock_names() -> None:
    locks = "".join(path.read_text() for path in LOCKS.glob("*.lock"))
    done = subprocess.run(
        [sys.executable, REPO / "tools/not-locked"], input=locks, text=True, capture_output=True, check=True
    )
    assert done.stdout == ""
