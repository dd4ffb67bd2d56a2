"""Objects read once from an API server: what is planned of them, and their labels."""

from dataclasses import replace

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.commands import objects
from ipvsproxy.commands.invocation import CommandFailed
from ipvsproxy.exchange.inbox import Kind, Listed
from ipvsproxy.plan.state import PERSISTENT, ServerAttributes, ServerState
from tests.support import build
from tests.support.apiserver import ApiServer, endpoint_slice, node, service
from tests.support.build import config


@pytest.fixture(name="given")
def _given(tmp_path):
    with ApiServer() as server:
        server.put(service("web", labels={"app": "web"}))
        server.put(endpoint_slice())
        server.put(node())
        yield config(kubeconfig=server.write_kubeconfig(tmp_path / "kubeconfig")), server


def test_what_the_api_server_has_is_planned(given):
    settings, server = given
    found = objects.read(settings)
    assert found.servers == ((parse_ip("127.0.0.1"), int(server.url.rpartition(":")[2])),)
    wanted = objects.desired(settings, found.listed(), [parse_ip("192.0.2.1")], servers=found.servers)
    assert {wanted.owner(key) for key in wanted.frontends} == {"default/web"}
    assert wanted.node.addresses == (parse_ip("192.0.2.1"),)
    assert found.labels() == {"default/web": {"app": "web"}}


def test_no_service_gets_the_address_of_the_api_server(given):
    settings, server = given
    server.put(service("greedy", clusterIP="10.96.0.99", externalIPs=["203.0.113.9"]))
    found, here, there = objects.read(settings), [parse_ip("192.0.2.1")], parse_ip("203.0.113.9")
    for servers, gets_it in (((), True), (((there, 80),), False)):
        wanted = objects.desired(settings, found.listed(), here, servers=servers)
        assert (there in {key.address for key in wanted.frontends}) is gets_it


def test_no_service_gets_the_address_of_another_node(given):
    settings, server = given
    server.put(node("node2", "203.0.113.9"))
    server.put(service("greedy", clusterIP="10.96.0.99", externalIPs=["203.0.113.9"]))
    found, here = objects.read(settings), [parse_ip("192.0.2.1")]
    assert found.neighbours.nodes == {parse_ip("203.0.113.9")}
    wanted = objects.desired(settings, found.listed(), here, neighbours=found.neighbours)
    assert parse_ip("203.0.113.9") not in {key.address for key in wanted.frontends}


@pytest.mark.parametrize(
    ("modules", "used", "found"),
    [
        (None, "rr", "mh"),  # saved objects: no kernel is looked at
        ({"ip_vs", "ip_vs_mh"}, "rr", "mh"),
        ({"ip_vs"}, "rr", "rr"),
        ({"ip_vs"}, "mh", "mh"),
    ],
)
def test_a_scheduler_that_the_kernel_lacks_is_replaced_as_the_proxy_does(modules, used, found):
    around = objects.Surroundings(modules=None if modules is None else frozenset(modules))
    asked = [
        Listed(Kind.SERVICE, {"default/web": build.service(scheduler="mh")}),
        Listed(Kind.ENDPOINT_SLICE, {}),
        Listed(Kind.NODE, {}),
    ]
    present = {build.key("10.96.0.99:80"): ServerState(ServerAttributes(used, 0, 0), {})}
    wanted = objects.desired(config(), asked, [], around, present=present)
    assert wanted.frontends[build.key("10.96.0.10:80")].server.scheduler == found
    assert any("no scheduler mh" in text for text in wanted.unmet("default/web")) is (found == "rr")


@pytest.mark.parametrize(("present", "engine"), [({}, ""), ({"sip"}, "sip")])
def test_a_persistence_engine_that_the_kernel_lacks_is_left_out_as_the_proxy_does(present, engine):
    call = build.service(ports=((5060, 0, "UDP"),), affinity_seconds=60, affinity_engine="sip")
    asked = [
        Listed(kind, {"default/web": call} if kind is Kind.SERVICE else {})
        for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE, Kind.NODE)
    ]
    servers = {
        build.key("10.96.0.99:80"): ServerState(ServerAttributes("rr", PERSISTENT, 60, None, name), {})
        for name in present
    }
    around = objects.Surroundings(modules=frozenset({"ip_vs_rr"}))
    wanted = objects.desired(config(), asked, [], around, present=servers)
    assert wanted.frontends[build.key("10.96.0.10:5060/UDP")].server.engine == engine


def test_an_api_server_may_be_known_by_name(given):
    settings, server = given
    by_name = replace(settings, master=server.url.replace("127.0.0.1", "localhost"))
    assert (parse_ip("127.0.0.1"), int(server.url.rpartition(":")[2])) in objects.read(by_name).servers


def test_an_api_server_that_is_away_is_one_line(tmp_path):
    with ApiServer() as server:
        path = server.write_kubeconfig(tmp_path / "kubeconfig")
    with pytest.raises(CommandFailed, match="the API server"):
        objects.read(config(kubeconfig=path))
