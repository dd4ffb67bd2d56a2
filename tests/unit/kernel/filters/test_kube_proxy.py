"""By what the kernel holds, whether a kube-proxy has programmed a node, and in which mode."""

import errno
import struct

import pytest

from ipvsproxy.kernel.filters import kube_proxy
from ipvsproxy.kernel.wire.netlink import KernelError, attribute
from ipvsproxy.kernel.wire.nfnetlink import NFGENMSG
from ipvsproxy.ruleset.filters import FilterChain, FilterRule


def jump(target):
    """Return a rule as the kernel lists it: a handle and a jump."""
    verdict = attribute(1, struct.pack(">i", -3)) + attribute(2, target.encode() + b"\0")
    data = attribute(1, struct.pack(">I", 0)) + attribute(2, attribute(2, verdict))
    expression = attribute(1, attribute(1, b"immediate\0") + attribute(2, data))
    return NFGENMSG.pack(2, 0, 0) + attribute(3, struct.pack(">Q", 7)) + attribute(4, expression)


class NfnetlinkWithRules:
    """A socket of nfnetlink; `rules` are those of nat KUBE-SERVICES, None when there is no such chain."""

    def __init__(self, rules=None, *, table=False):
        self.rules, self.table = rules, table

    def request(self, question):
        there = self.table if kube_proxy.OWN_TABLE.encode() in question else self.rules is not None
        if not there:
            raise KernelError("netlink request", errno.ENOENT)
        return b""

    def dump(self, _question):
        return [jump(target) for target in self.rules]


@pytest.fixture
def legacy(monkeypatch):
    chains = []
    monkeypatch.setattr(kube_proxy, "read_legacy", lambda: tuple(chains))
    return chains


@pytest.mark.usefixtures("legacy")
@pytest.mark.parametrize(
    ("answers", "found"),
    [
        (NfnetlinkWithRules(), {}),
        (NfnetlinkWithRules([]), {}),
        (NfnetlinkWithRules(["KUBE-SVC-AAAAAAAAAAAAAAAA"]), {}),
        (NfnetlinkWithRules(["KUBE-SVC-AAAAAAAAAAAAAAAA", "KUBE-NODEPORTS"]), {4: "iptables", 6: "iptables"}),
        (NfnetlinkWithRules(["KUBE-MARK-MASQ", "KUBE-NODE-PORT"]), {4: "ipvs", 6: "ipvs"}),
        (NfnetlinkWithRules(table=True), {4: "nftables", 6: "nftables"}),
        (NfnetlinkWithRules(["KUBE-NODEPORTS"], table=True), {4: "nftables", 6: "nftables"}),
    ],
)
def test_a_chain_for_services_counts_when_it_has_been_filled(answers, found):
    assert kube_proxy.KubeProxyState(answers).programmed() == found


def test_rules_of_legacy_iptables_count_for_their_family(legacy):
    rules = (FilterRule(verdict="jump", target="KUBE-NODEPORTS"),)
    legacy.append(FilterChain("ip", "filter", "KUBE-SERVICES", rules=rules))
    assert kube_proxy.KubeProxyState(NfnetlinkWithRules()).programmed() == {}
    legacy.append(FilterChain("ip", "nat", "KUBE-SERVICES", rules=rules, legacy="iptables-legacy"))
    assert kube_proxy.KubeProxyState(NfnetlinkWithRules()).programmed() == {4: "iptables"}


def test_a_kernel_that_cannot_be_read_is_no_node_without_kube_proxy(legacy):
    class Sick(NfnetlinkWithRules):
        def request(self, _question):
            raise KernelError("netlink request", errno.EPERM)

    with pytest.raises(KernelError):
        kube_proxy.KubeProxyState(Sick()).programmed()
