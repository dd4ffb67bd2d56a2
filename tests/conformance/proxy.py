"""The proxy under test: started in a network's node, fed with one scenario after the other.

A swap replaces the one manifest file atomically. To know that everything in it has reached the kernel, each
file also holds a marker, an IPv6 Service with an address never used before, and the same objects are
written twice with two markers. The proxy works through its events in order, so when the second marker is on
kube-ipvs0 everything of the first writing is done, whichever kind of object came last.
"""

from __future__ import annotations

import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from typing import Self

from tests.conformance import kernel_state, zygote
from tests.conformance.network import Prefix
from tests.conformance.objects import flags, node_object, objects, service
from tests.conformance.scenario_file import Scenario
from tests.lab.proxy import LabProxy
from tests.support.api_object import ApiObject
from tests.support.repository import REPO

SWAP_SECONDS = 60.0
POLL_SECONDS = 0.05
FIRST_MARKER = 0x1000
NAMESPACE = "flow-markers"


class Stuck(RuntimeError):
    """The proxy has ended, or did not take over what it was given."""


class ZygoteChild:
    """A child of the zygote; as much of subprocess.Popen as `LabProxy` uses."""

    def __init__(self, pid: int) -> None:
        self.pid = pid
        self.returncode: int | None = None

    def poll(self) -> int | None:
        if self.returncode is None:
            try:
                os.kill(self.pid, 0)
            except ProcessLookupError:
                self.returncode = -1
        return self.returncode

    def send_signal(self, number: int) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)

    def wait(self, timeout: float = 30.0) -> int:
        deadline = time.monotonic() + timeout
        while self.poll() is None:
            if time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(POLL_SECONDS)
        return self.returncode or 0


class Zygote:
    """The interpreter that forks proxies; it begins to import at once, the first fork waits for that."""

    def __init__(self) -> None:
        argv = [sys.executable, "-m", zygote.__name__]
        self._process = subprocess.Popen(argv, cwd=REPO, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def fork(self, where: str, arguments: list[str], log: pathlib.Path) -> ZygoteChild:
        self._process.stdin.write(json.dumps({"where": where, "arguments": arguments, "log": str(log)}) + "\n")
        self._process.stdin.flush()
        answer = self._process.stdout.readline()
        if not answer:
            raise Stuck("ipvsproxy cannot be imported")
        return ZygoteChild(int(answer))

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc: object) -> None:
        self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


class FlowProxy(LabProxy):
    """A proxy whose whole manifests folder is one file."""

    def __init__(
        self, zygote: Zygote, where: str, scenario: Scenario, prefix: Prefix, folder: pathlib.Path
    ) -> None:
        self._manifests = folder / "manifests"
        self._manifests.mkdir(parents=True)
        self.flags = flags(scenario)
        arguments = [
            "run",
            f"--manifests={self._manifests}",
            "--logging-format=json",
            "--ipvs-min-sync-period=0s",
            *self.flags,
        ]
        super().__init__(where, arguments, folder / "proxy.log")
        self._zygote, self._prefix = zygote, prefix
        self._markers = 0

    def start(self) -> None:
        self.process = self._zygote.fork(self.netns, self.argv, self.log)  # type: ignore[assignment]

    def enter(self, scenario: Scenario) -> None:
        """Give it a scenario in place of the last one, and wait until it is in the kernel. Raises Stuck."""
        self._swap([node_object(scenario)])
        self._swap(objects(scenario))
        self._swap(objects(scenario))

    def _swap(self, wanted: list[ApiObject]) -> None:
        self._markers += 1
        marker = self._prefix.address(6, FIRST_MARKER + self._markers)
        # Last, so that it is the last of its kind to be programmed.
        made = service(NAMESPACE, "marker", marker, [{"port": self._markers, "protocol": "TCP"}])
        fresh = self._manifests / ".fresh"
        fresh.write_text(json.dumps({"apiVersion": "v1", "kind": "List", "items": [*wanted, made]}))
        fresh.replace(self._manifests / "scenario.json")
        if self.process is None:
            self.start()
        self._wait_until_bound(marker)

    def _wait_until_bound(self, marker: str) -> None:
        deadline = time.monotonic() + SWAP_SECONDS
        while marker not in kernel_state.bound6(self.netns):
            if not self.is_running():
                raise Stuck(f"the proxy has ended: {self._last_words()}")
            if time.monotonic() > deadline:
                raise Stuck(f"the proxy did not take over a scenario: {self._last_words()}")
            time.sleep(POLL_SECONDS)

    def _last_words(self) -> str:
        return " ".join(self.text().splitlines()[-3:])[-600:]

    def serves(self, scenario: Scenario) -> bool:
        """Whether it can go on with this scenario: it was not ended, and its flags would be the same."""
        return self.flags == flags(scenario) and (self.process is None or self.is_running())
