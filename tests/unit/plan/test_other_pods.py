"""Pods of other nodes by their addresses, however they come, change and go."""

from hypothesis import given
from hypothesis import strategies as st

from ipvsproxy.plan.other_pods import OtherPods

ONE, TWO = b"\x0a\xf4\x02\x01", b"\x0a\xf4\x02\x02"
CHANGES = st.lists(
    st.tuples(st.sampled_from(["a/one", "a/two", "b/one"]), st.lists(st.sampled_from([ONE, TWO]), unique=True))
)


def test_what_has_changed_is_named():
    pods = OtherPods()
    assert pods.put("a/one", (ONE,)) == {ONE}
    assert pods.put("a/one", (ONE,)) == set()
    assert pods.put("a/one", (TWO,)) == {ONE, TWO}
    assert pods.put("a/one", ()) == {TWO}
    assert pods.put("a/one", ()) == set()


@given(CHANGES)
def test_any_history_ends_as_the_last_version_of_each_pod_asks(changes):
    pods = OtherPods()
    for key, addresses in changes:
        pods.put(key, tuple(addresses))
    last = {key: addresses for key, addresses in dict(changes).items() if addresses}
    assert set(pods.keys) == set(last)
    for address in (ONE, TWO):
        owners = {key for key, addresses in last.items() if address in addresses}
        assert pods.namespaces_at(address) == {key.partition("/")[0] for key in owners}
    for space in "ab":
        found = [a for key, addresses in last.items() if key.startswith(space) for a in addresses]
        assert sorted(pods.addresses_in(space)) == sorted(found)
