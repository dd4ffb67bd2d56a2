import pytest

from ipvsproxy.base.budget import Budget, Rate, namespace_of
from tests.support.clock import Clock


@pytest.fixture
def clock():
    return Clock(100.0)


def taken(budget, namespace, count=100):
    return sum(budget.take(namespace) for _ in range(count))


def test_a_namespace_spends_its_own_budget_only(clock):
    budget = Budget(clock, Rate(5, 10.0))
    assert taken(budget, "a") == 5
    assert taken(budget, "b") == 5
    clock.now += 25
    assert taken(budget, "a") == 2


def test_all_namespaces_together_leave_the_node_its_reserve(clock):
    budget = Budget(clock, Rate(5, 10.0), node=Rate(3, 60.0), together=Rate(8, 10.0))
    assert [taken(budget, name) for name in ("a", "b", "c", "")] == [5, 3, 0, 3]


def test_lines_that_one_namespace_may_not_log_cost_the_others_nothing(clock):
    budget = Budget(clock, Rate(5, 30.0), together=Rate(8, 10.0))
    taken(budget, "a", 1000)
    assert taken(budget, "b", 3) == 3
    clock.now += 600
    taken(budget, "a", 1000)
    assert taken(budget, "b", 3) == 3


def test_what_was_not_logged_is_summed_up(clock):
    budget = Budget(clock, Rate(5, 10.0))
    taken(budget, "a")
    taken(budget, "b", 7)
    taken(budget, "c", 5)
    assert budget.take_withheld("a") == 95
    assert budget.take_withheld("a") == budget.take_withheld("unknown") == 0
    assert budget.take_all_withheld() == {"b": 2}


def test_namespaces_that_are_long_gone_take_no_memory(clock):
    budget = Budget(clock, Rate(5, 10.0), node=Rate(1, 1.0))
    for number in range(5000):
        clock.now += 100
        budget.take(f"n{number}")
    assert len(budget._buckets) < 1000
    assert taken(budget, "", 1) == 1


def test_the_namespace_of_an_object():
    assert namespace_of("default/web") == "default"
    assert namespace_of("node1") == ""
