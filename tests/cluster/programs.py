"""Programs of a cluster on this machine: in its namespace, with a log file and a process id file for each."""

from __future__ import annotations

import contextlib
import os
import pathlib
import signal
import subprocess
import time
from collections.abc import Callable, Sequence

from tests.cluster.place import Cluster

POLL_SECONDS = 0.3
_STARTED: dict[int, subprocess.Popen[bytes]] = {}
"""By process id, those of this process: kept as long as they run, so that they can be waited for."""


class Failed(Exception):
    """Something of the cluster did not come up; the text says what, and where its log is."""


def start(cluster: Cluster, name: str, words: Sequence[object], cwd: pathlib.Path | None = None) -> None:
    """Start a program in the background; its output goes to the end of its log."""
    log = cluster.log(name)
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output:
        process = subprocess.Popen(
            cluster.inside(*words),
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            start_new_session=True,
        )
    _STARTED[process.pid] = process
    _pid_file(cluster, name).write_text(str(process.pid))


def stop(cluster: Cluster, name: str, number: signal.Signals = signal.SIGTERM, seconds: float = 30) -> None:
    """End a program and those that it started; by SIGKILL when that takes too long."""
    group = pid(cluster, name)
    for each in (number, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(group, each)
        if _ends(group, seconds):
            return


def pid(cluster: Cluster, name: str) -> int:
    return int(_pid_file(cluster, name).read_text())


def is_running(cluster: Cluster, name: str) -> bool:
    return not _ends(pid(cluster, name), 0)


def wait(what: str, condition: Callable[[], object], seconds: float) -> float:
    """Seconds until the condition holds; Failed, with `what`, when it does not in time."""
    started = time.monotonic()
    while not condition():
        if time.monotonic() - started > seconds:
            message = f"{what}: not within {seconds:.0f} s"
            raise Failed(message)
        time.sleep(POLL_SECONDS)
    return time.monotonic() - started


def _ends(group: int, seconds: float) -> bool:
    deadline = time.monotonic() + seconds
    while True:
        if group in _STARTED and _STARTED[group].poll() is not None:
            del _STARTED[group]
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        if time.monotonic() >= deadline:
            return False
        time.sleep(0.1)


def _pid_file(cluster: Cluster, name: str) -> pathlib.Path:
    return cluster.log(name).with_suffix(".pid")
