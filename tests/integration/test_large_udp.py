"""UDP datagrams that are longer than the MTU of the endpoint's link, from everywhere to everywhere."""

from __future__ import annotations

import errno
import os
import pathlib
from collections.abc import Iterator

import pytest
import yaml

from tests.lab import netns
from tests.lab.datagrams import SIZES, unanswered
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab
from tests.lab.manifests import ManifestFolder, dual_slices, port
from tests.lab.published import balancer, cluster_ip, published

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

NUMBER, NODE_PORT, TARGET = 91, 31091, 8081
FITS_IN_IPV6 = 1452
CASE = pathlib.Path(__file__).parent.parent / "field/cases/08-large-udp-from-node.yaml"
CASE_ADDRESS, CASE_TARGET = ("10.96.9.8", 6831), 5353
"""The Service of that file; its endpoint has the address of p21."""


SHORT_PATH = pytest.mark.parametrize(
    "lab", [("address", "auto"), ("route", "auto")], indirect=True, ids=["address-auto", "route-auto"]
)


@pytest.fixture(scope="module", params=[("address", "ipvs"), ("route", "ipvs")], ids=["address", "route"])
def lab(
    session_lab: Lab, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Iterator[Lab]:
    lab, folder = session_lab, ManifestFolder(pathlib.Path(tmp_path_factory.mktemp("large")))
    folder.write_nodes(lab)
    for target in (TARGET, CASE_TARGET):
        lab.responder.listen(lab.host("p21"), target, "udp")
    folder.write("case", *yaml.safe_load_all(CASE.read_text()))
    ports = [port(81, TARGET, "UDP", "u", NODE_PORT)]
    folder.write("large", published("large", NUMBER, ports), *dual_slices(lab, "large", ports, [lab.host("p21")]))
    mode, data_path = request.param
    lab.proxy(lab.nodes[0], folder.path, [*DEFAULT_PROXY_ARGS, f"--vip-mode={mode}", f"--data-path={data_path}"])
    yield lab
    lab.take_back()


def ways(lab: Lab, family: int) -> dict[str, tuple[str, int]]:
    return {
        "ClusterIP": (cluster_ip(NUMBER, family), 81),
        "LoadBalancer": (balancer(NUMBER, family), 81),
        "NodePort": (lab.nodes[0].address(family), NODE_PORT),
        **({"case": CASE_ADDRESS} if family == 4 else {}),
    }


def lost(lab: Lab, asker: str, family: int, *, connected: bool) -> list[str]:
    """Send datagrams of each size by each way, and name those not answered."""
    where = lab.host(asker).netns
    return [
        f"{name} {what}"
        for name, to in ways(lab, family).items()
        for what in unanswered(where, to, connected=connected)
    ]


@pytest.mark.parametrize("connected", [True, False])
def test_datagrams_of_this_node_above_the_mtu_arrive(lab: Lab, connected: bool) -> None:
    assert lost(lab, "node1", 4, connected=connected) == []


def test_a_process_of_this_node_learns_of_ipv6_datagrams_above_the_mtu(lab: Lab) -> None:
    """They are lost (docs/internals-packets.md, limits of IPVS), but not without a word."""
    too_long = {f"{name} {size}" for name in ways(lab, 6) for size in SIZES if size > FITS_IN_IPV6}
    told = lost(lab, "node1", 6, connected=True)
    assert {line.partition(":")[0] for line in told} == too_long
    assert all(os.strerror(errno.EMSGSIZE) in line for line in told)


@pytest.mark.parametrize("family", [4, 6])
def test_datagrams_of_outside_clients_above_the_mtu_arrive(lab: Lab, family: int) -> None:
    assert lost(lab, "client", family, connected=True) == []


def test_datagrams_of_pods_above_the_mtu_arrive(lab: Lab) -> None:
    assert lost(lab, "p12", 4, connected=True) == []


def test_ipv6_datagrams_of_pods_arrive_where_the_bridge_does_not_reassemble_them(lab: Lab) -> None:
    """The limit that docs/internals-packets.md names; a kernel without it should be noticed."""
    setting = "net/bridge/bridge-nf-call-ip6tables"
    node = lab.nodes[0].netns
    too_long = {line.partition(":")[0] for line in lost(lab, "p12", 6, connected=True)}
    assert too_long == {f"{name} {size}" for name in ways(lab, 6) for size in SIZES if size > FITS_IN_IPV6}
    netns.set_sysctls(node, {setting: 0})
    try:
        assert lost(lab, "p12", 6, connected=True) == []
    finally:
        netns.set_sysctls(node, {setting: 1})


@SHORT_PATH
@pytest.mark.parametrize("family", [4, 6])
@pytest.mark.parametrize("asker", ["node1", "client", "p12"])
def test_on_the_short_path_all_datagrams_above_the_mtu_arrive(lab: Lab, asker: str, family: int) -> None:
    """IPv6, too: no IPVS has to know what a packet was put together from."""
    assert lost(lab, asker, family, connected=True) == []
