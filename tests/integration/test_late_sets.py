"""The moment in which packets do not find what has been loaded into sets of intervals with several fields.

What these decide is then decided by rules in their place (`ipvsproxy.kernel.late_sets`). Here the moment is made
to last: the rules are there, and the sets are empty.
"""

from __future__ import annotations

import contextlib
import pathlib
from collections.abc import Iterator

import pytest

from ipvsproxy.kernel.elements import ElementReader
from ipvsproxy.kernel.late_sets import LATE_SETS, RulesInPlace, add_rules, rules_in_place, withdraw_rules
from ipvsproxy.kernel.tables import TABLE
from nft import Libnftables, Transaction
from tests.lab import netns
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port
from tests.lab.ping import is_answered
from tests.lab.probe import ProbeQuestion, probe_many
from tests.lab.published import balancer, published
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

PORTS_NUMBER, SOURCES_NUMBER = 93, 94
PORTS = [port(80, 8080, "TCP", "web")]
IN_RANGE, OUTSIDE = (30000, 30010), 30011
PROTOCOLS = ("tcp", "udp")
ASKERS = ("client", "p12", "node1")
CLIENT = ["192.0.2.100/32", "2001:db8:2::100/128"]
Outcomes = dict[tuple[str, ...], tuple[str, ...]]


class NodeWithLateSets:
    """A node that serves ranges of ports from another node's pod, and one Service to one client only."""

    def __init__(self, lab: Lab, folder: ManifestFolder) -> None:
        self.lab, self.node = lab, lab.nodes[0]
        folder.write_nodes(lab)
        pod = lab.host("p21")
        lab.responder.listen(pod, 8080)
        for number in (*IN_RANGE, OUTSIDE):
            for proto in PROTOCOLS:
                lab.responder.listen(pod, number, proto)
        ranged = published("ports", PORTS_NUMBER, PORTS)
        ranged["metadata"]["annotations"] = {"ipvsproxy.io/port-range": "30000-30010,30000-30010/udp"}
        folder.write("ports", ranged, *dual_slices(lab, "ports", PORTS, [pod]))
        sources = published("sources", SOURCES_NUMBER, PORTS, loadBalancerSourceRanges=CLIENT)
        sources["metadata"]["annotations"] = {"ipvsproxy.io/ping": "always"}
        folder.write("sources", sources, *dual_slices(lab, "sources", PORTS, [pod]))
        self.proxy = lab.proxy(self.node, folder.path, DEFAULT_PROXY_ARGS)

    def outcomes(self, family: int) -> Outcomes:
        """What becomes of connections, and the sources that the pod sees; and of pings."""
        ranged, sources = balancer(PORTS_NUMBER, family), balancer(SOURCES_NUMBER, family)
        asked = [(ranged, number, proto) for number in (*IN_RANGE, OUTSIDE) for proto in PROTOCOLS]
        questions = {
            (asker, address, f"{number}/{proto}"): ProbeQuestion(
                self.lab.host(asker).netns, address, number, proto
            )
            for asker in ASKERS
            for address, number, proto in (*asked, (sources, 80, "tcp"))
        }
        results = zip(questions, probe_many(questions.values(), 2), strict=True)
        found: Outcomes = {about: (result.outcome, result.seen_source) for about, result in results}
        pings = {asker: is_answered(self.lab.host(asker).netns, sources) for asker in ASKERS}
        return found | {(asker, sources, "ping"): (str(answered),) for asker, answered in pings.items()}

    def keep_rules_only(self) -> RulesInPlace:
        """Have rules in place of all elements of the sets; return them."""
        with netns.inside(self.node.netns):
            with contextlib.closing(ElementReader(TABLE.name)) as reader:
                rules = rules_in_place(element for kind in LATE_SETS for element in reader.all(kind).items())
            transaction = Transaction(TABLE)
            add_rules(transaction, rules)
            transaction.flush_sets(kind.name for kind in LATE_SETS if not kind.value)
            transaction.flush_maps(kind.name for kind in LATE_SETS if kind.value)
            Libnftables().run(transaction)
        return rules

    def withdraw(self, rules: RulesInPlace) -> None:
        with netns.inside(self.node.netns):
            transaction = Transaction(TABLE)
            withdraw_rules(transaction, rules)
            Libnftables().run(transaction)


@pytest.fixture(scope="module")
def late(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[NodeWithLateSets]:
    made = NodeWithLateSets(session_lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("late"))))
    yield made
    made.proxy.kill()
    session_lab.clean_nodes()
    session_lab.responder.clear()


def is_served(late: NodeWithLateSets, outcomes: Outcomes, family: int) -> bool:
    """Whether all are let in at the ranges of ports, and the client alone at the Service with source ranges."""
    ranged, sources = balancer(PORTS_NUMBER, family), balancer(SOURCES_NUMBER, family)
    answered = {about for about, outcome in outcomes.items() if outcome[0] in ("answered", "True")}
    inside = {
        (asker, ranged, f"{number}/{proto}") for asker in ASKERS for number in IN_RANGE for proto in PROTOCOLS
    }
    return answered == inside | {("client", sources, "80/tcp"), ("client", sources, "ping")}


@pytest.mark.parametrize("family", [4, 6])
def test_rules_do_what_elements_do(late: NodeWithLateSets, family: int) -> None:
    eventually(lambda: is_served(late, late.outcomes(family), family))
    served = late.outcomes(family)
    # The pod is on another node: connections from outside come to it from an address of this node.
    assert served["client", balancer(PORTS_NUMBER, family), "30000/udp"][1] != late.lab.client.address(family)
    late.proxy.kill()
    try:
        rules = late.keep_rules_only()
        assert late.outcomes(family) == served
        late.withdraw(rules)
        assert {outcome[0] for outcome in late.outcomes(family).values()} == {"refused", "timeout", "False"}
    finally:
        late.proxy.start()
