"""What the kernel package looks after in a verification, and the shadow after refusals."""

import errno
import os

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.kernel.large_servers import LARGE, PIECE
from ipvsproxy.kernel.server_check import READ_AT_ONCE
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.diff import IpvsStep, Steps, Verb
from ipvsproxy.plan.state import USUAL, DestinationAttributes, ServerAttributes, ServerState, Vip, VipForm
from tests.support.build import destination, key, weighted
from tests.support.memory_kernel import Fault, MemoryNode

WEB, OTHER = key("10.96.0.10:80"), key("10.96.0.11:80")
ONE, TWO = destination("10.244.1.1:8080"), destination("10.244.2.1:8080")
RR = ServerAttributes("rr", 0, 0)
IDLE = DestinationAttributes(0)
EMPTY = ServerState(RR, {})


class Calls(list):
    """What was called, in order; `at` makes a function that writes down its name."""

    def at(self, name, result=None):
        return lambda *_, **__: self.append(name) or result


class NoForwarding:
    def __init__(self, calls):
        self.ensure, self.tidy = calls.at("forwarding"), calls.at("no other mark")


@pytest.fixture
def node():
    return MemoryNode()


@pytest.fixture
def calls(monkeypatch):
    return Calls()


@pytest.fixture
def kernel(node, calls, monkeypatch):
    node.forwarding = NoForwarding(calls)
    for name in ("make_settings", "keep_settings", "reserve_ports"):
        setattr(node.host, name, calls.at(name))
    made = node.kernel()
    monkeypatch.setattr(made._pressure, "look", lambda *numbers: calls.append(numbers))
    return made


def test_settings_come_before_the_link(kernel, node, calls):
    def refused(*_):
        raise KernelError("settings", errno.EPERM)

    node.host.make_settings = refused
    with pytest.raises(KernelError):
        kernel.prepare()
    assert not node.links.exists
    node.host.make_settings = calls.at("make_settings")
    kernel.prepare()
    assert (calls, node.links.exists) == (["make_settings", "reserve_ports"], True)


def test_rules_that_are_loaded_reach_the_forward_chain(kernel, calls):
    kernel.rules.load({})
    assert calls == ["forwarding", "no other mark"]


def test_what_is_wrong_with_one_server_is_not_forgotten_when_another_cannot_be_read(kernel, node):
    other = key("10.96.0.11:80")
    kernel.shadow.servers = {name: ServerState(RR, {}) for name in (WEB, other)}
    node.ipvs.table = {name: ServerState(RR, weighted({ONE: 1})) for name in (WEB, other)}
    node.faults.plan(2, Fault("lost"))
    with pytest.raises(KernelError):
        kernel.verify_servers()
    assert kernel.verify_servers().servers == {WEB, other}


def test_what_differs_is_known_before_the_next_subsystem_fails(kernel, node):
    kernel.adopt()
    kernel._servers_in_doubt = kernel._vips_in_doubt = True
    node.ipvs.table[WEB] = ServerState(RR, weighted({ONE: 1}))
    node.faults.plan(1, Fault("lost"))
    doubts = kernel.settle_doubts()
    assert next(doubts).servers == {WEB}
    with pytest.raises(KernelError):
        next(doubts)
    assert not next(kernel.settle_doubts())


@pytest.mark.parametrize("verb", [Verb.NEW_SERVICE, Verb.NEW_DEST])
@pytest.mark.parametrize("done", [0, 1, 2])
def test_after_a_refusal_the_shadow_is_what_the_kernel_has(kernel, node, verb, done):
    if verb is Verb.NEW_DEST:
        node.ipvs.table[WEB] = ServerState(RR, {})
        kernel.shadow.servers[WEB] = ServerState(RR, {})
    server = RR if verb is Verb.NEW_SERVICE else None
    node.faults.plan(0, Fault("refused", errno.EPERM, done))
    failed = kernel.apply(Steps(added=[IpvsStep(verb, WEB, server, (ONE, TWO))]))
    assert kernel.shadow.servers == node.ipvs.table
    wanted = {WEB: ServerState(RR, weighted({ONE: 1, TWO: 1}))}
    assert (failed.servers == {WEB}) is (node.ipvs.table != wanted)


def test_a_server_that_cannot_be_read_after_a_refusal_is_read_later(kernel, node):
    node.faults.plan(0, Fault("refused", errno.EPERM, 1))
    node.faults.plan(1, Fault("lost"))
    kernel.apply(Steps(added=[IpvsStep(Verb.NEW_SERVICE, WEB, RR, (ONE, TWO))]))
    (different,) = kernel.settle_doubts()
    assert different.servers == {WEB}
    assert kernel.shadow.servers == node.ipvs.table


def test_a_vip_is_there_only_while_its_server_is(kernel, node):
    vip, seen = Vip(WEB.address, VipForm.ADDRESS), []
    kernel.adopt()
    node.watch = lambda: seen.append(
        (bool(node.ipvs.table.get(WEB, EMPTY).destinations), bool(node.links.present))
    )
    kernel.apply(Steps(added=[IpvsStep(Verb.NEW_SERVICE, WEB, RR, (ONE,), 1)], bound=[vip]))
    kernel.apply(Steps(unbound=[vip], removed=[IpvsStep(Verb.DEL_SERVICE, WEB)]))
    assert (True, True) in seen
    assert (False, True) not in seen
    assert seen[-1] == (False, False)


class CountedReads:
    """Counts the destinations that are read."""

    def __init__(self, node):
        self.read = 0
        self._destinations = node.ipvs.destinations
        node.ipvs.destinations = self.destinations

    def destinations(self, name):
        found = self._destinations(name)
        self.read += len(found)
        return found


def crowd(size):
    return ServerState(RR, weighted({destination(f"10.{16 + (n >> 8)}.{n & 255}.1:80"): 1 for n in range(size)}))


@pytest.mark.parametrize("read", ["adopt", "verify_vips"])
def test_sources_that_a_handover_has_left_go_when_vips_are_read(kernel, node, read):
    one, two = key("10.96.0.10:80").address, key("[fd00::1]:80").address
    node.links.sourced, node.links.keep_source = {one, two}, {two: errno.EPERM}
    with capture_logs() as logs:
        getattr(kernel, read)()
    assert node.links.sourced == {two}
    lines = [(line["vip"], line["err"]) for line in logs if line["event"] == messages.VIP_REFUSED]
    assert lines == [("fd00::1", os.strerror(errno.EPERM))]


def test_a_sample_does_not_read_the_destinations_of_a_large_server_but_finds_that_it_is_gone(kernel, node):
    node.ipvs.table[WEB] = crowd(LARGE + 1)
    kernel.adopt()
    node.ipvs.state = None
    assert not kernel.sample()
    del node.ipvs.table[WEB]
    assert kernel.sample()


@pytest.mark.parametrize("count", [100, 200])
def test_a_verification_reads_so_many_destinations_however_many_there_are(kernel, node, count):
    keys = [key(f"10.96.0.{n}:80") for n in range(count)]
    node.ipvs.table.update(dict.fromkeys(keys, crowd(LARGE)))
    kernel.adopt()
    counted = CountedReads(node)
    for _ in range(count * LARGE // READ_AT_ONCE):
        before = counted.read
        kernel.verify_servers()
        assert counted.read - before == READ_AT_ONCE
    del node.ipvs.table[keys[0]]
    assert kernel.verify_servers().servers == {keys[0]}


@pytest.fixture
def large(kernel, node):
    node.ipvs.table[WEB] = crowd(3 * PIECE)
    node.ipvs.table[OTHER] = ServerState(RR, weighted({ONE: 1}))
    kernel.adopt()
    return kernel


def verified(kernel):
    """Verify, and return what differed of large servers, and in how many pieces these were read."""
    kernel.verify_servers()
    found, pieces = set(), 0
    while kernel.is_verifying:
        found |= kernel.verify_large().servers
        pieces += 1
    return found, pieces


def test_a_large_server_is_verified_in_pieces(large, node):
    counted = CountedReads(node)
    found, pieces = verified(large)
    assert (found, pieces >= 3) == (set(), True)
    assert counted.read == 3 * PIECE + 1


@pytest.mark.parametrize("place", [0, PIECE, 3 * PIECE - 1])
@pytest.mark.parametrize("change", ["gone", "weight", "more"])
def test_whatever_differs_of_a_large_server_is_found(large, node, place, change):
    table = node.ipvs.table[WEB].destinations
    changed = list(table)[place]
    if change == "gone":
        del table[changed]
    elif change == "weight":
        table[changed] = IDLE
    else:
        table[ONE] = USUAL
    assert verified(large)[0] == {WEB}
    assert large.shadow.servers[WEB].destinations == table
    assert verified(large)[0] == set()


def test_a_large_server_is_verified_whatever_samples_come_in_between(large, node):
    node.ipvs.table[WEB].destinations[ONE] = USUAL
    assert not large.sample()  # it does not read the destinations, and goes on to the other one
    assert verified(large)[0] == {WEB}


def test_a_large_server_that_we_change_while_it_is_read_is_not_taken_for_different(large, node):
    large.verify_servers()
    large.verify_large()
    gone = tuple(node.ipvs.table[WEB].destinations)[:PIECE]
    large.apply(Steps(removed=[IpvsStep(Verb.DEL_DEST, WEB, None, gone)]))
    while large.is_verifying:
        assert not large.verify_large()
    assert verified(large)[0] == set()


def test_a_change_of_another_server_does_not_disturb_the_reading(large, node):
    large.verify_servers()
    large.verify_large()
    large.apply(Steps(removed=[IpvsStep(Verb.DEL_SERVICE, OTHER)]))
    assert large.is_verifying


def test_a_large_server_that_cannot_be_read_is_read_with_the_next_verification(large, node):
    large.verify_servers()
    node.faults.plan(0, Fault("lost"))
    with pytest.raises(KernelError):
        large.verify_large()
    assert not large.is_verifying
    del node.ipvs.table[WEB].destinations[next(iter(node.ipvs.table[WEB].destinations))]
    assert verified(large)[0] == {WEB}


def test_a_link_that_is_gone_is_made_again_before_the_next_try(kernel, node):
    node.links.exists, vip = False, Vip(WEB.address, VipForm.ADDRESS)
    assert kernel.apply(Steps(bound=[vip])).vips == {WEB.address}
    assert list(kernel.settle_doubts())
    assert not kernel.apply(Steps(bound=[vip])).vips
    assert node.links.present == {vip}
    assert not list(kernel.settle_doubts())


def test_a_link_that_cannot_be_made_keeps_nothing_else_from_being_done(kernel, node):
    node.links.exists = False
    kernel.apply(Steps(bound=[Vip(WEB.address, VipForm.ADDRESS)]))

    def refused():
        raise KernelError("link", errno.EPERM)

    node.links.ensure_link = refused
    assert not list(kernel.settle_doubts())
