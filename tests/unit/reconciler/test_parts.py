"""Parts of the loop fail by themselves: nothing else waits for them, and nothing else is compared again."""

import errno
import itertools

import pytest

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, NodeAddressesChanged
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.rules import elements
from ipvsproxy.plan.state import Dirty
from ipvsproxy.process.assembly import make_loop
from ipvsproxy.ruleset.codec import key_text
from tests.support.build import config, key, service, slice_of
from tests.support.memory_kernel import MemoryNode

WEB, OTHER = key("10.96.0.10:80"), key("10.96.0.20:80")


class FailureReports(Report):
    def __init__(self):
        self.failures = 0

    def failed(self):
        self.failures += 1


def refusing(*_):
    raise KernelError("reading", errno.ENOBUFS)


class CountedProxy:
    """A proxy with two Services, and a count of what is compared."""

    def __init__(self):
        self.node, self.heard, self.now = MemoryNode([parse_ip("192.0.2.1")]), FailureReports(), 0.0
        self.loop = make_loop(config(), Inbox(), self.node.kernel(), lambda: self.now, self.heard)
        services = service(), service("other", ["10.96.0.20"])
        self.loop.reconcile([
            Listed(Kind.NODE, {"node1": Node("node1", (parse_ip("192.0.2.1"),))}),
            Listed(Kind.SERVICE, {item.key: item for item in services}),
            Listed(Kind.ENDPOINT_SLICE, {"default/web-4": slice_of("web", "10.244.2.1")}),
        ])  # fmt: skip
        self.compared = []
        wanted, real = self.loop._wanted, self.loop._wanted.steps
        wanted.steps = lambda pending, *rest: (self.compared.append(len(pending)), real(pending, *rest))[1]

    def wait(self, seconds, *events):
        self.now += seconds
        self.loop.reconcile(list(events))

    def next(self):
        self.wait(max(self.loop.timeout(), 0.01))


@pytest.fixture
def running():
    return CountedProxy()


def test_a_look_at_the_node_that_fails_makes_nothing_pending_and_is_tried_less_and_less_often(running):
    looks = []

    def unreadable():
        looks.append(running.now)
        raise KernelError("reading addresses", errno.ENOBUFS)

    running.node.links.other_addresses = unreadable
    running.loop.reconcile([NodeAddressesChanged()])
    assert (running.compared, running.heard.failures) == ([], 1)
    while running.now < 20:
        running.next()
    waits = [after - before for before, after in itertools.pairwise(looks)]
    assert waits[:4] == pytest.approx([0.1, 0.2, 0.4, 0.8])
    assert running.compared == []
    running.wait(0, Changed(Kind.ENDPOINT_SLICE, "default/web-4", slice_of("web", "10.244.2.1", "10.244.2.2")))
    assert len(running.node.ipvs.table[WEB].destinations) == 2
    assert running.compared == [1]


def test_what_one_part_of_a_verification_finds_is_repaired_though_another_part_fails(running):
    del running.node.ipvs.table[OTHER]
    running.node.links.vips = refusing
    before = running.heard.failures
    while running.now < 31:
        running.next()
    assert OTHER in running.node.ipvs.table
    assert running.heard.failures > before
    assert max(running.compared) == 1


def test_what_could_not_be_applied_stays_pending_and_nothing_else(running):
    kernel = running.loop.parts.applier._kernel
    real, kernel.settle_doubts = kernel.settle_doubts, refusing
    running.wait(0, Changed(Kind.ENDPOINT_SLICE, "default/web-4", slice_of("web", "10.244.2.2")))
    assert running.heard.failures == 1
    kernel.settle_doubts = real
    running.wait(0.1)
    assert len(running.node.ipvs.table[WEB].destinations) == 2
    assert running.compared == [1]
    assert running.loop.parts.applier.pending == 0


def test_what_a_new_server_needs_is_tried_with_it_though_it_waits_longer_by_itself():
    running = CountedProxy()
    applier, kernel = running.loop.parts.applier, running.loop.parts.applier._kernel
    frontend = running.loop._wanted.frontends[WEB]
    own = next(iter(elements(frontend).own))
    running.node.ipvs.table.pop(WEB)
    kernel.shadow.servers.pop(WEB)
    del kernel.shadow.elements[own]
    del running.node.nft.sets[own.set.name][key_text(own)]
    applier.backoff.settle(Dirty(), Dirty(servers={WEB}), running.now)
    for _ in range(3):
        applier.backoff.settle(Dirty(), Dirty(slots={own}), running.now)
    running.wait(0.1)
    assert WEB in running.node.ipvs.table
    assert key_text(own) in running.node.nft.sets[own.set.name]
    assert not applier.backoff
