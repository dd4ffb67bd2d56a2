"""Programs that tests of the tools start, and what a machine must have for it."""

from __future__ import annotations

import os
import pathlib
import shutil
import subprocess
from collections.abc import Callable

import pytest

REPO = pathlib.Path(__file__).resolve().parents[2]
Script = Callable[..., subprocess.Popen[str]]


def require(*programs: str) -> None:
    """Skip a test for want of a program; fail it where nothing may be skipped."""
    lacking = [name for name in programs if shutil.which(name) is None]
    if lacking and os.environ.get("IPVSPROXY_REQUIRE") == "1":
        pytest.fail(f"not installed: {', '.join(lacking)}", pytrace=False)
    if lacking:
        pytest.skip(f"not installed: {', '.join(lacking)}")


def run(*words: str | pathlib.Path) -> None:
    """Run a program that must succeed."""
    done = subprocess.run([str(word) for word in words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{words}\n{done.stdout}{done.stderr}"
