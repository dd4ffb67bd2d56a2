"""What the kernel refuses of one Service waits by itself, and nobody else's change brings it back."""

import collections
import errno
import itertools

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, Removed
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.state import Dirty
from ipvsproxy.process.assembly import make_loop
from ipvsproxy.ruleset.codec import key_text
from tests.support.build import config, key, service, slice_of
from tests.support.elements import element
from tests.support.memory_kernel import MemoryIpvs, MemoryNode

PORTS = 30


class Picky(MemoryIpvs):
    """Refuses destinations of 225.0.0.0/8, as IPVS does, and counts what it is told to do."""

    def __init__(self):
        super().__init__()
        self.told = collections.Counter()

    def apply(self, steps):
        for step in steps:
            self.told[step.key] += step.size
        return super().apply(steps)

    def _do(self, step):
        if any(destination.address[0] == 225 for destination in step.destinations):
            return errno.EINVAL
        return super()._do(step)


class ProxyOnPickyIpvs:
    def __init__(self):
        self.node, self.now = MemoryNode([parse_ip("192.0.2.1")]), 0.0
        self.ipvs = self.node.ipvs = Picky()
        self.loop = make_loop(config(), Inbox(), self.node.kernel(), lambda: self.now)
        self.loop.reconcile([
            Listed(Kind.NODE, {"node1": Node("node1", (parse_ip("192.0.2.1"),))}),
            Listed(Kind.SERVICE, {item.key: item for item in (hostile(), victim())}),
            Listed(Kind.ENDPOINT_SLICE, {"default/web-4": slice_of("web", "10.244.1.1"), **hostile_slice()}),
        ])  # fmt: skip

    def turn(self, *events):
        self.ipvs.told.clear()
        self.loop.reconcile(list(events))
        return self.ipvs.told


def hostile():
    ports = tuple((n, 30000 + n, "TCP", f"p{n}") for n in range(1, PORTS + 1))
    return service("hostile", ["10.96.0.66"], ports)


def hostile_slice(*pods):
    ports = tuple((n, "TCP", f"p{n}") for n in range(1, PORTS + 1))
    return {"default/hostile-4": slice_of("hostile", *(pods or ("225.0.0.1", "225.0.0.2")), ports=ports)}


def victim(node_port=31000):
    return service("web", ["10.96.0.10"], ((80, node_port),))


@pytest.fixture
def here():
    made = ProxyOnPickyIpvs()
    assert len(made.ipvs.table) == 2 + 2 * PORTS
    return made


def pods(*addresses):
    return Changed(Kind.ENDPOINT_SLICE, "default/web-4", slice_of("web", *addresses))


def test_a_change_of_another_service_affects_nothing_else(here):
    assert here.turn(pods("10.244.1.1", "10.244.1.2")) == {key("10.96.0.10:80"): 1, key("192.0.2.1:31000"): 1}


def test_a_node_port_comes_and_goes_beside_what_is_refused_at_its_address(here):
    here.turn(Changed(Kind.SERVICE, "default/web", victim(31001)))
    assert set(here.ipvs.told) == {key("192.0.2.1:31000"), key("192.0.2.1:31001")}
    assert not any("31000" in element for element in here.node.nft.sets["frontends4"])
    assert any("31001" in element for element in here.node.nft.sets["frontends4"])


def test_what_was_refused_is_tried_less_and_less_often(here):
    moments = []
    while here.now < 200:
        here.now += max(here.loop.timeout(), 0.01)
        if here.turn():
            moments.append(here.now)
    waits = [after - before for before, after in itertools.pairwise(moments)]
    assert moments[0] == pytest.approx(0.1)
    assert waits == sorted(waits)
    assert 30 <= waits[-1] <= 31


def test_a_change_of_its_own_is_tried_at_once(here):
    [(name, piece)] = hostile_slice("10.244.1.7").items()
    told = here.turn(Changed(Kind.ENDPOINT_SLICE, name, piece))
    assert len(told) == 2 * PORTS
    assert all(len(state.destinations) == 1 for state in here.ipvs.table.values())
    here.now += 60
    assert not here.turn()


def test_a_service_that_goes_is_not_tried_any_more(here):
    here.turn(Removed(Kind.SERVICE, "default/hostile"))
    assert len(here.ipvs.table) == 2
    here.now += 100
    assert not here.turn()


def test_a_new_frontend_brings_what_it_shares_with_one_that_waits(here):
    """Both have an endpoint on this node, which needs an element of its own; that was refused for the first."""
    hairpin = element("hairpin4", "10.244.1.9 . 10.244.1.9")

    def comes(name, address):
        item, pods = service(name, [address]), slice_of(name, "10.244.1.9")
        here.turn(Changed(Kind.SERVICE, item.key, item), Changed(Kind.ENDPOINT_SLICE, pods.key, pods))

    comes("early", "10.96.0.76")
    del here.node.nft.sets["hairpin4"][key_text(hairpin)], here.loop.parts.applier._kernel.shadow.elements[hairpin]
    here.loop.parts.applier.backoff.settle(Dirty(), Dirty(slots={hairpin}), here.now)
    comes("late", "10.96.0.77")
    assert key_text(hairpin) in here.node.nft.sets["hairpin4"]
    assert not here.loop.parts.applier.backoff.among([hairpin])
