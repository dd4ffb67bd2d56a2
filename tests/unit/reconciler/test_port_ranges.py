"""Ranges of ports that are served keep others from these ports; those that are not keep none from them."""

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, Removed
from ipvsproxy.plan.model import Namespace, Protocol
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, key, service, slice_of
from tests.support.memory_kernel import MemoryNode
from tests.support.memory_proxy import MemoryProxy

LABEL = "ipvsproxy.io/tenant"
RANGED, ASKED = key("10.96.0.10:0/TCP"), key("10.96.0.10:30005/TCP")
RANGES = ((Protocol.TCP, 30000, 30010),)
ASKS = service("asks", ["10.96.0.11"], [(30005, 0, "TCP", "web")], external_ips=["10.96.0.10"])
SLICES = {f"default/{name}": slice_of(name, "10.244.2.1") for name in ("web", "asks")}


@pytest.mark.parametrize(
    ("tenant", "shared_with", "is_served"), [("", (), True), ("blue", (), False), ("blue", ("*",), True)]
)
def test_ranges_are_served_where_everybody_may_connect(tenant, shared_with, is_served):
    node = MemoryNode([parse_ip("192.0.2.1")])
    made = config(cluster_cidrs=("10.244.0.0/16",), tenant_label=LABEL)
    loop = make_loop(made, Inbox(), node.kernel(), lambda: 1000.0)
    lists = {kind: {} for kind in Kind}
    lists[Kind.NAMESPACE]["default"] = Namespace("default", {LABEL: tenant} if tenant else {})
    ranged = service(port_ranges=RANGES, share_with=shared_with)
    lists[Kind.SERVICE] = {found.key: found for found in (ranged, ASKS)}
    lists[Kind.ENDPOINT_SLICE] = SLICES
    loop.reconcile([Listed(kind, found) for kind, found in lists.items()])
    assert (RANGED in node.ipvs.table) is is_served
    assert ("10.96.0.10 . tcp . 30000-30010" in node.nft.sets.get("port_ranges4", {})) is is_served
    assert (ASKED in node.ipvs.table) is not is_served
    assert key("10.96.0.10:80/TCP") in node.ipvs.table


def test_a_port_is_anothers_as_long_as_the_range_is_served():
    here = MemoryProxy([service(port_ranges=RANGES), ASKS], ["10.244.2.1"])
    here.turn(Changed(Kind.ENDPOINT_SLICE, "default/asks", SLICES["default/asks"]))
    for settings, is_served in (
        ({"external_local": True, "internal_local": True}, False),
        ({}, True),
        ({"external_local": True, "internal_local": True}, False),
        ({"affinity_seconds": 300}, True),
    ):
        here.change(service(port_ranges=RANGES, **settings))
        assert (RANGED in here.node.ipvs.table) is is_served
        assert (ASKED in here.node.ipvs.table) is not is_served
    here.turn(Removed(Kind.SERVICE, "default/web"))
    assert ASKED in here.node.ipvs.table
