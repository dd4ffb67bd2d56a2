"""One Service through all types and families, as the API has them: each leaves nothing of the one before."""

import itertools

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, Removed
from ipvsproxy.kube.decode import decode_mapping
from ipvsproxy.process.assembly import make_loop
from tests.support.apiserver import endpoint_slice, service
from tests.support.build import config
from tests.support.memory_kernel import MemoryNode

WAY_IN = [{"port": 80, "nodePort": 30080}]
FORMS = {
    "ClusterIP": {},
    "NodePort": {"type": "NodePort", "ports": WAY_IN},
    "LoadBalancer": {
        "type": "LoadBalancer",
        "ports": WAY_IN,
        "externalTrafficPolicy": "Local",
        "healthCheckNodePort": 31000,
    },
    "ExternalName": {"type": "ExternalName", "externalName": "a.example.com"},
    "headless": {"clusterIP": "None", "clusterIPs": ["None"]},
    "both families": {"clusterIPs": ["10.96.0.10", "fd00:96::10"], "ipFamilies": ["IPv4", "IPv6"]},
    "the other family": {"clusterIP": "fd00:96::10", "clusterIPs": ["fd00:96::10"], "ipFamilies": ["IPv6"]},
    "one number twice": {
        "ports": [{"name": "a", "port": 53, "protocol": "UDP"}, {"name": "b", "port": 53, "protocol": "TCP"}]
    },
    "another name": {"ports": [{"name": "web", "port": 80}]},
    "affinity": {"sessionAffinity": "ClientIP"},
}


class ServingNode:
    """A proxy on a kernel in memory that has the endpoints of a Service, and what it has been told of that."""

    def __init__(self):
        self.kernel, self.now = MemoryNode([parse_ip("192.0.2.1")]), 0.0
        self.loop = make_loop(
            config(cluster_cidrs=("10.244.0.0/16",)), Inbox(), self.kernel.kernel(), lambda: self.now
        )
        piece = decode_mapping(Kind.ENDPOINT_SLICE, endpoint_slice()).object
        self.loop.reconcile(
            [Listed(kind, {piece.key: piece} if kind is Kind.ENDPOINT_SLICE else {}) for kind in Kind]
        )

    def put(self, form):
        found = decode_mapping(Kind.SERVICE, service(**FORMS[form])).object
        key = "default/web"
        self.loop.reconcile([Changed(Kind.SERVICE, key, found) if found else Removed(Kind.SERVICE, key)])
        return self

    @property
    def state(self):
        self.now += 10  # so that what drains has ended
        self.loop.reconcile([])
        kernel = self.kernel
        return kernel.ipvs.table, kernel.links.present, kernel.nft.dump()


@pytest.mark.parametrize(("before", "after"), list(itertools.permutations(FORMS, 2)))
def test_a_form_leaves_nothing_of_the_one_before(before, after):
    assert ServingNode().put(before).put(after).state == ServingNode().put(after).state
