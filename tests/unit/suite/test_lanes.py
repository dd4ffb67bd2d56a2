"""The integration server's lanes (.ci/run), seen by a `make` that only writes down what it is asked for."""

import os
import shutil
import subprocess
import sys

import pytest

from tests.support.repository import REPO

FOLDER = "tests/integration"
ON_BOTH_KERNELS = {f"{FOLDER}/test_ipvs.py", f"{FOLDER}/test_traffic.py"}
MAKE = """#!/bin/sh
printf '%s\\0' "$@" >notes/$$
[ "$1" != "$FAILING" ]
"""


def run(folder, failing=""):
    """Run a copy of .ci/run; return its exit code and the arguments of each `make`."""
    for name in (".ci", ".cache", ".venv/bin", "programs", "notes"):
        (folder / name).mkdir(parents=True)
    shutil.copy(REPO / ".ci/run", folder / ".ci/run")
    (folder / ".venv/bin/python").symlink_to(sys.executable)
    (folder / "programs/make").write_text(MAKE)
    (folder / "programs/make").chmod(0o755)
    environment = os.environ | {"PATH": f"{folder}/programs:{os.environ['PATH']}", "FAILING": failing}
    done = subprocess.run([folder / ".ci/run"], env=environment, check=False, capture_output=True, timeout=240)
    return done.returncode, [note.read_text().split("\0")[:-1] for note in (folder / "notes").iterdir()]


def files(calls, where):
    """The files of each `make integration WHERE=where`."""
    found = [call for call in calls if call[0] == "integration" and f"WHERE={where}" in call]
    return [word.removeprefix("TESTS=").split() for call in found for word in call if word.startswith("TESTS=")]


def test_each_integration_test_is_in_one_lane_and_only_in_one(tmp_path):
    code, calls = run(tmp_path)
    assert code == 0
    (main,) = [call for call in calls if call[0] == "test"]
    moved = [name for lane in files(calls, "--usermode") for name in lane]
    assert moved
    assert len(set(moved)) == len(moved)
    assert all((REPO / name).is_file() for name in moved)
    ignored = main[1].removeprefix("ARGS=").replace("--ignore=", "").split()
    assert sorted(ignored) == sorted(moved)


def test_only_the_packet_paths_run_on_a_second_kernel(tmp_path):
    (found,) = files(run(tmp_path)[1], "--vm")
    assert set(found) == ON_BOTH_KERNELS


@pytest.mark.parametrize("failing", ["-j", "fuzz", "soak", "integration", "bench-dataplane", "test"])
def test_a_failure_in_any_lane_fails_the_run_and_ends_no_other_step(tmp_path, failing):
    code, calls = run(tmp_path, failing)
    asked = [call[0] for call in calls]
    assert failing in asked
    assert code != 0
    if failing != "-j":
        assert {"fuzz", "soak", "integration", "bench-dataplane", "test"} <= set(asked)
