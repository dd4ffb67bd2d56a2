import errno

import pytest
from structlog.testing import capture_logs

from ipvsproxy.kernel import forward
from ipvsproxy.kernel.netlink import KernelError, Lost, attribute
from nft.fake import FakeNft


@pytest.mark.parametrize(
    "error", [Lost("netlink request", errno.ENOBUFS), KernelError("netlink dump", errno.EPERM)]
)
def test_chains_of_others_that_cannot_be_read_cost_nothing_else(monkeypatch, error):
    class Mute:
        def __init__(self, protocol):
            pass

        def request(self, _question):
            raise error

    monkeypatch.setattr(forward, "Wire", Mute)
    nft = FakeNft()
    with capture_logs() as logs:
        forward.Forwarding(nft).ensure()
    assert nft.transactions == []
    assert [entry["family"] for entry in logs] == ["ip", "ip6"]


class Chains:
    """The FORWARD chains of iptables-nft in both families, with our rule of an earlier mark."""

    def __init__(self, protocol):
        pass

    def request(self, _question):
        return b""

    def dump(self, _question):
        text = b"ipvsproxy replies 0x8000\0"
        data = bytes((0, len(text))) + text
        handle = attribute(forward.NFTA_RULE_HANDLE, (7).to_bytes(8, "big"))
        return [bytes(forward.NFGENMSG.size) + handle + attribute(forward.NFTA_RULE_USERDATA, data)]


@pytest.fixture
def forwarding(monkeypatch):
    monkeypatch.setattr(forward, "Wire", Chains)
    nft = FakeNft()
    return forward.Forwarding(nft), nft


def test_a_rule_of_another_mark_stays_until_ours_counts(forwarding):
    forwarding, nft = forwarding
    with capture_logs() as logs:
        forwarding.ensure()
    assert [text[:32] for text in nft.transactions] == [
        "insert rule ip filter FORWARD me", "insert rule ip6 filter FORWARD m",
    ]  # fmt: skip
    # At the head: behind a rule that drops it would be none.
    assert all(len(text.splitlines()) == 1 for text in nft.transactions)
    assert [entry["log_level"] for entry in logs] == ["info", "info"]
    nft.transactions.clear()
    forwarding.tidy()
    assert nft.transactions == [
        "delete rule ip filter FORWARD handle 7\n", "delete rule ip6 filter FORWARD handle 7\n"
    ]  # fmt: skip


def test_an_old_rule_that_cannot_be_removed_is_told(forwarding):
    forwarding, nft = forwarding
    nft.fail_next = errno.EBUSY
    with capture_logs() as logs:
        forwarding.tidy()
    assert [entry["event"] for entry in logs] == ["rule of FORWARD could not be removed"]


def test_a_rule_that_cannot_be_added_is_not_said_to_be(forwarding):
    forwarding, nft = forwarding
    nft.fail_next = errno.EBUSY
    with capture_logs() as logs:
        forwarding.ensure()
    assert [entry["log_level"] for entry in logs] == ["warning", "info"]


def test_a_rule_that_cannot_be_removed_is_told(forwarding):
    forwarding, nft = forwarding
    nft.fail_next = errno.EBUSY
    (problem,) = forwarding.remove()
    assert problem.startswith("rule in ip filter FORWARD: ")
    assert forwarding.remove() == []
