"""How much is kept of one kind: in all, and of one namespace."""

import tracemalloc

import pytest

from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.ceilings import ObjectRoom, units
from ipvsproxy.kube.decode import decode_json
from tests.support.build import service, slice_of

SLICE = '{"metadata":{"name":"a","labels":{"kubernetes.io/service-name":"a"}},"addressType":"IPv4",%s}'
SERVICE = '{"metadata":{"name":"a"},"spec":{"clusterIP":"10.0.0.1","type":"LoadBalancer","ports":[{"port":1}],%s}}'


def test_a_new_version_takes_the_room_of_the_old_one():
    addresses = [f"10.0.0.{n}" for n in range(1, 18)]
    room, small, large = ObjectRoom(40), slice_of("web", addresses[0]), slice_of("web", *addresses)
    assert (units(small), units(large)) == (4, 20)
    for _ in range(10):
        assert room.take("a/web", small) == ""
        assert room.take("a/web", large) == ""
    assert room.take("b/web", large) == ""
    assert "40 units in all" in room.take("c/web", small)
    room.drop("b/web")
    assert room.take("c/web", large) == ""


def test_one_namespace_leaves_half_of_the_room_to_others():
    room, value = ObjectRoom(40), slice_of("web", "10.0.0.1")
    taken = [room.take(f"greedy/web-{n}", value) for n in range(10)]
    assert taken[:5] == [""] * 5
    assert all("in namespace greedy are larger than 20 units" in reason for reason in taken[5:])
    assert room.take("other/web", value) == ""
    # What does not fit changes nothing: the version that was there goes on counting.
    assert room.take("greedy/web-0", value) == ""


@pytest.mark.parametrize("count", [1, 100])
def test_a_service_counts_with_what_it_is_made_of(count):
    value = service(external_ips=[f"198.51.100.{n}" for n in range(count)])
    assert units(value) == 6 + count


@pytest.mark.parametrize(
    ("kind", "form", "field", "item"),
    [
        (Kind.ENDPOINT_SLICE, SLICE, "endpoints", "{}"),
        (Kind.ENDPOINT_SLICE, SLICE, "endpoints", '{"addresses":["x"]}'),
        (Kind.ENDPOINT_SLICE, SLICE, "ports", '{"port":1}'),
        (Kind.SERVICE, SERVICE, "externalIPs", '""'),
        (Kind.SERVICE, SERVICE, "loadBalancerSourceRanges", '"10.0.0.0/8"'),
    ],
)
def test_decoding_costs_memory_in_proportion_to_the_text(kind, form, field, item):
    text = (form % f'"{field}":[{",".join([item] * 50_000)}]').encode()
    tracemalloc.start()
    try:
        decode_json(kind, text)
        assert tracemalloc.get_traced_memory()[1] < 64 * len(text)
    finally:
        tracemalloc.stop()
