"""Which test connections this node has balanced: by IPVS's table, or by connection tracking on the short path."""

import pytest

from ipvsproxy.commands import traces
from ipvsproxy.commands.traces import Dialled, balanced_here
from ipvsproxy.config import DataPath
from ipvsproxy.kernel.read.connections import Asker
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.planner import plan_service
from tests.support.build import config, destination, key, node, service, slice_of

WEB, OUT = key("10.96.0.10:80"), key("203.0.113.5:80")
POD, REMOTE, OTHER = map(destination, ("10.244.1.1:8080", "10.244.2.1:8080", "10.244.2.9:8080"))
ONE, TWO = (Asker(6, destination(f"192.0.2.1:{port}")) for port in (4711, 4712))

PODS = [slice_of("web", "10.244.1.1", "10.244.2.1")]


def dialled(asker, name=WEB, path=DataPath.AUTO, **settings):
    frontends = plan_service(service(**settings), PODS, node(), config(data_path=path))
    return Dialled(asker, name, frontends[name])


@pytest.fixture
def kernel(monkeypatch):
    """What both tables have, by who asked; asked for nothing else."""
    tables = {"trace": {}, "trace_tracked": {}}
    for name, table in tables.items():
        monkeypatch.setattr(traces, name, lambda asked, table=table: {asker: table[asker] for asker in asked})
    return tables


@pytest.mark.parametrize(
    ("led_to", "is_ours"), [([POD], True), ([OTHER], False), ([], False), ([OTHER, POD], True)]
)
def test_on_the_short_path_an_endpoint_of_the_service_has_it(kernel, led_to, is_ours):
    kernel["trace_tracked"][ONE] = led_to
    assert balanced_here([dialled(ONE)]) == {ONE: is_ours}


def test_on_the_short_path_those_of_the_internal_view_count(kernel):
    local = {"external_local": True, "load_balancer_ips": ["203.0.113.5"]}
    asked = dialled(ONE, OUT, **local)
    assert REMOTE not in asked.frontend.destinations
    kernel["trace_tracked"][ONE] = [REMOTE]
    assert balanced_here([asked]) == {ONE: True}


@pytest.mark.parametrize(("servers", "is_ours"), [([WEB], True), ([key("10.96.0.10:81")], False), ([], False)])
def test_by_ipvs_its_server_has_it(kernel, servers, is_ours):
    kernel["trace"][ONE], kernel["trace_tracked"][TWO] = servers, [POD]
    asked = [dialled(ONE, path=DataPath.IPVS), dialled(TWO)]
    assert balanced_here(asked) == {ONE: is_ours, TWO: True}


def test_by_ipvs_the_server_of_a_view_has_it(kernel):
    kernel["trace"][ONE] = [WEB]
    asked = dialled(ONE, OUT, DataPath.IPVS, external_local=True, load_balancer_ips=["203.0.113.5"])
    assert balanced_here([asked]) == {ONE: True}


def test_what_leaves_nothing_behind_is_not_known(kernel):
    ports = ((53, 0, "UDP", "dns"),)
    asked = dialled(ONE, key("10.96.0.10:53/UDP"), DataPath.IPVS, ports=ports, one_packet=True)
    assert balanced_here([asked]) == {}


def test_what_cannot_be_read_is_not_known(monkeypatch):
    def unreadable(_):
        raise KernelError("netlink dump", 1)

    monkeypatch.setattr(traces, "trace_tracked", unreadable)
    monkeypatch.setattr(traces, "trace", lambda _: None)
    assert balanced_here([dialled(ONE), dialled(TWO, path=DataPath.IPVS)]) == {}
