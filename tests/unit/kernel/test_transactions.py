"""Which notices of the kernel are about our own transactions."""

import pytest

from ipvsproxy.kernel.transactions import OWN_NAME, Transactions
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.notification import RulesChanged
from nft import NftError


class GenerationCounter:
    """The kernel's count of transactions; `others` had so many between our two looks at it."""

    def __init__(self):
        self.number, self.others, self.refused, self.unreadable = 0, 0, False, False

    def run(self, _):
        self.number += self.others
        if self.refused:
            raise NftError(22, "no")
        self.number += 1

    def generation(self):
        if self.unreadable:
            raise KernelError("reading", 105)
        return self.number


@pytest.fixture
def node():
    return GenerationCounter()


@pytest.fixture
def transactions(node):
    return Transactions(node, node)


def told(number, program=OWN_NAME):
    return RulesChanged(number, frozenset(("vips4",)), False, program)


def test_ours_is_known_by_its_number_and_reported_once(transactions):
    transactions.run(None)
    transactions.run(None)
    assert transactions.consume_own(told(2, "whoever"))
    assert not transactions.consume_own(told(2))
    assert not transactions.consume_own(told(1))  # the kernel tells them in order
    assert not transactions.consume_own(told(3))


def test_where_others_were_at_work_the_program_has_to_tell(transactions, node):
    node.others = 1
    transactions.run(None)
    assert not transactions.consume_own(told(1, "nft"))
    assert not transactions.consume_own(told(2, "nft"))
    assert transactions.consume_own(told(2))


def test_one_that_was_refused_is_nobodys(transactions, node):
    node.refused = True
    with pytest.raises(NftError):
        transactions.run(None)
    assert not transactions.consume_own(told(1))


def test_one_whose_number_cannot_be_read_is_taken_for_anothers(transactions, node):
    node.unreadable = True
    transactions.run(None)
    assert not transactions.consume_own(told(1))
