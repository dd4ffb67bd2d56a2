"""Tests find the same surroundings whatever started them (tests/conftest.py)."""

import json
import os
import signal
import subprocess
import sys

from tests.support.repository import REPO

# What a program finds that a test starts.
PROGRAM = """
import json, os, signal
found = {
    "ignored": [number for number in range(1, 32) if signal.getsignal(number) is signal.SIG_IGN],
    "umask": os.umask(0),
    "input": os.read(0, 1).decode(),
    "names": sorted(os.environ),
}
print(json.dumps(found))
"""
TEST = """
import subprocess, sys
from tests.support import surroundings
surroundings.settle()
surroundings.without_proxies()
subprocess.run([sys.executable, "-c", sys.argv[1]], check=True)
"""
UNUSUAL = {
    "COLUMNS": "20",
    "NO_COLOR": "1",
    "HTTP_PROXY": "http://127.0.0.1:9",
    "PYTHONWARNINGS": "ignore",
    "IPVSPROXY_DRAIN_TIMEOUT": "1h",
    "IPVSPROXY_REQUIRE": "1",
}


def in_the_background():
    for number in (signal.SIGINT, signal.SIGQUIT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.umask(0o077)
    os.close(0)


def test_programs_of_tests_find_nothing_of_an_unusual_shell():
    env = {"PATH": os.environ["PATH"], **UNUSUAL}
    argv = [sys.executable, "-c", TEST, PROGRAM]
    done = subprocess.run(
        argv, cwd=REPO, env=env, preexec_fn=in_the_background, stdout=subprocess.PIPE, check=True
    )
    found = json.loads(done.stdout)
    # Python itself ignores these two in every program.
    assert set(found["ignored"]) <= {signal.SIGPIPE, signal.SIGXFSZ}
    assert (found["umask"], found["input"]) == (0o022, "")
    assert not set(found["names"]) & set(UNUSUAL) - {"IPVSPROXY_REQUIRE"}
    assert {"HOME", "IPVSPROXY_REQUIRE", "PATH"} <= set(found["names"])


def test_a_signal_that_a_background_job_ignores_does_not_end_the_tests():
    program = (
        "import os, signal; from tests.support import surroundings; "
        "surroundings.settle(); os.kill(0, signal.SIGINT); print('still here')"
    )
    env = {"PATH": os.environ["PATH"]}
    argv = [sys.executable, "-c", program]
    options = {"preexec_fn": in_the_background, "start_new_session": True, "cwd": REPO}
    assert subprocess.run(argv, env=env, stdout=subprocess.PIPE, check=True, **options).stdout == b"still here\n"
