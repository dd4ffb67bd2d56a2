"""Ranges of ports where only pods of some tenants may connect: not served, and an Event says so."""

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Inbox, Kind, Listed
from ipvsproxy.plan.model import Namespace, Protocol
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, key, service, slice_of
from tests.support.memory_kernel import MemoryNode

LABEL = "ipvsproxy.io/tenant"
RANGED = key("10.96.0.10:0/TCP")


@pytest.mark.parametrize(
    ("tenant", "shared_with", "is_served"), [("", (), True), ("blue", (), False), ("blue", ("*",), True)]
)
def test_ranges_are_served_where_everybody_may_connect(tenant, shared_with, is_served):
    node = MemoryNode([parse_ip("192.0.2.1")])
    made = config(cluster_cidrs=("10.244.0.0/16",), tenant_label=LABEL)
    loop = make_loop(made, Inbox(), node.kernel(), lambda: 1000.0)
    lists = {kind: {} for kind in Kind}
    lists[Kind.NAMESPACE]["default"] = Namespace("default", {LABEL: tenant} if tenant else {})
    ranged = service(port_ranges=((Protocol.TCP, 30000, 30010),), share_with=shared_with)
    lists[Kind.SERVICE][ranged.key] = ranged
    lists[Kind.ENDPOINT_SLICE]["default/web"] = slice_of("web", "10.244.2.1")
    loop.reconcile([Listed(kind, found) for kind, found in lists.items()])
    assert (RANGED in node.ipvs.table) is is_served
    assert ("10.96.0.10 . tcp . 30000-30010" in node.nft.sets.get("port_ranges4", {})) is is_served
    assert key("10.96.0.10:80/TCP") in node.ipvs.table
