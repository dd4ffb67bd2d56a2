"""Packets that another program keeps from conntrack (notrack): no nat chain sees them, and nothing opens."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator

import pytest

from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port, service
from tests.lab.probe import probe
from tests.lab.published import cluster_ip
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

NUMBER = 96
PORTS = [port(80, 8080)]
BALANCERS = {4: "203.0.113.96", 6: "2001:db8:113::96"}
NOBODY = ["198.18.0.0/32", "2001:db8:ffff::/128"]
NOTRACK = """table inet elsewhere {
    chain prerouting { type filter hook prerouting priority raw; tcp dport 80 notrack; }
    chain output { type filter hook output priority raw; tcp dport 80 notrack; }
}"""


@pytest.fixture(params=["ipvs", "auto"])
def untracked(session_lab: Lab, tmp_path: pathlib.Path, request: pytest.FixtureRequest) -> Iterator[Lab]:
    """A Service that nobody may reach at its load balancer's address, and no packet to it in conntrack."""
    lab, folder, node = session_lab, ManifestFolder(tmp_path), session_lab.nodes[0]
    folder.write_nodes(lab)
    lab.responder.listen(lab.host("p11"), 8080)
    ips = [cluster_ip(NUMBER, family) for family in (4, 6)]
    more = {"type_": "LoadBalancer", "ingress": BALANCERS.values(), "loadBalancerSourceRanges": NOBODY}
    folder.write("web", service("web", PORTS, ips, **more), *dual_slices(lab, "web", PORTS, [lab.host("p11")]))
    proxy = lab.proxy(node, folder.path, [*DEFAULT_PROXY_ARGS, f"--data-path={request.param}"])
    for family in (4, 6):
        eventually(lambda family=family: probe(lab.client.netns, cluster_ip(NUMBER, family), 80).name == "p11")
    lab.run(node, ["nft", "-f", "-"], NOTRACK)
    yield lab
    lab.run(node, ["nft", "delete table inet elsewhere"])
    proxy.kill()
    lab.take_back()


def test_source_ranges_and_the_host_stay_closed(untracked: Lab, request: pytest.FixtureRequest) -> None:
    lab, node = untracked, untracked.nodes[0]
    listener = lab.responder.listen(node, 80)
    try:
        for family in (4, 6):
            for asker in (lab.client, lab.host("p12"), node):
                assert probe(asker.netns, BALANCERS[family], 80, timeout=1.5).name == "", (asker.name, family)
            # IPVS needs no conntrack. On the short path nobody can be served, and the host must not answer.
            expected = "p11" if "ipvs" in request.node.name else ""
            assert probe(lab.client.netns, cluster_ip(NUMBER, family), 80, timeout=1.5).name == expected
    finally:
        listener.stop()
