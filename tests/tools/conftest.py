"""Tests of the tools that get a machine ready to build and test: they need neither root nor a kernel with IPVS."""

from __future__ import annotations

import os
import pathlib
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.programs import REPO, Script


@pytest.fixture
def script(tmp_path: pathlib.Path) -> Iterator[Script]:
    """Start a shell script that has sourced the tools; each line of progress comes after a second."""
    # Where the tools call sudo, the tests need no other rights than they have.
    sudo = tmp_path / "bin/sudo"
    sudo.parent.mkdir()
    sudo.write_text('#!/bin/sh\nexec "$@"\n')
    sudo.chmod(0o755)
    path = f"{sudo.parent}:{os.environ['PATH']}:/usr/sbin:/sbin"
    started = []

    def start(text: str, **env: str) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            ["sh", "-euc", f". tools/progress.sh; . tools/apt.sh; {text}"],
            cwd=REPO,
            env={**os.environ, "PATH": path, "PROGRESS_SECONDS": "1", **env},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()
