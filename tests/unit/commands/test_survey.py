"""What is read of the kernel at one moment, while a running proxy changes it, and of tenants by the objects."""

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.commands import survey_kernel
from ipvsproxy.commands.drift import differences
from ipvsproxy.commands.objects import desired
from ipvsproxy.commands.survey_objects import tenants_seen
from ipvsproxy.diagnosis.facts import Facts, Link, TenantFacts
from ipvsproxy.exchange.inbox import Kind, Listed
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.plan.model import Namespace, Pod
from ipvsproxy.plan.state import KernelState, ServerAttributes, ServerState
from ipvsproxy.ruleset.elements import ElementKey
from ipvsproxy.ruleset.schema import AUDIENCES
from tests.support.build import config, key, service, slice_of

SERVED = ServerState(ServerAttributes("rr", 0, 0), {})


@pytest.fixture
def looks(monkeypatch):
    """A kernel that is another one with each look: servers, and addresses of kube-ipvs0."""

    def read(*moments, holder="process 1"):
        left = list(moments)
        facts, paused = Facts(holder=holder), []

        def state(_):
            return KernelState(
                servers={key(f"{address}:80"): SERVED for address in left[0][0]}, vips=set(), elements={}
            )

        def links():
            return (Link("kube-ipvs0", "dummy", addresses=tuple(left.pop(0)[1])),)

        monkeypatch.setattr(survey_kernel.drift, "state", state)
        monkeypatch.setattr(survey_kernel, "read_links", links)
        view = KernelReader.__new__(KernelReader)
        view._ipvs = object()
        found = survey_kernel._read_servers(facts, view, paused.append)
        return [str(server) for server in found.servers], facts.links[0].addresses, len(paused)

    return read


def test_an_address_whose_server_was_made_meanwhile_is_read_again(looks):
    late = ([], ["10.96.0.9"]), (["10.96.0.9"], ["10.96.0.9"])
    assert looks(*late) == (["10.96.0.9:80/TCP"], ("10.96.0.9",), 1)


def test_an_address_that_never_gets_a_server_is_seen(looks):
    assert looks(*[([], ["10.96.99.99"])] * 3) == ([], ("10.96.99.99",), 2)


def test_a_node_in_order_and_one_without_a_proxy_are_read_once(looks):
    assert looks((["10.96.0.9"], ["10.96.0.9", "fe80::1"]))[2] == 0
    assert looks(([], ["10.96.99.99"]), holder="")[2] == 0


def test_tenants_are_counted_and_compared_with_the_kernel():
    settings = config(tenant_label="tenant", cluster_cidrs=("10.244.0.0/16",))
    web, piece = service(), slice_of("web", "10.244.1.1")
    address, other = parse_ip("10.244.1.1"), parse_ip("10.244.1.2")
    listed = [
        Listed(Kind.SERVICE, {web.key: web}),
        Listed(Kind.ENDPOINT_SLICE, {piece.key: piece}),
        Listed(Kind.NODE, {}),
        Listed(Kind.NAMESPACE, {
            "default": Namespace("default", {"tenant": "blue"}), "shared": Namespace("shared", {}),
            "more": Namespace("more", {"tenant": "blue"}),
        }),
        Listed(Kind.POD, {"default/a": Pod("default", "a", settings.node_name, (address,)),
                          "more/b": Pod("more", "b", settings.node_name, (other,))}),
    ]  # fmt: skip
    wanted = desired(settings, listed, [parse_ip("192.0.2.1")])
    assert tenants_seen(wanted, None) == TenantFacts("tenant", 1, 2, 2)
    kernel = KernelState({}, set(), dict(wanted.elements))
    same = differences(settings, wanted, kernel)
    assert tenants_seen(wanted, same) == TenantFacts("tenant", 1, 2, 2, 0, 0)
    # A pod that the proxy has not heard of, and a Service that it takes for one of no tenant.
    del kernel.elements[ElementKey(AUDIENCES[4], address)]
    kept = {
        slot: value for slot, value in kernel.elements.items() if slot.set.name not in ("restricted4", "admitted4")
    }
    stale = differences(settings, wanted, KernelState({}, set(), kept))
    assert tenants_seen(wanted, stale) == TenantFacts("tenant", 1, 2, 2, 1, 1)


def test_without_a_label_there_are_no_tenants_to_see():
    wanted = desired(config(), [Listed(kind, {}) for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE)], [])
    assert tenants_seen(wanted, []) is None
