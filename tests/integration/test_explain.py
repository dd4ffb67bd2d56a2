"""`explain` in cases that no flow of the conformance run has, each compared with what real packets get.

Schedulers and weights that others have set, servers of others, endpoints in the node's own network, and routes
that prefer a source. The proxy verifies so rarely that what is changed here stays.
"""

from __future__ import annotations

import collections
import contextlib
import errno
import pathlib
from collections.abc import Iterator, Sequence

import pytest

from ipvsproxy.base.address import format_ip, parse_ip
from ipvsproxy.inspect.explanation import Explanation, PacketOutcome
from ipvsproxy.inspect.walk import explain, packet
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.plan.diff import IpvsStep, Verb
from ipvsproxy.plan.state import PERSISTENT, Destination, DestinationAttributes, FrontendKey, ServerAttributes
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabHost
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.probe import ProbeQuestion, Result, probe_many

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

TCP, TIMES = 6, 12
WEB, HOSTED, HOSTED6 = "10.96.5.1", "10.96.5.2", "fd00:10:96::5:2"
WEB_KEY = FrontendKey(parse_ip(WEB), TCP, 80)
P11, P21 = Destination(parse_ip("10.244.1.10"), 8080), Destination(parse_ip("10.244.2.10"), 8080)


@pytest.fixture(scope="module")
def lab(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Lab]:
    folder, web = ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("explain"))), [port(80, 8080)]
    node = session_lab.nodes[0]
    pods = [session_lab.host(name) for name in ("p11", "p21")]
    folder.write_nodes(session_lab)
    folder.write("web", service("web", web, [WEB]), endpoint_slice("web", web, _ends(session_lab, pods)))
    nodes = [
        endpoint_slice("hosted", web, _ends(session_lab, session_lab.nodes, family), family=family)
        for family in (4, 6)
    ]
    folder.write("hosted", service("hosted", web, [HOSTED, HOSTED6]), *nodes)
    for host in (*pods, *session_lab.nodes):
        session_lab.responder.listen(host, 8080)
    others = ["--ipvs-sync-period=1h", "--ipvs-exclude-cidrs=10.200.0.0/16"]
    session_lab.proxy(node, folder.path, [*DEFAULT_PROXY_ARGS, *others])
    yield session_lab
    session_lab.take_back()


def _ends(lab: Lab, hosts: Sequence[LabHost], family: int = 4) -> list[dict[str, object]]:
    return [endpoint(lab, host, family=family) for host in hosts]


def explained(lab: Lab, asker: LabHost, address: str, number: int = 80) -> Explanation:
    """Say what happens to a packet of this host on node1."""
    to = FrontendKey(parse_ip(address), TCP, number)
    source = None if asker in lab.nodes else parse_ip(asker.address(6 if ":" in address else 4))
    with netns.inside(lab.nodes[0].netns), KernelReader() as view:
        return explain(packet(to, view, source), view)


def seen(lab: Lab, asker: LabHost, address: str, number: int = 80) -> list[Result]:
    return probe_many([ProbeQuestion(asker.netns, address, number)] * TIMES)


def names(lab: Lab, said: Explanation) -> dict[str, float]:
    hosts = {host.address(family): host.name for host in (*lab.nodes, *lab.pods) for family in (4, 6)}
    return {hosts[format_ip(target.real.destination.address)]: target.share for target in said.targets}


def steps(lab: Lab, *wanted: IpvsStep) -> None:
    with netns.inside(lab.nodes[0].netns), contextlib.closing(Ipvs()) as ipvs:
        refused = ipvs.apply(wanted)
    if any(one.errno == errno.ENOENT for one in refused):
        pytest.skip("this kernel does not have the scheduler")
    assert refused == []


@contextlib.contextmanager
def scheduled(lab: Lab, scheduler: str, *weights: int) -> Iterator[None]:
    """The Service web with another scheduler, and these weights of p11 and p21."""
    set_weights = [
        IpvsStep(Verb.SET_DEST, WEB_KEY, None, (to,), DestinationAttributes(weight))
        for to, weight in zip((P11, P21), weights, strict=True)
    ]
    steps(lab, IpvsStep(Verb.SET_SERVICE, WEB_KEY, ServerAttributes(scheduler, 0, 0)))
    steps(lab, *set_weights)
    try:
        yield
    finally:
        back = [IpvsStep(Verb.SET_DEST, WEB_KEY, None, (to,)) for to in (P11, P21)]
        steps(lab, IpvsStep(Verb.SET_SERVICE, WEB_KEY, ServerAttributes("rr", 0, 0)), *back)


@pytest.mark.parametrize("scheduler", ["rr", "wrr", "fo", "ovf", "lc", "wlc"])
def test_shares_are_those_of_packets(lab: Lab, scheduler: str) -> None:
    asker = lab.host("p12")
    # With ovf a weight is also how many connections an endpoint takes.
    with scheduled(lab, scheduler, 3 * TIMES, TIMES):
        said = explained(lab, asker, WEB)
        found = collections.Counter(result.name for result in seen(lab, asker, WEB))
    assert {name: count / TIMES for name, count in found.items()} == pytest.approx(names(lab, said), abs=0.09)


@pytest.mark.parametrize("scheduler", ["sh", "mh", "dh"])
def test_one_client_of_a_hashed_service_finds_one_of_the_endpoints(lab: Lab, scheduler: str) -> None:
    asker = lab.host("p12")
    with scheduled(lab, scheduler, 1, 1):
        said = explained(lab, asker, WEB)
        found = {result.name for result in seen(lab, asker, WEB)}
    assert names(lab, said) == {"p11": 0.5, "p21": 0.5}
    assert len(found) == 1
    assert found < names(lab, said).keys()


def test_no_endpoint_takes_new_connections(lab: Lab) -> None:
    asker = lab.host("p12")
    with scheduled(lab, "rr", 0, 0):
        said = explained(lab, asker, WEB)
        found = {result.outcome for result in seen(lab, asker, WEB)}
    assert (said.outcome, found) == (PacketOutcome.REFUSED, {"refused"})


@contextlib.contextmanager
def commands(lab: Lab, *lines: str) -> Iterator[None]:
    """Run `ip` with these words on node1, and the opposite afterwards."""
    for line in lines:
        lab.run(lab.nodes[0], ["ip", *line.split()])
    try:
        yield
    finally:
        for line in reversed(lines):
            lab.run(lab.nodes[0], ["ip", *line.replace(" add ", " del ").split()])


EXTRA = ("address add 192.0.2.50/24 dev eth0", "address add 10.77.0.1/32 dev lo")
PREFERRED = {
    "as it is": (),
    "a second address of the link": (*EXTRA, "route add 10.244.2.10/32 via 192.0.2.2 src 192.0.2.50"),
    "an address of another link": (*EXTRA, "route add 10.244.2.10/32 via 192.0.2.2 src 10.77.0.1"),
}


@pytest.mark.parametrize("name", PREFERRED)
@pytest.mark.parametrize("asked", [WEB, HOSTED, HOSTED6])
def test_the_source_that_endpoints_see(lab: Lab, asked: str, name: str) -> None:
    """Masquerading does not ask which source a route prefers, for packets that never leave the node either."""
    for asker in (lab.client, lab.nodes[0], lab.host("p11")):
        with commands(lab, *PREFERRED[name]):
            said = explained(lab, asker, asked)
            found = {(result.name, result.seen_source) for result in seen(lab, asker, asked)}
        hosts = {host.address(f): host.name for host in (*lab.nodes, *lab.pods) for f in (4, 6)}
        wanted = {
            (hosts[format_ip(t.real.destination.address)], format_ip(t.source) if t.source else None)
            for t in said.targets
        }
        assert found == wanted, asker.name


def test_a_source_that_an_ipv6_route_prefers_leaves_the_answer_open(lab: Lab) -> None:
    route = "route add 2001:db8:2::2/128 dev eth0 src fd00:10:244:1::1"
    with commands(lab, route):
        said = explained(lab, lab.client, HOSTED6)
        found = {result.name: result.seen_source for result in seen(lab, lab.client, HOSTED6)}
    assert found["node2"] == "2001:db8:2::1"
    assert [t.source for t in said.targets if t.masquerade] == [None]


def test_a_server_of_others_for_all_ports(lab: Lab) -> None:
    every = FrontendKey(parse_ip("10.200.0.1"), TCP, 0)
    with commands(lab, "address add 10.200.0.1/32 dev lo"):
        steps(
            lab,
            IpvsStep(
                Verb.NEW_SERVICE, every, ServerAttributes("rr", PERSISTENT, 60), (Destination(P11.address, 0),)
            ),
        )
        said = explained(lab, lab.client, "10.200.0.1", 8080)
        found = {result.name for result in seen(lab, lab.client, "10.200.0.1", 8080)}
        steps(lab, IpvsStep(Verb.DEL_SERVICE, every))
    assert (names(lab, said), found) == ({"p11": 1.0}, {"p11"})
    assert [str(target.real.destination) for target in said.targets] == ["10.244.1.10:8080"]


def test_no_way_to_an_endpoint(lab: Lab) -> None:
    with commands(lab, "route add prohibit 10.244.2.10/32"):
        said = explained(lab, lab.client, WEB)
        found = {result.name or result.outcome for result in seen(lab, lab.client, WEB)}
    assert found == {"p11", "unreachable"}
    assert [step.what for step in said.steps if step.place == "routing"] == [
        "no route leads to the endpoint 10.244.2.10: what goes there is lost"
    ]
