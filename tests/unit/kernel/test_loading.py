"""The rules of any version are replaced in one transaction; what the kernel shows late is covered by rules."""

import errno

import pytest
from memory_kernel import Fault, MemoryForwarding, MemoryNode, MemoryStamp
from structlog.testing import capture_logs

from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.netlink import KernelError
from ipvsproxy.kernel.ruleset import layout, read_comment
from ipvsproxy.plan.rules import admission
from ipvsproxy.plan.state import Slot
from nft import NftError, ruleset

RANGE = Slot("allowed4", "203.0.113.5 . tcp . 443 . 10.0.0.0/8")
ELEMENTS = {Slot("vips4", "203.0.113.5"): "", Slot("ranged4", "203.0.113.5 . tcp . 443"): "", RANGE: ""}
REPLACED = "rules of another version replaced"


@pytest.fixture
def node():
    return MemoryNode()


@pytest.fixture
def stamp(node):
    return MemoryStamp(node.nft)


@pytest.fixture
def kernel(node, stamp):
    return Kernel(node.ipvs, node.links, node.nft, stamp, MemoryForwarding(node.faults), conntrack=node.conntrack)


def test_tables_of_all_families_go_in_the_transaction_that_makes_the_new_ones(node, stamp, kernel):
    stamp.others = {"inet": "", "ip6": "", "netdev": "", "arp": ""}
    kernel.rules.load({})
    (text,) = node.nft.transactions
    lines = text.splitlines()
    assert lines[:6] == [
        "add table inet ipvsproxy",
        "delete table inet ipvsproxy",
        "add table arp ipvsproxy",
        "delete table arp ipvsproxy",
        "delete table ip6 ipvsproxy",
        "delete table netdev ipvsproxy",
    ]
    assert lines[6] == f'add table inet ipvsproxy {{ comment "{layout(ruleset())}"; }}'


@pytest.mark.parametrize(
    ("others", "was"),
    [({}, []), ({"inet": layout(ruleset())}, []), ({"inet": ""}, ["unknown"]), ({"inet": "v9"}, ["v9"])],
)
def test_the_rules_of_another_version_are_mentioned(stamp, kernel, others, was):
    stamp.others = others
    with capture_logs() as logs:
        kernel.rules.load({})
    assert [entry["was"] for entry in logs if entry["event"] == REPLACED] == was


def test_other_rules_have_another_layout():
    assert len({layout(ruleset()), layout(ruleset(0x8000)), layout(ruleset(quiet_arp=False))}) == 3


def test_a_comment_is_read_as_libnftables_writes_it():
    assert (read_comment(b"\0\3v1\0"), read_comment(b""), read_comment(b"\1\3xx\0")) == ("v1", "", "")


def test_tables_that_cannot_be_read_do_not_keep_the_rules_from_being_loaded(node, kernel):
    node.faults.plan(0, Fault("refused"))
    kernel.rules.load(ELEMENTS)
    assert kernel.shadow.elements == ELEMENTS


def test_source_ranges_are_rules_until_their_sets_are_seen(node, kernel):
    kernel.rules.load(ELEMENTS)
    first, second = node.nft.transactions
    assert first.splitlines()[-1] == f"insert rule inet ipvsproxy shut_out {admission(RANGE)}"
    assert second == "flush chain inet ipvsproxy shut_out\nadd rule inet ipvsproxy shut_out drop\n"


def test_rules_for_source_ranges_that_could_not_be_withdrawn_go_with_the_next_loading(node, kernel):
    """They would go on letting in what has been shut out since."""
    kernel.rules.load({})
    node.nft.transactions.clear()
    # The tables, the rule of FORWARD, the number before, the transaction, the number after, the other mark's rule.
    after = next(n for n in range(20) if fails(node, kernel, n))
    assert after
    with capture_logs() as logs:
        kernel.settle_doubts()
    assert "nftables ruleset is not as left, loading it again" in [entry["event"] for entry in logs]
    assert node.nft.transactions[-1].endswith("add rule inet ipvsproxy shut_out drop\n")


def fails(node, kernel, after):
    """Load with one call that fails after so many others; tell whether it was the second transaction."""
    node.nft.transactions.clear()
    node.faults.coming.clear()
    node.faults.plan(after, Fault("refused", errno.ENOMEM))
    try:
        kernel.rules.load(ELEMENTS)
    except (NftError, KernelError):
        return len(node.nft.transactions) == 1 and kernel.rules.in_doubt
    return False
