"""What a kube-proxy takes away before it has rules is put back as it was."""

import errno

import pytest
from structlog.testing import capture_logs

from ipvsproxy.base import messages
from ipvsproxy.kernel import kept_state
from ipvsproxy.kernel.kept_state import FORGET, KeptState, dropping
from ipvsproxy.kernel.wire.netlink import Lost
from ipvsproxy.plan.state import DestinationAttributes, ServerAttributes, ServerState, Vip, VipForm
from nft import NftError
from tests.support.build import destination, key, parse_ip

WEB, DNS, SIX = key("10.96.0.10:80"), key("10.96.0.53:53"), key("[fd00:10:96::a]:80")
HELD_SETS = ("held4", "held6", "held_vips4", "held_vips6")
FLUSHED = "".join(f"flush set inet ipvsproxy {name}\n" for name in HELD_SETS)
RR = ServerAttributes("rr", 0, 0)
USUAL, IDLE = DestinationAttributes(1), DestinationAttributes(0)
ROUTE, ADDRESS = Vip(parse_ip("10.96.0.10"), VipForm.ROUTE), Vip(parse_ip("fd00:10:96::a"), VipForm.ADDRESS)


class KeptKernel:
    """Servers, kube-ipvs0 and VIPs; one object in place of `Ipvs` and `Links`."""

    def __init__(self):
        self.servers = {
            WEB: ServerState(RR, {destination("10.244.1.1:80"): USUAL, destination("10.244.1.2:80"): IDLE}),
            SIX: ServerState(RR, {}),
        }
        self.has_link = True
        self.bound = {ROUTE, ADDRESS}
        self.steps = []
        self.ports = frozenset({30000})
        self.loaded = []
        self.settings = {FORGET: 1}
        self.refused = self.lost = None

    def look(self):
        return self.has_link

    def ensure_link(self):
        self.has_link = True

    def observe(self):
        return dict(self.servers)

    def apply(self, steps):
        if self.lost:
            raise self.lost
        assert not self.has_link
        self.held = self.loaded[-1]
        self.steps += steps
        return []

    def vips(self):
        return set(self.bound)

    def bind(self, vips):
        self.bound |= set(vips)
        return {}

    def record(self, ports):
        self.ports = ports

    def run(self, transaction):
        self.loaded.append(str(transaction))
        if self.refused:
            raise self.refused

    def begin_nftables_mode(self):
        """As a kube-proxy in this mode does; VIPs that are routes stay."""
        self.servers, self.has_link, self.ports, self.bound = {}, False, frozenset(), {ROUTE}


@pytest.fixture
def kernel(monkeypatch):
    kernel = KeptKernel()
    for name in ("Ipvs", "Links", "Libnftables"):
        monkeypatch.setattr(kept_state, name, lambda: kernel)
    monkeypatch.setattr(kept_state, "recorded", lambda: kernel.ports)
    monkeypatch.setattr(kept_state, "record", kernel.record)
    monkeypatch.setattr(kept_state, "prefer_own_sources", list)
    monkeypatch.setattr(kept_state.host, "read_sysctl", kernel.settings.get)
    monkeypatch.setattr(kept_state.host, "set_sysctl", kernel.settings.__setitem__)
    return kernel


def test_what_was_taken_away_comes_back_as_it_was(kernel):
    kept = KeptState.secured()
    kernel.begin_nftables_mode()
    with capture_logs() as logs:
        assert kept.put_back()
    made = {}
    for step in kernel.steps:
        made.setdefault(step.key, {}).update(dict.fromkeys(step.destinations, step.attributes))
    assert made == {WEB: {destination("10.244.1.1:80"): USUAL, destination("10.244.1.2:80"): IDLE}, SIX: {}}
    assert [step.server for step in kernel.steps if step.creates] == [RR, RR]
    assert (kernel.has_link, kernel.bound, kernel.ports) == (True, {ROUTE, ADDRESS}, frozenset({30000}))
    assert [(line["event"], line["servers"], line["refused"]) for line in logs] == [(messages.PUT_BACK, 2, 0)]
    assert not kept.put_back()
    # A server without destinations refuses, so nobody meets one.
    assert "add element inet ipvsproxy held4 { 10.96.0.10 . tcp . 80 }" in kernel.held
    assert kernel.loaded[-1] == FLUSHED


def test_no_connection_waits_any_more_when_servers_cannot_be_put_back(kernel):
    kept = KeptState.secured()
    kernel.begin_nftables_mode()
    kernel.lost = Lost("netlink batch", errno.ENOBUFS)
    with pytest.raises(Lost):
        kept.put_back()
    assert kernel.loaded[-1] == FLUSHED
    kernel.lost = None
    assert kept.put_back()
    assert {step.key for step in kernel.steps} == {WEB, SIX}


def test_what_waits_since_a_handover_was_killed_waits_no_more(kernel):
    KeptState.secured()
    assert FLUSHED in kernel.loaded[0]


def test_a_kube_proxy_that_removes_a_server_it_does_not_want_is_let_alone(kernel):
    """In mode ipvs it keeps the link."""
    kept = KeptState.secured()
    kernel.servers = {}
    assert not kept.put_back()
    assert kernel.steps == []


def test_connections_of_what_was_taken_away_are_not_forgotten_meanwhile(kernel):
    kept = KeptState.secured()
    assert kernel.settings == {FORGET: 0}
    kept.release()
    assert kernel.settings == {FORGET: 1}


def test_new_connections_to_what_ipvs_serves_wait_while_it_does_not(kernel):
    KeptState.secured()
    (text,) = kernel.loaded
    assert text == str(dropping([WEB, SIX]))
    assert "add element inet ipvsproxy kept4 { 10.96.0.10 . tcp . 80 }" in text
    assert "add element inet ipvsproxy kept6 { fd00:10:96::a . tcp . 80 }" in text


@pytest.mark.parametrize(
    ("server", "family", "element"),
    [("10.96.0.10:0", 4, "10.96.0.10 . tcp"), ("[fd00:10:96::a]:0", 6, "fd00:10:96::a . tcp")],
)
def test_new_connections_to_each_port_of_a_range_wait_as_well(kernel, server, family, element):
    kernel.servers = {key(server): ServerState(RR, {})}
    kept = KeptState.secured()
    assert f"add element inet ipvsproxy kept_vips{family} {{ {element} }}" in kernel.loaded[0]
    kernel.begin_nftables_mode()
    assert kept.put_back()
    assert f"add element inet ipvsproxy held_vips{family} {{ {element} }}" in kernel.held


def test_a_table_of_another_version_that_takes_no_further_chain_ends_no_handover(kernel):
    kernel.refused = NftError(errno.ENOENT, "no such table")
    with capture_logs() as logs:
        kept = KeptState.secured()
    assert [line["event"] for line in logs] == [messages.HANDOVER_NOT_SECURED]
    kernel.begin_nftables_mode()
    assert kept.put_back()
