"""Soak test: thousands of random changes under traffic cost no request, no memory, no descriptor; nothing drifts.

A few Services are steady: they never change, and none of their requests may fail. The others are changed all the
time, file by file: endpoints come and go, ports move, Services vanish and return. Now and then all Services of one
file are asked, and what answers must be what the file says. At the end a second start on the same objects must
find nothing to change. SOAK_SECONDS and SOAK_SERVICES say how long and how many (`make soak`).
"""

from __future__ import annotations

import collections
import os
import pathlib
import random
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Self

import pytest

from ipvsproxy.base import messages
from tests.lab.lab import Lab, LabHost
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.probe import ProbeQuestion, Result, probe_many
from tests.lab.proxy import LabProxy
from tests.support.api_object import ApiObject

pytestmark = [pytest.mark.needs("ip_vs", "nf_tables"), pytest.mark.slow]

SECONDS = float(os.environ.get("SOAK_SECONDS", "180"))
SERVICES = int(os.environ.get("SOAK_SERVICES", "2000"))
PER_FILE = 20
FILES_AT_ONCE = 10
STEADY, STEADY_FROM = 3, 60_000
PAGE_KIB = os.sysconf("SC_PAGE_SIZE") // 1024
GROWTH = 1.05
"""Memory at the end, as a part of what it was after the first quarter."""
SETTLE_SECONDS = 60.0
WEB = port(80, 8080)
OTHER = port(81, 8080)


class SoakedObjects:
    """The objects as they should be, and the files that say so."""

    def __init__(self, lab: Lab, folder: ManifestFolder, random_: random.Random) -> None:
        self._lab, self._folder, self._random = lab, folder, random_
        self.files = [self._names(number) for number in range(SERVICES // PER_FILE)]
        self.ports: dict[str, ApiObject] = {}
        self.endpoints: dict[str, Sequence[LabHost]] = {}

    @staticmethod
    def _names(number: int) -> list[str]:
        return [f"s{number * PER_FILE + place}" for place in range(PER_FILE)]

    @staticmethod
    def address(name: str) -> str:
        number = int(name[1:])
        return f"10.96.{number // 250 + 1}.{number % 250 + 1}"

    def write_all(self) -> None:
        for number in range(STEADY):
            self._folder.write(f"steady{number}", *self._objects(f"s{STEADY_FROM + number}", WEB, self._lab.pods))
        for number in range(len(self.files)):
            self.change(number)

    def change(self, number: int) -> None:
        """Give some Services of a file other endpoints or ports, and take some away."""
        for name in self.files[number]:
            if name not in self.ports or self._random.random() < 0.2:
                self.ports[name] = self._random.choice((WEB, OTHER))
                count = self._random.choice((0, 1, 2, 3, 4))
                self.endpoints[name] = self._random.sample(self._lab.pods, count)
            if self._random.random() < 0.05:
                del self.ports[name]
        named = [name for name in self.files[number] if name in self.ports]
        self._folder.write(
            f"file{number}", *(o for n in named for o in self._objects(n, self.ports[n], self.endpoints[n]))
        )

    def _objects(self, name: str, where: ApiObject, pods: Sequence[LabHost]) -> Iterator[ApiObject]:
        yield service(name, [where], [self.address(name)])
        yield endpoint_slice(name, [where], [endpoint(self._lab, pod) for pod in pods])

    def wrong(self, *files: int) -> list[str]:
        """Ask all Services of some files at once; return those that do not behave as these say."""
        pairs = [(name, number) for file in files for name in self.files[file] for number in (80, 81)]
        where = self._lab.nodes[0].netns
        results = probe_many(ProbeQuestion(where, self.address(name), number) for name, number in pairs)
        judged = [self._judge(*pair, result) for pair, result in zip(pairs, results, strict=True)]
        return [text for text in judged if text]

    def _judge(self, name: str, number: int, result: Result) -> str:
        mine = name in self.ports and self.ports[name]["port"] == number
        pods = [pod.name for pod in self.endpoints[name]] if mine else []
        # A VIP without this port refuses; without any port it is no VIP, and goes wherever routes lead.
        fine = result.name in pods if pods else result.outcome != "answered"
        return "" if fine else f"{name}:{number}: {result.outcome} {result.name}, should be one of {pods}"


class SteadyTraffic(threading.Thread):
    """Asks the steady Services without a pause."""

    def __init__(self, lab: Lab) -> None:
        super().__init__(name="traffic", daemon=True)
        askers = (lab.nodes[0].netns, lab.pods[0].netns, lab.client.netns)
        targets = [SoakedObjects.address(f"s{STEADY_FROM + number}") for number in range(STEADY)]
        self._questions = [ProbeQuestion(asker, target, 80) for asker in askers for target in targets]
        self.outcomes: collections.Counter[str] = collections.Counter()
        self._stopping = threading.Event()

    def run(self) -> None:
        while not self._stopping.is_set():
            self.outcomes.update(result.outcome for result in probe_many(self._questions))
            time.sleep(0.02)

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stopping.set()
        self.join()


def resident_kib(proxy: LabProxy) -> int:
    return int(pathlib.Path(f"/proc/{proxy.pid}/statm").read_text().split()[1]) * PAGE_KIB


def descriptors(proxy: LabProxy) -> int:
    return len(list(pathlib.Path(f"/proc/{proxy.pid}/fd").iterdir()))


def settled(cluster: SoakedObjects, *files: int) -> list[str]:
    """Wait until some files are in effect; return what is wrong all the same."""
    deadline = time.monotonic() + SETTLE_SECONDS
    while (wrong := cluster.wrong(*files)) and time.monotonic() < deadline:
        time.sleep(0.2)
    return wrong


@pytest.mark.timeout(SECONDS + 600)
def test_thousands_of_changes(lab: Lab, manifests: ManifestFolder) -> None:
    chance = random.Random(1)
    for pod in lab.pods:
        lab.responder.listen(pod, 8080)
    lab.route_client_via(lab.nodes[0], "10.96.0.0/16")
    manifests.write_nodes(lab)
    cluster = SoakedObjects(lab, manifests, chance)
    cluster.write_all()
    proxy = lab.proxy(lab.nodes[0], manifests.path)
    samples, changes, began = [], 0, time.monotonic()
    with SteadyTraffic(lab) as traffic:
        while (lasted := time.monotonic() - began) < SECONDS:
            number = chance.randrange(len(cluster.files))
            cluster.change(number)
            changes += 1
            if changes % 20 == 0:
                assert settled(cluster, number) == []
                samples.append((lasted, resident_kib(proxy), descriptors(proxy)))
    # A Service that is gone does not answer at all, so a question may take its whole time.
    for first in range(0, len(cluster.files), FILES_AT_ONCE):
        assert settled(cluster, *range(first, min(first + FILES_AT_ONCE, len(cluster.files)))) == []
    early = [sample for sample in samples if sample[0] > SECONDS / 4][:3]
    print(f"{changes} files changed, {traffic.outcomes} requests, {samples[0]} .. {samples[-1]}")
    assert traffic.outcomes.keys() == {"answered"}
    assert max(count for _, _, count in samples[-3:]) <= max(count for _, _, count in early)
    assert samples[-1][1] <= max(size for _, size, _ in early) * GROWTH
    proxy.stop()
    proxy.start()
    assert proxy.wait_for(messages.SYNCED)["changes"] == 0
