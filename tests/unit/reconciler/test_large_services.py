"""A Service with very many endpoints is programmed in slices, and keeps nobody waiting: counted, at two sizes."""

import collections
import errno

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed, Removed
from ipvsproxy.kernel.large_servers import PIECE
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.drain import READ_A_SECOND
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.slices import FIRST, unit_cost
from ipvsproxy.process.assembly import make_loop
from tests.support.build import config, destination, key, service, slice_of
from tests.support.memory_kernel import MemoryIpvs, MemoryNode

WEB, NODE_PORT, LARGE = key("10.96.0.10:80"), key("192.0.2.1:31000"), key("10.96.0.66:80")
SIZES = (5_000, 10_000)


class Timed(MemoryIpvs):
    """Takes time as IPVS does: for each message, and for the destinations that it looks through."""

    def __init__(self, running):
        super().__init__()
        self._running = running
        self.largest = self.messages = 0
        self.slowness = 1.0

    def apply(self, steps):
        before = self.messages
        refused = super().apply(steps)
        self.largest = max(self.largest, self.messages - before)
        return refused

    def _do(self, step):
        known = self.table.get(step.key)
        self._running.now += self.slowness * 4e-6 * unit_cost(len(known.destinations) if known else 0)
        self.messages += 1
        return super()._do(step)


class LargeServiceProxy:
    """A proxy that serves a small Service, and then a large one."""

    def __init__(self, *items):
        self.now = 0.0
        self.node = MemoryNode([parse_ip("192.0.2.1")])
        self.ipvs = self.node.ipvs = Timed(self)
        self.node.watch = self.watch
        self.order = []
        self.loop = make_loop(config(), Inbox(), self.node.kernel(), lambda: self.now)
        found = {Kind.SERVICE: {}, Kind.ENDPOINT_SLICE: {}}
        for item in (service(), slice_of("web", "10.244.2.1"), *items):
            found[kind_of(item)][item.key] = item
        own = Node("node1", (parse_ip("192.0.2.1"),))
        self.loop.reconcile([Listed(Kind.NODE, {"node1": own}), *(Listed(*pair) for pair in found.items())])

    def watch(self):
        self.order.append((LARGE in self.ipvs.table, self.answers()))

    def answers(self):
        return any(vip.address == LARGE.address for vip in self.node.links.present)

    def change(self, *items):
        self.loop.reconcile([Changed(kind_of(item), item.key, item) for item in items])

    def rest(self):
        """Go on until nothing is left to do at once; return the number of passes and the time of the longest."""
        passes, longest = 0, 0.0
        while self.loop.timeout() == 0:
            before = self.now
            self.loop.reconcile([])
            passes, longest = passes + 1, max(longest, self.now - before)
            assert passes < 10_000
        return passes, longest

    def count(self, name=LARGE):
        state = self.ipvs.table.get(name)
        return len(state.destinations) if state else 0


def no_vips():
    raise KernelError("reading addresses", errno.EMFILE)


def kind_of(item):
    return Kind.SERVICE if hasattr(item, "cluster_ips") else Kind.ENDPOINT_SLICE


def large(*, ports=((80, 0),)):
    return service("large", ["10.96.0.66"], ports)


def wanted(size, second=16):
    return [destination(f"{address}:8080") for address in addresses(size, second)]


def addresses(size, second=16):
    return (f"10.{second + (n >> 16)}.{n >> 8 & 255}.{n & 255}" for n in range(size))


def pods(size, second=16, **more):
    return slice_of("large", *addresses(size, second), **more)


@pytest.mark.parametrize("size", SIZES)
def test_each_slice_is_bounded_and_a_small_service_changes_in_between(size):
    running = LargeServiceProxy()
    running.loop.parts.applier._room.units = 1000
    running.change(large(), pods(size))
    assert 0 < running.count() < size
    running.change(slice_of("web", "10.244.2.1", "10.244.2.2"))
    assert running.count(WEB) == 2
    assert running.count() < size
    passes, longest = running.rest()
    assert running.count() == size
    assert longest < 0.5
    assert running.loop.parts.applier.pending == 0
    assert passes >= 1


@pytest.mark.parametrize("size", SIZES)
def test_a_slice_has_as_many_messages_as_there_is_room_for_however_many_endpoints_there_are(size, monkeypatch):
    monkeypatch.setattr("ipvsproxy.plan.slices.MOST", 2000.0)
    monkeypatch.setattr("ipvsproxy.plan.slices.FIRST", 2000.0)
    running = LargeServiceProxy()
    running.change(large(), pods(size))
    passes, _ = running.rest()
    assert running.count() == size
    assert running.ipvs.largest <= 2001
    # Each endpoint costs a message and the look through the others: no more than that.
    assert size / 2000 <= passes <= 2 + size * unit_cost(size) / 2000


@pytest.mark.parametrize("slowness", [1, 10, 40])
def test_no_pass_takes_long_on_a_slow_machine_either(slowness):
    """The others share a busy machine with it: 40 times slower than one that has nothing else to do."""
    running = LargeServiceProxy()
    running.ipvs.slowness = slowness
    began = running.now
    running.change(large(), pods(10_000))
    assert running.now - began < 0.5
    assert running.rest()[1] < 0.5
    assert running.count() == 10_000


@pytest.mark.parametrize("size", SIZES)
def test_endpoints_that_all_change_drain_and_are_deleted_in_slices(size):
    running = LargeServiceProxy(large(), pods(size))
    running.rest()
    running.change(pods(size, second=32))
    longest = running.rest()[1]
    states = collections.Counter(a.weight for a in running.ipvs.table[LARGE].destinations.values())
    assert states == {1: size, 0: size}
    running.now += 2 * size / READ_A_SECOND
    longest = max(longest, running.rest()[1])
    assert running.count() == size
    assert longest < 1.0


def test_the_connections_of_a_large_service_are_read_in_pieces_and_those_of_others_at_once():
    running = LargeServiceProxy(
        large(), pods(20_000), service("small", ["10.96.0.77"]), slice_of("small", "10.244.1.1")
    )
    running.rest()
    running.change(pods(19_999), slice_of("small", "10.244.1.2"))
    running.rest()
    small = key("10.96.0.77:80")
    running.now += 2
    running.rest()
    assert running.count(small) == 1
    asked = []
    read = running.ipvs.each_connections
    running.ipvs.each_connections = lambda name: (asked.append(name) or item for item in read(name))
    running.now += 20_000 / READ_A_SECOND
    passes = 0
    while running.loop.timeout() == 0:
        before = len(asked)
        running.loop.reconcile([])
        passes += 1
        assert len(asked) - before <= PIECE
    assert len(asked) == 20_000
    assert passes > 20_000 / PIECE
    assert running.count() == 19_999


def test_a_large_service_is_verified_while_events_are_handled():
    running = LargeServiceProxy(large(), pods(20_000))
    running.rest()
    running.now += 60
    running.ipvs.table[LARGE].destinations.popitem()
    running.loop.reconcile([])
    running.change(slice_of("web", "10.244.2.1", "10.244.2.2"))
    assert running.count(WEB) == 2
    assert running.count() == 19_999
    running.rest()
    assert running.count() == 20_000


def test_connections_are_read_to_the_end_however_often_the_next_look_is_due():
    running = LargeServiceProxy(large(), pods(20_000))
    running.rest()
    running.change(pods(19_999))
    running.rest()
    for _ in range(100):
        # Each pass takes so long that the server is to be looked at again.
        running.now += 20_000 / READ_A_SECOND
        running.loop.reconcile([])
    assert running.count() == 19_999


@pytest.mark.parametrize(("passes", "place"), [(1, 0), (22, -1)])
def test_what_was_wanted_again_before_it_was_deleted_keeps_its_new_connections(passes, place):
    """Also where its server was being read, a piece at a time, or where others were deleted before it."""
    running = LargeServiceProxy(large(), pods(5000))
    running.rest()
    running.change(pods(5000, second=32))
    running.rest()
    running.now += 10_000 / READ_A_SECOND
    room = running.loop.parts.drainer._room
    room.units, room.took = 3000.0, lambda *_: None
    for _ in range(passes):
        running.loop.reconcile([])
    there = running.ipvs.table[LARGE].destinations
    assert (len(there) < 10_000) is (passes > 10_000 / PIECE)
    back = [found for found, attributes in there.items() if attributes.weight == 0][place]
    running.change(pods(5000, second=32), slice_of("large", str(back).split(":")[0], name="large-back"))
    running.ipvs.busy[LARGE, back] = 1
    running.change(slice_of("large", name="large-back"))
    running.rest()
    assert set(running.ipvs.table[LARGE].destinations) == {back, *wanted(5000, 32)}


def test_a_large_service_is_verified_while_something_else_cannot_be_read():
    running = LargeServiceProxy(large(), pods(20_000))
    running.rest()
    running.node.links.vips = no_vips
    running.ipvs.table[LARGE].destinations.popitem()
    for _ in range(100):
        running.now += 31
        running.loop.reconcile([])
    assert running.count() == 20_000


def test_endpoints_that_the_kernel_refuses_do_not_keep_the_others_of_their_service_waiting():
    running = LargeServiceProxy()
    do, bad = running.ipvs._do, {d for d, _ in zip(sorted(wanted(20_000)), range(3000), strict=False)}
    tried = collections.Counter()

    def refuse(step):
        tried.update(step.destinations)
        return errno.EINVAL if bad.intersection(step.destinations) else do(step)

    running.ipvs._do = refuse
    reads = collections.Counter()
    state = running.ipvs.state
    running.ipvs.state = lambda name: (reads.update([name]), state(name))[1]
    running.change(large(), pods(20_000))
    running.rest()
    assert running.count() == 17_000
    assert max(tried.values()) <= 5
    assert reads[LARGE] <= 6000 * 2 / FIRST
    # They are tried again, and cost others nothing.
    assert 0 < running.loop.timeout() < 60
    assert running.loop.parts.applier.pending == 1


def test_half_of_a_change_is_no_difference_for_samples_and_verifications():
    running = LargeServiceProxy()
    with capture_logs() as logs:
        running.change(large(), pods(20_000))
        looks = 0
        while running.loop.parts.applier.unfinished:
            assert running.count() < 20_000
            running.now += 31  # a verification and a sample are due in each pass
            running.loop.reconcile([])
            looks += 1
        running.rest()
    assert looks > 10
    assert running.count() == 20_000
    assert [entry["event"] for entry in logs if entry["log_level"] in ("warning", "error")] == []


def test_a_start_does_not_wait_for_a_large_service():
    running = LargeServiceProxy(large(), pods(20_000))
    assert running.count(WEB) == 1
    assert running.count() < 20_000
    running.rest()
    assert running.count() == 20_000


def test_a_vip_answers_when_its_server_has_its_first_destinations():
    running = LargeServiceProxy()
    running.order.clear()
    running.change(large(), pods(20_000))
    running.rest()
    assert (False, True) not in running.order
    assert running.order[-1] == (True, True)


def test_a_large_server_with_source_ranges_has_its_rules_before_its_first_destinations():
    """It has been on the short path, whose verdict is switched when the server has all of them."""
    frontend = key("203.0.113.5:80")
    ranged = {"load_balancer_ips": ["203.0.113.5"], "source_ranges": ["10.0.0.0/8"], "data_path": "auto"}
    running = LargeServiceProxy(service("large", ["10.96.0.66"], **ranged), slice_of("large", "10.244.2.9"))
    nft, apply, guarded = running.node.nft, running.ipvs.apply, []

    def applied(steps):
        guarded.extend("check_untracked" in nft.chains for step in steps if step.key == frontend)
        return apply(steps)

    running.ipvs.apply = applied
    assert "check_untracked" not in nft.chains
    running.change(pods(SIZES[0]))
    assert 0 < running.count(frontend) < SIZES[0]
    running.rest()
    assert running.count(frontend) == SIZES[0]
    assert all(guarded)


def test_other_frontends_of_the_same_service_take_turns():
    ports = tuple((n, 0, "TCP", f"p{n}") for n in range(1, 6))
    endpoints = pods(3000, ports=tuple((n, "TCP", f"p{n}") for n in range(1, 6)))
    running = LargeServiceProxy()
    running.loop.parts.applier._room.units = 4000
    running.change(large(ports=ports), endpoints)
    for _ in range(10):
        running.loop.reconcile([])
    counts = [running.count(key(f"10.96.0.66:{n}")) for n in range(1, 6)]
    assert all(counts)
    running.rest()
    assert [running.count(key(f"10.96.0.66:{n}")) for n in range(1, 6)] == [3000] * 5


def test_a_large_service_that_goes_half_way_is_gone():
    running = LargeServiceProxy()
    running.change(large(), pods(20_000))
    assert running.loop.parts.applier.unfinished
    running.loop.reconcile([Removed(Kind.SERVICE, "default/large")])
    running.rest()
    assert LARGE not in running.ipvs.table
    assert not running.answers()
    assert not any("10.96.0.66" in element for element in running.node.nft.sets["frontends4"])
