"""Objects with something wrong in them cost only themselves, from the manifest to the text that nftables gets.

OBJECTS=5000 tries as many mutations in each test.
"""

import json
import os
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from structlog.testing import capture_logs

from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.decode import decode_json, decode_mapping
from ipvsproxy.kube.decoded import Decoded, InvalidObject
from ipvsproxy.process import log as log_settings
from tests.support import hostile
from tests.support.hostile_node import GOOD, of_good, served

EXAMPLES = int(os.environ.get("OBJECTS", "60"))
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
SERVICE = hostile.service("web", "10.96.0.10")
SLICE = hostile.endpoint_slice("web-1", "web", "10.244.1.5", "10.244.2.5")
NAMESPACE = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "blue", "labels": {"tenant": "blue"}}}
POD = {
    "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "web-0", "namespace": "blue"},
    "spec": {"nodeName": "node1", "hostNetwork": False},
    "status": {"phase": "Running", "podIP": "10.244.1.5", "podIPs": [{"ip": "10.244.1.5"}, {"ip": "fd00::5"}]},
}  # fmt: skip
LINE = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \w+\.py:\d+\] .*")


def line(entry):
    """Return a captured log entry as it is written."""
    place = {"level": entry.pop("log_level"), "filename": "x.py", "lineno": 1}
    return log_settings.klog(None, "", {**entry, **place})


@pytest.mark.parametrize("kind", list(Kind))
@many
@given(data=st.data())
def test_the_decoder_refuses_or_understands(kind, data):
    trees = {Kind.SERVICE: SERVICE, Kind.ENDPOINT_SLICE: SLICE, Kind.NODE: hostile.node()}
    tree = (trees | {Kind.NAMESPACE: NAMESPACE, Kind.POD: POD})[kind]
    bad = data.draw(hostile.mutated(tree))
    for decode, form in ((decode_mapping, bad), (decode_json, json.dumps(bad).encode())):
        try:
            found = decode(kind, form)
        except InvalidObject as refused:
            said = str(refused)
        else:
            assert isinstance(found, Decoded)
            said = "; ".join(found.complaints)
        assert len(said) < 3000


@many
@given(bad=st.lists(st.one_of(hostile.mutated(SERVICE), hostile.mutated(SLICE)), min_size=1, max_size=4))
def test_all_others_are_served_and_no_text_reaches_nftables(bad):
    node, _ = served([*bad, *GOOD])
    expected, _ = served(GOOD)
    assert of_good(node) == of_good(expected)
    assert of_good(node)[0]["10.96.0.100:80/TCP"][1]


def test_each_bad_object_is_one_line():
    bad = []
    for number, text in enumerate(hostile.INJECTIONS):
        named = hostile.service(text, "10.96.0.10")
        typed = hostile.service(f"typed{number}", "10.96.0.11", ports=[{"port": 80, "protocol": text}])
        addressed = hostile.endpoint_slice(f"slice{number}", "web", *[text] * (10_000 if number == 0 else 10))
        bad += [named, typed, addressed]
    with capture_logs() as logs:
        _, content = served([*bad, *GOOD])
    said = [line(entry) for entry in logs if "manifest object" in entry["event"]]
    assert len(said) == len(bad)
    assert all(LINE.fullmatch(text) and text.isprintable() and len(text) < 3000 for text in said)
    # A slice is served with what can be used of it.
    assert len([1 for kind, _ in content.good if kind is Kind.ENDPOINT_SLICE]) == len(hostile.INJECTIONS) + 1


def test_ten_thousand_endpoints_in_one_slice_are_served():
    addresses = [f"10.244.{number // 250}.{number % 250 + 1}" for number in range(10_000)]
    node, _ = served([SERVICE, hostile.endpoint_slice("web-1", "web", *addresses), *GOOD])
    (state,) = [s for name, s in node.ipvs.table.items() if str(name) == "10.96.0.10:80/TCP"]
    assert len(state.destinations) == 10_000


def test_two_services_that_want_the_same_frontends():
    twins = [hostile.service(name, "10.96.0.10") for name in ("b", "a")]
    node, _ = served([*twins, hostile.endpoint_slice("a-1", "a", "10.244.1.5"), *GOOD])
    (state,) = [s for name, s in node.ipvs.table.items() if str(name) == "10.96.0.10:80/TCP"]
    assert [str(destination) for destination in state.destinations] == ["10.244.1.5:8080"]
    assert of_good(node) == of_good(served(GOOD)[0])
