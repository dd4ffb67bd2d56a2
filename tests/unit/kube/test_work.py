"""From bytes to objects, and from objects to Services that are to be planned: in proportion to their size."""

import json
from pathlib import Path

import pytest

from ipvsproxy.base.address import format_ip
from ipvsproxy.exchange.inbox import Changed, Kind, Listed, Removed
from ipvsproxy.kube.decode import decode_json
from ipvsproxy.kube.endpoint_slice import MOST_HINTS
from ipvsproxy.kube.manifest_file import File
from ipvsproxy.kube.manifests import Folder
from ipvsproxy.kube.store import Store
from ipvsproxy.kube.tree import FoundFiles
from ipvsproxy.plan.local import LocalView
from ipvsproxy.serve.services import ServicePorts
from tests.support.build import service as built
from tests.support.build import slice_of
from tests.support.hostile import endpoint_slice, service
from tests.support.work import growth

BELOW_QUADRATIC = 2.0


def ip(number, first=100):
    return format_ip(bytes((first, number >> 16, number >> 8 & 255, number & 255)))


def ports(count):
    return [
        {"name": f"p{n}", "port": n + 1, "nodePort": 30000 + n % 2767, "protocol": "TCP"} for n in range(count)
    ]


SERVICES = {
    "ports": lambda n: {"ports": [{"name": f"p{k}", "port": k + 1, "protocol": "TCP"} for k in range(n)]},
    "external IPs": lambda n: {"externalIPs": [ip(k) for k in range(n)]},
    "external IPs that are none": lambda n: {"externalIPs": [f"{ip(k)}/32" for k in range(n)]},
    "ranges": lambda n: {"loadBalancerSourceRanges": [f"{ip(k)}/32" for k in range(n)]},
    "ranges that are none": lambda n: {"loadBalancerSourceRanges": ["10.0.0.0/8", *(ip(k) for k in range(n))]},
}


@pytest.mark.parametrize("what", SERVICES)
def test_decoding_a_service_costs_what_its_size_is(what):
    def prepare(size):
        data = json.dumps(service("web", "10.96.0.9", **SERVICES[what](size))).encode()
        return lambda: decode_json(Kind.SERVICE, data)

    assert growth(prepare) < BELOW_QUADRATIC


@pytest.mark.parametrize("of", ["endpoints", "wrong endpoints", "ports"])
def test_decoding_a_slice_costs_what_its_size_is(of):
    def prepare(size):
        tree = endpoint_slice("web", "web", "10.244.1.1")
        if of == "ports":
            tree["ports"] = [{"name": f"p{n}", "port": n + 1} for n in range(size)]
        else:
            tree["endpoints"] = [{"addresses": [ip(n) + "x" * (of != "endpoints")]} for n in range(size)]
        data = json.dumps(tree).encode()
        return lambda: decode_json(Kind.ENDPOINT_SLICE, data)

    assert growth(prepare) < BELOW_QUADRATIC


def test_an_endpoint_has_no_more_hints_than_the_api_server_takes():
    tree = endpoint_slice("web", "web", "10.244.1.1")
    tree["endpoints"][0]["hints"] = {
        kind: [{"name": f"h{n}"} for n in range(1000)] for kind in ("forZones", "forNodes")
    }
    [found] = decode_json(Kind.ENDPOINT_SLICE, json.dumps(tree).encode()).object.endpoints
    assert len(found.zone_hints) == len(found.node_hints) == MOST_HINTS


def test_the_store_takes_objects_in_proportion():
    def prepare(size):
        services = {item.key: item for item in (built(f"s{n}") for n in range(size))}
        pieces = {p.key: p for p in (slice_of(f"s{n % 7}", "10.244.1.1", name=f"p{n}") for n in range(size))}

        def work():
            store = Store("node1")
            store.apply(Listed(Kind.SERVICE, services))
            store.apply(Listed(Kind.ENDPOINT_SLICE, pieces))
            for key, item in pieces.items():
                store.apply(Removed(Kind.ENDPOINT_SLICE, key))
                store.apply(Changed(Kind.ENDPOINT_SLICE, key, item))
            for key in store.take_dirty():
                list(store.slices(key))
            store.apply(Listed(Kind.SERVICE, {}))

        return work

    assert growth(prepare) < BELOW_QUADRATIC


def test_health_check_ports_are_listed_in_proportion():
    def prepare(size):
        known = ServicePorts(lambda: True, lambda _: None)
        known.listen_on({4: (bytes(4),)})
        for n in range(size):
            known.set(f"a/s{n}", LocalView(f"a/s{n}", "", 30000 + n, {4: 1}, frozenset()))
        return known.take_listeners

    assert growth(prepare) < BELOW_QUADRATIC


def test_what_was_in_folders_that_cannot_be_read_is_found_without_a_search():
    def prepare(size):
        folder, problems = Folder(Path("/manifests")), {f"d{n}/": "Permission denied" for n in range(size)}
        folder._files = {f"d{n}/sub/a.yaml": File("a.yaml", Path("/none")) for n in range(size)}
        folder._problems = set(problems.items())  # they are known, and cost no lines
        return lambda: folder._unreadable(FoundFiles({}, [], [], problems))

    assert len(prepare(3)()) == 3
    assert growth(prepare) < BELOW_QUADRATIC
