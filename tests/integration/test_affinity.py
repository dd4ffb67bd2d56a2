"""Session affinity as IPVS does it: it holds, it ends, follows its Service, and leaves an endpoint that goes.

The proxy of this module has IPVS forget UDP connections after a second, so that ends can be waited for. What the
kernel remembers is read from /proc/net/ip_vs_conn: a persistence template is an entry with client port 0.
"""

from __future__ import annotations

import contextlib
import pathlib
import time
from collections.abc import Iterator
from typing import NamedTuple

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.kernel.conntrack import Conntrack
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.plan.stale import GONE, Sweep
from ipvsproxy.plan.state import FrontendKey
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port
from tests.lab.probe import Conversation, ProbeQuestion, probe_many, spread
from tests.lab.published import balancer, published
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

TARGETS = {"tcp": 8080, "udp": 8081}
PORT_OF = {"tcp": 80, "udp": 81}


class StickyServices:
    """Services with a TCP and a UDP port, each test with a number of its own."""

    def __init__(self, lab: Lab, folder: ManifestFolder) -> None:
        self.lab, self.folder = lab, folder

    def put(self, number: int, pods: str, seconds: int = 0) -> None:
        """Write Service `sticky<number>`; 0 seconds means no affinity."""
        ports = [port(PORT_OF[proto], target, proto.upper(), proto) for proto, target in TARGETS.items()]
        spec: dict[str, object] = {}
        if seconds:
            config = {"clientIP": {"timeoutSeconds": seconds}}
            spec = {"sessionAffinity": "ClientIP", "sessionAffinityConfig": config}
        name = f"sticky{number}"
        slices = dual_slices(self.lab, name, ports, map(self.lab.host, pods.split()))
        self.folder.write(name, published(name, number, ports, **spec), *slices)

    def question(self, number: int, family: int = 4, proto: str = "tcp", asker: str = "client") -> ProbeQuestion:
        return ProbeQuestion(self.lab.host(asker).netns, balancer(number, family), PORT_OF[proto], proto)

    def templates(self, number: int) -> list[ConnectionLine]:
        return [c for c in self.connections(number) if c.client_port == 0]

    def connections(self, number: int) -> list[ConnectionLine]:
        """What IPVS on node1 remembers about the IPv4 load balancer address of a Service."""
        with netns.inside(self.lab.nodes[0].netns):
            lines = pathlib.Path("/proc/thread-self/net/ip_vs_conn").read_text().splitlines()[1:]
        found = []
        for line in lines:
            _, _, client_port, vip, _, _, _, state, seconds, *_ = line.split()
            if vip == parse_ip(balancer(number, 4)).hex().upper():
                found.append(ConnectionLine(int(client_port, 16), state, int(seconds)))
        return found


class ConnectionLine(NamedTuple):
    """One line of ip_vs_conn: what is left until it is forgotten, in seconds."""

    client_port: int
    state: str
    seconds: int


@pytest.fixture(scope="module")
def services(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StickyServices]:
    lab = session_lab
    services = StickyServices(lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("affinity"))))
    services.folder.write_nodes(lab)
    for pod in lab.pods:
        for proto, target in TARGETS.items():
            lab.responder.listen(pod, target, proto)
    lab.proxy(lab.nodes[0], services.folder.path, [*DEFAULT_PROXY_ARGS, "--ipvs-udp-timeout=1s"])
    yield services
    lab.take_back()


ALL = "p11 p12 p21 p22"


@pytest.mark.parametrize("family", [4, 6])
def test_affinity_can_be_switched_on_and_off_under_traffic(services: StickyServices, family: int) -> None:
    number = 90 + family
    asked = [services.question(number, family, proto) for proto in ("tcp", "udp")]
    services.put(number, ALL)
    eventually(lambda: all(len(spread(question, 8)) == 4 for question in asked))
    with Conversation(asked[0]) as talk:
        served_by = talk.ask().name
        services.put(number, ALL, 600)
        eventually(lambda: all(len(spread(question, 8)) == 1 for question in asked))
        services.put(number, ALL)
        eventually(lambda: all(len(spread(question, 8)) == 4 for question in asked))
        assert talk.ask().name == served_by


def test_affinity_ends_when_the_client_has_been_away(services: StickyServices) -> None:
    services.put(92, ALL, 2)
    question = services.question(92, proto="udp")
    eventually(lambda: set(spread(question, 6)) <= set(ALL.split()))
    seen = set()
    for _ in range(3):
        (name,) = spread(question, 6)
        seen.add(name)
        deadline = time.monotonic() + 30
        while services.templates(92):
            assert time.monotonic() < deadline
            time.sleep(0.2)
    assert len(seen) > 1


def test_tcp_holds_a_client_for_its_time_wait_however_short_the_timeout(services: StickyServices) -> None:
    """As documented in docs/operations.md: a template lasts as long as any connection that came from it."""
    services.put(93, ALL, 2)
    question = services.question(93)
    eventually(lambda: len(spread(question, 6)) == 1)
    (name,) = spread(question, 6)
    for _ in range(3):
        time.sleep(2.5)
        assert max(c.seconds for c in services.connections(93) if c.state == "TIME_WAIT") > 60
        assert services.templates(93)
        assert set(spread(question, 2)) == {name}


def test_clients_leave_an_endpoint_that_goes(services: StickyServices) -> None:
    services.put(94, ALL, 600)
    asked = [services.question(94, family, proto) for family in (4, 6) for proto in ("tcp", "udp")]
    eventually(lambda: all(len(spread(question, 6)) == 1 for question in asked))
    before = [result.name for result in probe_many(asked)]
    with Conversation(asked[0]) as talk:
        assert talk.ask().name == before[0]
        for gone in sorted(set(before)):
            rest = " ".join(pod for pod in ALL.split() if pod != gone)
            services.put(94, rest, 600)
            eventually(lambda: gone not in {result.name for result in probe_many(asked)})  # noqa: B023
            assert all(len(spread(question, 6)) == 1 for question in asked)
            assert talk.ask().name == before[0]  # it drains
            services.put(94, ALL, 600)


# --- Idle timeouts


def test_an_idle_tcp_connection_outlives_the_first_keepalive(services: StickyServices) -> None:
    services.put(96, "p11")
    question = services.question(96)
    eventually(lambda: set(spread(question, 2)) == {"p11"})
    with Conversation(question) as talk:
        assert talk.ask().name == "p11"
        (remembered,) = [c.seconds for c in services.connections(96) if c.state == "ESTABLISHED"]
        assert 7200 < remembered <= 7800
        established = netns.get_sysctl(
            services.lab.nodes[0].netns, "net/netfilter/nf_conntrack_tcp_timeout_established"
        )
        assert int(established) > remembered


def test_what_ipvs_forgets_conntrack_forgets_too_and_the_client_gets_an_error(services: StickyServices) -> None:
    services.put(97, "p21")
    question, pod = services.question(97, asker="p12"), services.lab.host("p12")
    eventually(lambda: set(spread(services.question(97), 2)) == {"p21"})
    with netns.inside(services.lab.nodes[0].netns):
        ipvs, conntrack = Ipvs(), Conntrack()
    was = ipvs.timeouts()
    sweep = Sweep(4, 6, {FrontendKey(parse_ip(question.address), 6, question.port): GONE})

    def tracked() -> bool:
        return parse_ip(pod.ipv4) in {entry.source for entry in conntrack.entries(sweep)}

    with contextlib.closing(ipvs), contextlib.closing(conntrack), Conversation(question) as talk:
        assert talk.ask().name == "p21"
        assert tracked()
        ipvs.set_timeouts(2, 0, 0)
        assert talk.ask().name == "p21"  # and counts from this packet on
        deadline = time.monotonic() + 60
        while any(c.state == "ESTABLISHED" for c in services.connections(97)):
            assert time.monotonic() < deadline
            time.sleep(0.2)
        assert not tracked()
        assert talk.ask().outcome == "refused"
        ipvs.set_timeouts(*was)
