"""What is read of the kernel at one moment, while a running proxy changes it."""

import pytest

from ipvsproxy.commands import survey_kernel
from ipvsproxy.diagnosis.facts import Facts, Link
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.plan.state import KernelState, ServerAttributes, ServerState
from tests.support.build import key

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
