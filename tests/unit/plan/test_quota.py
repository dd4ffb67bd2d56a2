from hypothesis import given
from hypothesis import strategies as st

from ipvsproxy.plan.quota import Quota
from ipvsproxy.plan.waiting import RankedService


def owner(name, created="2026"):
    return RankedService(created, name)


def quota(limit, node=0, **services):
    """Names are NAMESPACE_NAME, values the sizes by tiers, or (age, sizes)."""
    made = Quota(limit, node)
    for name, sizes in services.items():
        made.set(owner(name.replace("_", "/")), sizes)
    made.settle()
    return made


def tiers(made, *names):
    return [made.tiers(name) for name in names]


def test_below_the_limit_everything_is_served():
    made = quota(100, a_x=(50, 0, 0, 0), a_y=(20, 20, 5, 5))
    assert tiers(made, "a/x", "a/y", "a/unknown", "b/unknown") == [4, 4, 4, 4]


def test_cluster_ips_of_all_come_before_node_ports_of_any():
    made = quota(100, a_x=(10, 60, 0, 0), a_y=(10, 60, 0, 0))
    # In the tier that is not served in full, names decide between Services of one age.
    assert tiers(made, "a/x", "a/y") == [4, 1]
    assert quota(100, a_x=(10, 0, 0, 60), a_y=(10, 60, 0, 0)).tiers("a/x") == 3


def test_the_older_ones_come_first():
    made = Quota(100, 0)
    made.set(owner("a/young", "2026"), (10, 60, 0, 0))
    made.set(owner("a/old", "2020"), (10, 60, 0, 0))
    assert made.settle() == ["a/young"]
    assert made.tiers("a/young") == 1


def test_what_fits_again_is_named():
    made = quota(100, a_x=(10, 60, 0, 0), a_y=(10, 60, 0, 0))
    assert made.settle() == []
    made.set(owner("a/x"), (10, 0, 0, 0))
    assert made.settle() == ["a/y"]
    made.set(owner("a/x"), (10, 90, 0, 0))
    assert set(made.settle()) == {"a/x", "a/y"}
    made.forget("a/x")
    assert made.settle() == ["a/y"]
    assert tiers(made, "a/y") == [4]


def test_one_namespace_costs_another_nothing():
    made = quota(100, a_x=(500, 0, 0, 0), b_x=(60, 30, 0, 0))
    assert tiers(made, "a/x", "b/x") == [0, 4]


def test_a_full_node_is_shared_and_small_namespaces_do_not_notice():
    made = quota(1000, 100, a_x=(20, 500, 0, 0), b_x=(20, 500, 0, 0), c_x=(10, 5, 0, 0))
    assert tiers(made, "a/x", "b/x", "c/x") == [1, 1, 4]
    assert made.is_node_full
    made.forget("a/x")
    made.forget("b/x")
    made.settle()
    assert not made.is_node_full


SIZES = st.tuples(*[st.integers(0, 40)] * 4)
CHANGES = st.lists(
    st.tuples(
        st.sampled_from(["a/x", "a/y", "a/z", "b/x", "b/y", "c/x"]),
        st.one_of(st.none(), st.tuples(st.sampled_from(["2024", "2025"]), SIZES)),
        st.booleans(),
    )
)


@given(changes=CHANGES, limits=st.tuples(st.integers(20, 150), st.integers(20, 200)))
def test_any_history_ends_where_the_last_sizes_alone_would(changes, limits):
    made, known, seen = Quota(*limits), {}, {}
    for name, change, settles in changes:
        if change is None:
            known.pop(name, None)
            seen.pop(name, None)
            made.forget(name)
        else:
            known[name] = change
            made.set(owner(name, change[0]), change[1])
            seen[name] = made.tiers(name)
        if settles:
            for changed in made.settle():
                seen[changed] = made.tiers(changed)
    for changed in made.settle():
        seen[changed] = made.tiers(changed)
    fresh = Quota(*limits)
    for name, (created, sizes) in known.items():
        fresh.set(owner(name, created), sizes)
    fresh.settle()
    assert {name: made.tiers(name) for name in known} == {name: fresh.tiers(name) for name in known}
    # Whoever followed what was named knows the same.
    assert seen == {name: made.tiers(name) for name in known}
    served = sum(sum(sizes[: made.tiers(name)]) for name, (_, sizes) in known.items())
    assert served <= limits[1]
