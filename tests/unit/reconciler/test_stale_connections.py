"""When conntrack is swept: after the change is in the kernel, not before, and again after a failure."""

import errno

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, destination, key, service, slice_of, weighted
from tests.support.memory_kernel import MemoryNode

PORTS = ((5353, "UDP", ""),)
DNS, OTHER = key("10.96.0.10:53/UDP"), key("10.96.0.99:53/UDP")
CLIENT = parse_ip("192.0.2.100")
OLD, NEW = destination("10.244.2.1:5353"), destination("10.244.2.2:5353")


class ProxyWithConnections:
    """The loop on a kernel in memory."""

    def __init__(self, node):
        self.now = 1000.0
        self.loop = make_loop(config(), Inbox(), node.kernel(), lambda: self.now)

    def list(self, services, slices):
        self.loop.reconcile([
            Listed(Kind.NODE, {}),
            Listed(Kind.SERVICE, {item.key: item for item in services}),
            Listed(Kind.ENDPOINT_SLICE, {item.key: item for item in slices}),
        ])  # fmt: skip
        return self

    def change(self, piece):
        self.loop.reconcile([Changed(Kind.ENDPOINT_SLICE, piece.key, piece)])

    def wait(self, seconds):
        self.now += seconds
        self.loop.reconcile([])


@pytest.fixture
def node():
    node = MemoryNode([parse_ip("192.0.2.1")])
    node.conntrack.entries = [(CLIENT, DNS, OLD), (CLIENT, OTHER, OLD)]
    return node


WEB = service(ports=((53, 0, "UDP"),))
WEB_UDP = service("other", ["10.96.0.11"], ((53, 0, "UDP"),))


def start(node):
    process = ProxyWithConnections(node).list([WEB], [slice_of("web", "10.244.2.1", ports=PORTS)])
    node.conntrack.sweeps.clear()
    return process


def replace(process):
    process.change(slice_of("web", "10.244.2.2", ports=PORTS))


def test_only_entries_of_the_changed_frontend_go(node):
    process = start(node)
    assert len(node.conntrack.entries) == 2
    replace(process)
    assert node.conntrack.entries == [(CLIENT, OTHER, OLD)]
    process.change(slice_of("web", "10.244.2.2", ports=PORTS))
    process.wait(31)
    assert len(node.conntrack.sweeps) == 1


def test_what_changed_while_no_proxy_ran_is_swept_at_the_start(node):
    node.conntrack.entries.append((CLIENT, DNS, NEW))
    start(node)
    assert node.conntrack.entries == [(CLIENT, DNS, OLD), (CLIENT, OTHER, OLD)]


def test_a_sweep_waits_for_its_change(node):
    process = start(node)
    node.ipvs.refuse[DNS] = errno.ENOMEM
    replace(process)
    assert node.conntrack.sweeps == []
    node.ipvs.refuse.clear()
    process.wait(1)
    assert node.conntrack.entries == [(CLIENT, OTHER, OLD)]


def test_a_failed_sweep_is_tried_again_and_stops_nothing(node):
    process = start(node)
    node.conntrack.failure = KernelError("netlink dump", errno.ENOBUFS)
    replace(process)
    assert node.ipvs.destinations(DNS) == weighted({NEW: 1})
    assert process.loop.parts.sweeper.next_due == pytest.approx(process.now + 30)
    node.conntrack.failure = None
    process.wait(29)
    assert node.conntrack.sweeps == []
    process.wait(2)
    assert node.conntrack.entries == [(CLIENT, OTHER, OLD)]


def test_changes_of_one_turn_are_one_sweep(node):
    process = start(node)
    services = [service(f"u{n}", [f"10.96.2.{n}"], ((53, 31000 + n, "UDP"),)) for n in range(1, 30)]
    slices = [slice_of(item.name, "10.244.2.3", ports=PORTS) for item in services]
    process.list([WEB, *services], [slice_of("web", "10.244.2.2", ports=PORTS), *slices])
    frontends, new_vips = node.conntrack.sweeps
    assert len(frontends.rules) == 1 + 2 * len(services)
    assert len(new_vips.new_vips) == len(services)


def ranged(*ranges):
    return service("web", load_balancer_ips=["203.0.113.10"], source_ranges=ranges)


def test_no_one_is_cut_off_before_the_rules_have_changed(node):
    process, balancer = ProxyWithConnections(node), key("203.0.113.10:80")
    process.list([ranged("192.0.2.0/24"), WEB_UDP], [slice_of("web", "10.244.2.1")])
    node.conntrack.entries = [(CLIENT, balancer, OLD)]
    node.conntrack.sweeps.clear()
    node.nft.poison = "198.51.100.0"
    process.list(
        [ranged("198.51.100.0/24"), WEB_UDP],
        [slice_of("web", "10.244.2.1"), slice_of("other", "10.244.2.2", ports=PORTS)],
    )
    assert [{str(name) for name in sweep.rules} for sweep in node.conntrack.sweeps] == [{"10.96.0.11:53/UDP"}]
    assert node.conntrack.entries == [(CLIENT, balancer, OLD)]
    node.nft.poison = None
    process.wait(60)
    assert node.conntrack.entries == []


TCP_VIP = key("10.96.0.10:80/TCP")
NO_NAT = destination("10.96.0.10:80")
WEB_TCP = service(ports=((80, 0, "TCP"),))


def test_connections_begun_before_their_vip_was_local_begin_anew(node):
    established, elsewhere = (CLIENT, TCP_VIP, NO_NAT), (CLIENT, key("10.96.0.99:80/TCP"), NO_NAT, "half-open")
    node.conntrack.entries = [(CLIENT, TCP_VIP, NO_NAT, "half-open"), established, elsewhere]
    ProxyWithConnections(node).list([WEB_TCP], [slice_of("web", "10.244.2.1", ports=((8080, "TCP", ""),))])
    assert node.conntrack.entries == [established, elsewhere]


def test_a_vip_that_was_taken_away_and_is_put_back_is_swept_for(node):
    process = start(node)
    node.conntrack.entries = [(CLIENT, TCP_VIP, NO_NAT, "half-open")]
    node.links.present.clear()
    process.wait(31)
    assert node.links.present
    assert node.conntrack.entries == []


def test_a_new_vip_whose_sweep_fails_is_swept_for_later(node):
    process = ProxyWithConnections(node)
    node.conntrack.failure = KernelError("dump", errno.ENOBUFS)
    node.conntrack.entries = [(CLIENT, TCP_VIP, NO_NAT, "half-open")]
    process.list([WEB_TCP], [slice_of("web", "10.244.2.1", ports=((8080, "TCP", ""),))])
    node.conntrack.failure = None
    process.wait(31)
    assert node.conntrack.entries == []
