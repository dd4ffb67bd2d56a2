"""What the kernel says and is told about leftovers, as bytes; on a real kernel: integration/test_takeover.py."""

import errno
import struct

import pytest

from ipvsproxy.kernel import leftovers
from ipvsproxy.kernel.filters import kube_proxy
from ipvsproxy.kernel.wire.netlink import SEQUENCE, SEQUENCE_AT, attribute

JUMP = -3 & 0xFFFFFFFF


def expression(name, data=b""):
    return attribute(1, attribute(1, name.encode() + b"\0") + attribute(2, data))


def immediate(code, chain=""):
    verdict = attribute(1, struct.pack(">I", code)) + (attribute(2, chain.encode() + b"\0") if chain else b"")
    return expression("immediate", attribute(1, struct.pack(">I", 0)) + attribute(2, attribute(2, verdict)))


def test_the_chain_that_a_rule_leads_to_is_read_from_its_verdict():
    rule = expression("match") + expression("counter") + immediate(JUMP, "KUBE-SERVICES")
    assert list(kube_proxy.targets(memoryview(rule))) == ["KUBE-SERVICES"]


@pytest.mark.parametrize("rule", [b"", expression("counter"), immediate(1), expression("immediate")])
def test_a_rule_that_leads_nowhere_has_no_target(rule):
    assert list(kube_proxy.targets(memoryview(rule))) == []


class IpsetsInUse:
    """A kernel with some ipsets, of which some are in use for the first requests."""

    BUSY = 4100

    def __init__(self, *there, busy=(), times=1):
        self.there, self.busy, self.times = set(there), set(busy), times

    def batch(self, messages):
        found = {}
        for index, data in enumerate(messages):
            assert SEQUENCE.unpack_from(data, SEQUENCE_AT)[0] == index
            name = next(n for n in (*self.there, "KUBE-NONE") if f"{n}\0".encode() in data or n == "KUBE-NONE")
            if name not in self.there:
                found[index] = errno.ENOENT
            elif name in self.busy and self.times:
                found[index] = self.BUSY
            else:
                self.there.remove(name)
        self.times -= 1
        return found


@pytest.fixture(autouse=True)
def _ipset_is_loaded(monkeypatch, tmp_path):
    monkeypatch.setattr(leftovers, "IPSET_MODULE", tmp_path)


def test_sets_go_when_rules_let_go_of_them():
    sets = IpsetsInUse("KUBE-CLUSTER-IP", "KUBE-LOOP-BACK", "MINE", busy=["KUBE-LOOP-BACK"])
    assert leftovers.destroy_sets(["KUBE-CLUSTER-IP", "KUBE-LOOP-BACK", "KUBE-IPVS-IPS"], sets, 60.0) == []
    assert sets.there == {"MINE"}


def test_a_set_that_stays_in_use_is_named():
    sets = IpsetsInUse("KUBE-LOOP-BACK", busy=["KUBE-LOOP-BACK"], times=1 << 30)
    assert leftovers.destroy_sets(["KUBE-LOOP-BACK"], sets, 0.0) == ["ipset KUBE-LOOP-BACK is in use (error 4100)"]


def test_a_kernel_without_ipset_is_not_asked(monkeypatch, tmp_path):
    monkeypatch.setattr(leftovers, "IPSET_MODULE", tmp_path / "absent")
    assert leftovers.destroy_sets(["KUBE-LOOP-BACK"], None, 60.0) == []
