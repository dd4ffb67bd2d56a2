"""Pings of VIPs: to everybody, to nobody, to those in source ranges, while there is an endpoint."""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

import pytest

from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port
from tests.lab.ping import is_answered
from tests.lab.published import balancer, cluster_ip, published
from tests.lab.waiting import eventually

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

NUMBER = 91
PORTS = [port(80, 8080, "TCP", "web")]
CLIENT = ["192.0.2.100/32", "2001:db8:2::100/128"]


class PingedService:
    def __init__(self, lab: Lab, folder: ManifestFolder) -> None:
        self.lab, self.folder = lab, folder

    def put(self, ping: str = "", pods: Sequence[str] = ("p11",), **spec: object) -> None:
        made = published("pinged", NUMBER, PORTS, **spec)
        if ping:
            made["metadata"]["annotations"] = {"ipvsproxy.io/ping": ping}
        self.folder.write("pinged", made, *dual_slices(self.lab, "pinged", PORTS, map(self.lab.host, pods)))

    def answered(self, family: int) -> dict[str, bool]:
        """Who gets an answer from the load balancer's address: the outside client, a pod, the node."""
        address = balancer(NUMBER, family)
        hosts = {"client": "client", "pod": "p12", "node": "node1"}
        return {who: is_answered(self.lab.host(name).netns, address) for who, name in hosts.items()}


ALL, NOBODY = dict.fromkeys(("client", "pod", "node"), True), dict.fromkeys(("client", "pod", "node"), False)


@pytest.fixture(scope="module")
def pinged(session_lab: Lab, tmp_path_factory: pytest.TempPathFactory) -> Iterator[PingedService]:
    lab, folder = session_lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("pinged")))
    folder.write_nodes(lab)
    proxy = lab.proxy(lab.nodes[0], folder.path, DEFAULT_PROXY_ARGS)
    yield PingedService(lab, folder)
    proxy.kill()
    lab.clean_nodes()


@pytest.mark.parametrize("family", [4, 6])
def test_every_client_gets_an_answer_where_a_service_has_no_annotation(pinged: PingedService, family: int) -> None:
    pinged.put(loadBalancerSourceRanges=CLIENT)
    eventually(lambda: pinged.answered(family) == ALL)


@pytest.mark.parametrize("family", [4, 6])
def test_no_client_gets_an_answer(pinged: PingedService, family: int) -> None:
    pinged.put()
    eventually(lambda: pinged.answered(family) == ALL)
    pinged.put("off")
    eventually(lambda: pinged.answered(family) == NOBODY)
    assert not is_answered(pinged.lab.host("p12").netns, cluster_ip(NUMBER, family))
    assert is_answered(pinged.lab.host("client").netns, pinged.lab.nodes[0].address(family))
    pinged.put()
    eventually(lambda: pinged.answered(family) == ALL)


@pytest.mark.parametrize("family", [4, 6])
def test_an_answer_as_long_as_there_is_an_endpoint(pinged: PingedService, family: int) -> None:
    pinged.put("when-ready")
    eventually(lambda: pinged.answered(family) == ALL)
    pinged.put("when-ready", pods=())
    eventually(lambda: pinged.answered(family) == NOBODY)
    pinged.put("when-ready", pods=("p21",))
    eventually(lambda: pinged.answered(family) == ALL)
    # No endpoint on this node, and the policy wants one.
    pinged.put("when-ready", pods=("p21",), externalTrafficPolicy="Local")
    eventually(lambda: pinged.answered(family) == NOBODY)


@pytest.mark.parametrize("family", [4, 6])
def test_source_ranges_count_for_pings(pinged: PingedService, family: int) -> None:
    pinged.put("always", loadBalancerSourceRanges=CLIENT)
    eventually(lambda: pinged.answered(family) == {"client": True, "pod": False, "node": False})
    pinged.put("always", loadBalancerSourceRanges=["10.244.0.0/16", "fd00:10:244::/48"])
    eventually(lambda: pinged.answered(family) == {"client": False, "pod": True, "node": False})
    pinged.put("always")
    eventually(lambda: pinged.answered(family) == ALL)
