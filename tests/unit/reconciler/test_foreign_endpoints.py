"""Endpoints of a tenant that are pods of another one: left out, logged once, and an Event of the Service."""

import pytest
from msgspec.structs import replace
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.base.address import parse_ip
from ipvsproxy.config import TenantPods
from ipvsproxy.exchange.inbox import Changed, Kind, Listed, Removed
from ipvsproxy.plan.model import Namespace, Pod
from ipvsproxy.reconciler.planning import NAMED
from tests.support.build import service, slice_of
from tests.support.memory_proxy import MemoryProxy, RefusalRecorder

LABEL = "ipvsproxy.io/tenant"
SPACES = {"blue": "blue", "green": "green", "plain": ""}
REASON = "endpoints that are pods of other tenants get nothing: 10.244.1.1"


def pod(namespace, address, node="node1"):
    return Pod(namespace, "one", node, (parse_ip(address),))


class ProxyWithForeignEndpoints(MemoryProxy):
    """Blue has a Service with a slice that someone has written, of two addresses; nothing is known of pods."""

    def __init__(self, **settings):
        super().__init__(
            [], heard=RefusalRecorder(), cluster_cidrs=("10.244.0.0/16",), tenant_label=LABEL, **settings
        )
        web = replace(service(), namespace="blue")
        ends = replace(slice_of("web", "10.244.1.1", "10.244.2.2"), namespace="blue", service="blue/web")
        spaces = [Namespace(name, {LABEL: tenant} if tenant else {}) for name, tenant in SPACES.items()]
        self.turn(
            Listed(Kind.NAMESPACE, {space.name: space for space in spaces}),
            Listed(Kind.POD, {}),
            Changed(Kind.SERVICE, web.key, web),
            Changed(Kind.ENDPOINT_SLICE, ends.key, ends),
        )

    def endpoints(self):
        self.turn()
        (server,) = self.node.ipvs.table.values()
        return {str(end) for end, found in server.destinations.items() if found.weight}


BOTH = {"10.244.1.1:8080", "10.244.2.2:8080"}


@pytest.fixture(name="here")
def _here():
    return ProxyWithForeignEndpoints()


def test_an_endpoint_that_is_another_tenants_pod_is_left_out_with_a_line_and_an_event(here):
    assert here.endpoints() == BOTH
    with capture_logs() as logs:
        here.turn(Changed(Kind.POD, "green/one", pod("green", "10.244.1.1")))
        # Once, also when something else changes.
        here.turn(Changed(Kind.POD, "green/two", replace(pod("green", "10.244.1.7"), name="two")))
    assert here.endpoints() == {"10.244.2.2:8080"}
    assert here.heard.heard == [("web", REASON)]
    lines = [line for line in logs if line["event"] == messages.SERVED_IN_PART]
    assert [(line["service"], line["reason"], line["log_level"]) for line in lines] == [
        ("blue/web", REASON, "warning")
    ]


def test_it_is_an_endpoint_again_when_the_pod_has_ended_or_is_of_the_own_tenant(here):
    for event in (
        Removed(Kind.POD, "green/one"),
        Changed(Kind.NAMESPACE, "green", Namespace("green", {LABEL: "blue"})),
    ):
        here.turn(Changed(Kind.POD, "green/one", pod("green", "10.244.1.1")))
        assert here.endpoints() == {"10.244.2.2:8080"}
        here.turn(event)
        assert here.endpoints() == BOTH


@pytest.mark.parametrize("namespace", ["blue", "plain", "unknown"])
def test_pods_of_the_own_tenant_of_none_and_of_unknown_ones_stay(here, namespace):
    here.turn(Changed(Kind.POD, f"{namespace}/one", pod(namespace, "10.244.1.1")))
    assert (here.endpoints(), here.heard.heard) == (BOTH, [])


@pytest.mark.parametrize("knows", TenantPods)
def test_a_pod_of_another_node_is_found_where_all_pods_are_known(knows):
    here = ProxyWithForeignEndpoints(tenant_pods=knows)
    here.turn(Changed(Kind.POD, "green/one", pod("green", "10.244.1.1", "node2")))
    assert here.endpoints() == ({"10.244.2.2:8080"} if knows is TenantPods.ALL else BOTH)


def test_of_many_such_endpoints_some_are_named(here):
    addresses = [f"10.244.1.{number}" for number in range(10, 30)]
    ends = replace(slice_of("web", *addresses), namespace="blue", service="blue/web")
    theirs = replace(pod("green", "10.244.1.1"), addresses=tuple(map(parse_ip, addresses)))
    here.turn(Changed(Kind.POD, "green/one", theirs), Changed(Kind.ENDPOINT_SLICE, ends.key, ends))
    ((_, reason),) = here.heard.heard
    assert reason.startswith("endpoints that are pods of other tenants get nothing: 10.244.1.10, 10.244.1.11, ")
    assert reason.endswith(f" and {len(addresses) - NAMED} more")
