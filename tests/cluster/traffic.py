"""Steady requests from outside, from nodes and from pods, while something happens to the cluster."""

from __future__ import annotations

import contextlib
import json
import pathlib
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field

from tests.cluster import nodes, programs
from tests.cluster.place import HERE, REPO, Cluster, ClusterNode

STEADY = REPO / HERE / "steady.py"
MOST_SECONDS = 1800
START_SECONDS = 600
MOST_PLACES = 16


@dataclass(frozen=True, slots=True)
class Origin:
    """Where requests come from: outside; a node; or the pod with the address on that node."""

    node: ClusterNode | None = None
    pod_ip: str = ""

    def __str__(self) -> str:
        if self.node is None:
            return "outside"
        return f"pod on {self.node.name}" if self.pod_ip else self.node.name

    def folder(self, cluster: Cluster) -> pathlib.Path:
        """Which its requests and this machine share."""
        return cluster.node_folder(self.node) if self.node else cluster.folder

    @property
    def word(self) -> str:
        return str(self).replace(" ", "-")


@dataclass(frozen=True, slots=True)
class OriginResult:
    """What became of the requests from a place to a target; `failures` are (seconds from the start, error)."""

    place: str
    target: str
    ok: int
    slowest: float
    failures: list[tuple[float, str]]

    def __str__(self) -> str:
        line = (
            f"{self.place} -> {self.target}: {self.ok} ok, {len(self.failures)} failed, slowest {self.slowest} s"
        )
        return "\n".join([line, *(f"    at {at:.1f} s: {error}" for at, error in self.failures[:5])])


@dataclass
class RunningTraffic:
    """The results are there when the context is left."""

    results: list[OriginResult] = field(default_factory=list)

    def failed(self) -> list[OriginResult]:
        return [result for result in self.results if result.failures]

    def silent(self) -> list[OriginResult]:
        """Those that proved nothing, for none of their requests was answered."""
        return [result for result in self.results if not result.ok]

    def __str__(self) -> str:
        return "\n".join(map(str, self.results))


@contextlib.contextmanager
def flowing(cluster: Cluster, wanted: dict[Origin, list[str]]) -> Iterator[RunningTraffic]:
    """Requests to the targets (steady.py) of each place, as long as the context lasts."""
    traffic = RunningTraffic()
    stop_files = {place.folder(cluster) / "stop" for place in wanted}
    start_files = [place.folder(cluster) / f"started-{place.word}" for place in wanted]
    for file in (*stop_files, *start_files):
        file.unlink(missing_ok=True)
    first = numbers(wanted)
    with ThreadPoolExecutor(MOST_PLACES) as pool:
        running = {
            place: pool.submit(_run, cluster, place, first[place], targets) for place, targets in wanted.items()
        }
        try:
            programs.wait("no requests", lambda: all(file.exists() for file in start_files), START_SECONDS)
            yield traffic
        finally:
            for file in stop_files:
                file.touch()
        for place, future in running.items():
            traffic.results += _results(place, future)


def numbers(wanted: dict[Origin, list[str]]) -> dict[Origin, int]:
    """The number of the first target of each place, such that no two of a node and its pods have the same one."""
    first, following = {}, Counter[ClusterNode | None]()
    for place, targets in wanted.items():
        first[place] = following[place.node]
        following[place.node] += len(targets)
    return first


def _results(place: Origin, future: Future[str]) -> Iterator[OriginResult]:
    for line in future.result().splitlines():
        said = json.loads(line)
        failures = [(at, error) for at, error in said["failures"]]
        yield OriginResult(str(place), said["target"], said["ok"], said["slowest"], failures)


def _run(cluster: Cluster, place: Origin, first: int, targets: list[str]) -> str:
    # As text: a node that read the file before may go on with what it has read.
    program = [
        sys.executable,
        "-c",
        STEADY.read_text(),
        str(place.folder(cluster)),
        place.word,
        str(first),
        *targets,
    ]
    done = run_at(cluster, place, *program, seconds=MOST_SECONDS)
    if done.returncode:
        message = f"{place}: {done.stdout}{done.stderr or ''}"
        raise programs.Failed(message)
    return done.stdout


def run_at(
    cluster: Cluster, place: Origin, *words: object, seconds: float = 600
) -> subprocess.CompletedProcess[str]:
    """Run a command where requests come from, whatever its exit code is."""
    if place.node is None:
        outside = cluster.inside(*words)
        return subprocess.run(outside, capture_output=True, text=True, check=False, timeout=seconds)
    entered = ["ip", "netns", "exec", pod_namespace(cluster, place)] if place.pod_ip else []
    return nodes.run(cluster, place.node, *entered, *words, seconds=seconds)


# The network namespaces that containerd made are named on the node; the one with the pod's address is its own.
# Others may go meanwhile.
_FIND = """
for each in $(ip netns list | cut -d " " -f 1); do
    if ip -n "$each" address 2>/dev/null | grep -qwF "$1"; then echo "$each"; fi
done
"""


def pod_namespace(cluster: Cluster, place: Origin) -> str:
    """The network namespace of a pod, by its name on the node."""
    assert place.node is not None
    done = nodes.run(cluster, place.node, "sh", "-c", _FIND, "sh", place.pod_ip)
    found = done.stdout.split()
    if len(found) != 1:
        message = f"no pod with the address {place.pod_ip} on {place.node.name}: {done.stdout}"
        raise programs.Failed(message)
    return found[0]
