"""ipvsproxy killed, ended and replaced at any moment while endpoints are replaced under load; draining goes on."""

from __future__ import annotations

import contextlib
import itertools
import os
import random
import re
import signal
import threading
import urllib.request
from collections.abc import Callable, Iterator

import pytest

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import DestinationAttributes, FrontendKey
from tests.conformance.forked import ForkedProxy
from tests.conformance.proxy import Zygote
from tests.lab import netns
from tests.lab.lab import Lab
from tests.lab.load import Load
from tests.lab.manifests import ManifestFolder
from tests.lab.probe import Conversation, ProbeQuestion
from tests.lab.rolling import CLUSTER_IPS, Deployment, ways
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

WEB = FrontendKey(parse_ip(CLUSTER_IPS[0]), Protocol.TCP, 80)
SIGNALS = (signal.SIGTERM, signal.SIGKILL)


@pytest.fixture
def deployment(spacious_lab: Lab, folder: ManifestFolder) -> Iterator[Deployment]:
    with Deployment(spacious_lab, lambda *objects: folder.write("rolling", *objects)) as deployment:
        deployment.publish()
        yield deployment


@pytest.fixture
def start(spacious_lab: Lab, folder: ManifestFolder, zygote: Zygote) -> Callable[..., ForkedProxy]:
    """Make a proxy for node1, not started yet; further flags can be given."""
    return lambda *extra: ForkedProxy(zygote, spacious_lab, spacious_lab.nodes[0], folder.path, *extra)


FULL_LIFE = 3


class Reaper(threading.Thread):
    """Ends a proxy and starts it again, at moments that a seed decides.

    Each third time it waits until the proxy has synced: where a start takes longer than most live, none would ever
    serve a change, and endpoints that the test replaces would stay in use.
    """

    def __init__(self, proxy: ForkedProxy, load: Load, seed: int) -> None:
        super().__init__(name="reaper", daemon=True)
        self.deaths = 0
        self._proxy, self._load, self._chance = proxy, load, random.Random(seed)
        self._over = threading.Event()

    def run(self) -> None:
        while not self._is_over():
            number = self._chance.choice(SIGNALS)
            self._load.mark(number.name)
            self._proxy.stop(number)
            self.deaths += 1
            self._over.wait(self._chance.uniform(0, 1))
            self._proxy.start()

    def _is_over(self) -> bool:
        """Let the proxy live for a while, and tell whether it stays."""
        if self.deaths % FULL_LIFE == FULL_LIFE - 1:
            self._proxy.wait_for(messages.SYNCED)
        return self._over.wait(self._chance.uniform(0, 5))

    def stop(self) -> None:
        self._over.set()
        self.join()


def seed() -> int:
    """The seed of this run; SEED=NUMBER repeats one."""
    chosen = int(os.environ.get("SEED") or random.SystemRandom().randrange(10**6))
    print(f"SEED={chosen}")
    return chosen


def roll_with_deaths(lab: Lab, deployment: Deployment, proxy: ForkedProxy, deaths: int) -> None:
    proxy.started()
    with Load(ways(lab)) as load:
        reaper = Reaper(proxy, load, seed())
        reaper.start()
        for number in itertools.count():
            load.mark(f"round {number}")
            deployment.replace_all(surge=bool(number % 2))
            if reaper.deaths >= deaths:
                break
        reaper.stop()
        proxy.wait_for(messages.SYNCED)
        deployment.wait_until_used()
    print(load.report())
    assert load.failures == [], load.report()
    assert load.finished


@pytest.mark.parametrize("data_path", ["ipvs", pytest.param("auto", marks=pytest.mark.slow)])
def test_no_request_is_lost_when_it_dies_at_random_moments(
    spacious_lab: Lab, deployment: Deployment, start: Callable[..., ForkedProxy], data_path: str
) -> None:
    roll_with_deaths(spacious_lab, deployment, start(f"--data-path={data_path}"), 8)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_request_is_lost_when_it_dies_often(
    spacious_lab: Lab, deployment: Deployment, start: Callable[..., ForkedProxy]
) -> None:
    roll_with_deaths(spacious_lab, deployment, start(), 60)


LONG = pytest.mark.slow


@pytest.mark.parametrize(
    ("overlap", "old_path", "new_path"),
    [
        (True, "ipvs", "ipvs"),
        (False, "ipvs", "ipvs"),
        (False, "auto", "ipvs"),
        pytest.param(False, "ipvs", "auto", marks=LONG),
        pytest.param(True, "auto", "auto", marks=LONG),
        pytest.param(True, "auto", "ipvs", marks=LONG),
    ],
)
def test_no_request_is_lost_in_an_upgrade(
    spacious_lab: Lab,
    deployment: Deployment,
    start: Callable[..., ForkedProxy],
    overlap: bool,
    old_path: str,
    new_path: str,
) -> None:
    """The new one starts before the old one is gone, or after; endpoints are replaced all the time."""
    old, new = start(f"--data-path={old_path}").started(), start(f"--data-path={new_path}")
    with Load(ways(spacious_lab)) as load:
        if overlap:
            new.start()
            deployment.replace_all()
        old.stop()
        if not overlap:
            new.start()
        deployment.replace_all()
        new.wait_for(messages.SYNCED)
        deployment.replace_all()
        deployment.wait_until_used()
    assert load.failures == [], load.report()


def weights(lab: Lab) -> dict[str, int]:
    """The weights of the ClusterIP's server, by address."""
    with _ipvs(lab) as ipvs:
        return {str(destination).rpartition(":")[0]: a.weight for destination, a in ipvs.destinations(WEB).items()}


@contextlib.contextmanager
def _ipvs(lab: Lab) -> Iterator[Ipvs]:
    with netns.inside(lab.nodes[0].netns):
        ipvs = Ipvs()
    yield ipvs
    ipvs.close()


def metric(lab: Lab, name: str) -> float:
    with netns.inside(lab.nodes[0].netns):
        text = urllib.request.urlopen("http://127.0.0.1:10249/metrics", timeout=20).read().decode()
    return float(re.search(rf"^{name}(?:{{.*}})? (\S+)$", text, re.MULTILINE)[1])


@contextlib.contextmanager
def talks(lab: Lab) -> Iterator[dict[str, Conversation]]:
    """One long connection from a pod with each endpoint, by the endpoint's name."""
    with contextlib.ExitStack() as stack:
        question = ProbeQuestion(lab.host("p12").netns, CLUSTER_IPS[0], 80)
        found = {}
        while len(found) < 3:
            talk = Conversation(question, timeout=20)
            stack.callback(talk.socket.close)
            found.setdefault(talk.ask().name, talk)
        yield found


def test_draining_outlives_restarts_and_ends_when_the_endpoint_returns(
    spacious_lab: Lab, deployment: Deployment, start: Callable[..., ForkedProxy]
) -> None:
    lab, proxy = spacious_lab, start().started()
    leaving = deployment.pods[0]
    with talks(lab) as held:
        leaving.terminating = True
        deployment.publish()
        eventually(lambda: weights(lab)[leaving.host.ipv4] == 0)
        assert metric(lab, "ipvsproxy_draining_destinations") >= 1
        for number in SIGNALS:
            proxy.stop(number)
            assert held[leaving.host.name].ask().name == leaving.host.name
            proxy.start()
            assert proxy.wait_for(messages.SYNCED)["changes"] == 0
            assert weights(lab)[leaving.host.ipv4] == 0
        leaving.terminating = False
        deployment.publish()
        eventually(lambda: set(weights(lab).values()) == {1})
        assert {name: talk.ask().name for name, talk in held.items()} == {name: name for name in held}
    eventually(lambda: metric(lab, "ipvsproxy_draining_destinations") == 0)


def test_an_endpoint_that_leaves_while_no_one_watches_drains_after_the_start(
    spacious_lab: Lab, deployment: Deployment, start: Callable[..., ForkedProxy]
) -> None:
    lab, proxy = spacious_lab, start().started()
    leaving = deployment.pods[0]
    with talks(lab) as held:
        proxy.stop(signal.SIGKILL)
        deployment.pods.remove(leaving)
        deployment.publish()
        proxy.start()
        proxy.wait_for(messages.SYNCED)
        assert weights(lab)[leaving.host.ipv4] == 0
        assert held[leaving.host.name].ask().name == leaving.host.name


def test_the_annotation_of_a_service_limits_draining(
    spacious_lab: Lab, deployment: Deployment, folder: ManifestFolder, start: Callable[..., ForkedProxy]
) -> None:
    lab = spacious_lab
    deployment.annotations = {"ipvsproxy.io/drain-timeout": "3s"}
    deployment.publish()
    start().started()
    leaving = deployment.pods[0]
    with talks(lab) as held:
        deployment.pods.remove(leaving)
        deployment.publish()
        eventually(lambda: leaving.host.ipv4 not in weights(lab))
        talk = held.pop(leaving.host.name)
        assert talk.ask().outcome == "refused"  # the first packet makes the kernel forget it
        assert {name: other.ask().name for name, other in held.items()} == {name: name for name in held}
    assert metric(lab, "ipvsproxy_drain_timeouts_total") == 1


def test_an_endpoint_ends_soon_after_its_last_connection(
    spacious_lab: Lab, deployment: Deployment, start: Callable[..., ForkedProxy]
) -> None:
    """A connection that was reset is forgotten by IPVS after ten seconds."""
    lab = spacious_lab
    start().started()
    leaving = deployment.pods[0]
    with Load({"pod -> ClusterIP": ways(lab)["pod -> ClusterIP"]}, talks=0) as load:
        eventually(lambda: leaving.host.name in load.endpoints)
        deployment.pods.remove(leaving)
        deployment.publish()
        eventually(lambda: not deployment.is_known(leaving), seconds=60)
    assert load.failures == [], load.report()


def test_a_weight_that_another_program_left_at_zero_is_repaired(
    spacious_lab: Lab, deployment: Deployment, start: Callable[..., ForkedProxy]
) -> None:
    lab = spacious_lab
    start("--ipvs-sync-period=1s").started()
    with talks(lab) as held, _ipvs(lab) as ipvs:
        destinations = tuple(ipvs.destinations(WEB))
        ipvs.apply([IpvsStep(Verb.SET_DEST, WEB, None, destinations, DestinationAttributes(0))])
        eventually(lambda: set(weights(lab).values()) == {1})
        assert {name: talk.ask().name for name, talk in held.items()} == {name: name for name in held}
