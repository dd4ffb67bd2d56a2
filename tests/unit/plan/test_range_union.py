"""The widest of ranges that come and go are those that `disjoint` finds among all of them."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ipvsproxy.base.address import Cidr, disjoint, parse_cidr
from ipvsproxy.plan.range_union import RangeUnion
from tests.support.work import instructions


def cidrs(size):
    """Few networks and all lengths, so that ranges nest, and the last address is among them."""
    numbers = st.integers(0, 15).map(lambda bits: (bits >> 2 << size * 8 - 2) | bits & 3)
    lengths = st.sampled_from((0, 1, 2, size * 8 - 2, size * 8 - 1, size * 8))
    return st.builds(lambda number, prefix: _masked(number, prefix, size), numbers, lengths)


def _masked(number, prefix, size):
    shift = size * 8 - prefix
    return Cidr((number >> shift << shift).to_bytes(size), prefix)


@pytest.mark.parametrize("size", [4, 16])
def test_the_widest_ranges_are_those_of_all(size):
    @given(st.lists(st.tuples(st.lists(cidrs(size), max_size=4), st.integers(0, 3)), max_size=12))
    def histories(changes):
        union, present, widest = RangeUnion(), Counter(), set()
        for coming, removed in changes:
            leaving = sorted(present.elements())[:removed]
            gone, new = union.change(leaving, coming)
            assert gone <= widest
            assert widest.isdisjoint(new)
            widest = widest - gone | new
            present += Counter(coming)
            present -= Counter(leaving)
            assert widest == set(disjoint(present))
            assert bool(union) is bool(present)

    histories()


def test_a_range_costs_the_same_among_few_and_many():
    def cost(number):
        union = RangeUnion()
        union.change((), [Cidr((2 * n).to_bytes(4), 32) for n in range(number)])
        own = [parse_cidr("203.0.113.0/24")]
        return instructions(lambda: (union.change((), own), union.change(own, ())))

    assert cost(20_000) < 1.2 * cost(20)
