"""Objects with something wrong in them cost only themselves, from the manifest to the text that nftables gets.

OBJECTS=5000 tries as many mutations in each test.
"""

import ipaddress
import json
import os
import re

import hostile
import pytest
from build import config
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from memory_kernel import MemoryNode
from structlog.testing import capture_logs

from ipvsproxy import log as log_settings
from ipvsproxy.address import parse_ip
from ipvsproxy.kernel.ruleset import layout
from ipvsproxy.kube import manifest_file
from ipvsproxy.kube.decode import decode_json, decode_mapping
from ipvsproxy.kube.decoded import Decoded, Refused
from ipvsproxy.kube.documents import Unreadable
from ipvsproxy.kube.inbox import Inbox, Kind, Listed
from ipvsproxy.loop import Loop
from ipvsproxy.plan.model import Protocol
from nft import ruleset

EXAMPLES = int(os.environ.get("OBJECTS", "60"))
many = settings(max_examples=EXAMPLES, deadline=None, suppress_health_check=list(HealthCheck))
SERVICE = hostile.service("web", "10.96.0.10")
SLICE = hostile.endpoint_slice("web-1", "web", "10.244.1.5", "10.244.2.5")
GOOD = [
    hostile.node(),
    hostile.service("good", "10.96.0.100", type="ClusterIP", externalIPs=[], loadBalancerSourceRanges=[]),
    hostile.endpoint_slice("good-1", "good", "10.244.1.9", "10.244.2.9"),
]
GOOD[1]["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
GOOD[1]["status"] = {}
for number, found in enumerate(GOOD[1]["spec"]["ports"]):
    found["nodePort"] = 31000 + number
COMMAND = re.compile(r"(add|delete) element (?:inet|arp) ipvsproxy ([a-z_]+[46]?) { (.+) }")
ADMISSION = re.compile(
    r"insert rule inet ipvsproxy shut_out ct original ip6? daddr (\S+) meta l4proto (\S+)"
    r" ct original proto-dst (\S+) ip6? saddr (\S+) return"
)
FIXED = {
    f'add table inet ipvsproxy {{ comment "{layout(ruleset())}"; }}',
    *(f"{verb} table {family} ipvsproxy" for verb in ("add", "delete") for family in ("inet", "arp")),
    "flush chain inet ipvsproxy shut_out",
    "add rule inet ipvsproxy shut_out drop",
}
VERDICTS = re.compile(r"accept|drop|goto [a-z_]+|[0-9a-f.:]+ \. \d+|")
LINE = re.compile(r"[IWE]\d{4} \d\d:\d\d:\d\d\.\d{6} +\d+ \w+\.py:\d+\] .*")


def an_address(text):
    ipaddress.ip_network(text, strict=False)


def a_part(text):
    """Fail unless the text is an address or range, a protocol, or a port, and nothing else."""
    if text not in {p.name.lower() for p in Protocol} and not (text.isdecimal() and int(text) <= 65535):
        an_address(text)


def check_text(transactions):
    """Fail unless nftables gets our ruleset and elements of addresses, protocols and ports, and nothing else."""
    for text in transactions:
        rest = text.replace(ruleset(), "")
        lines = [line for line in rest.splitlines() if line]
        for line in lines:
            if line in FIXED:
                continue
            if admission := ADMISSION.fullmatch(line):
                for part in admission.groups():
                    a_part(part)
                continue
            match = COMMAND.fullmatch(line)
            assert match, line
            for item in match[3].split(", "):
                key, _, value = item.partition(" : ")
                assert VERDICTS.fullmatch(value), item
                for part in key.split(" . "):
                    a_part(part)


def served(objects):
    """Run objects through manifests, decoder, planner and loop; return the kernel and the log."""
    content = manifest_file.Content()
    for item in objects:
        try:
            read = manifest_file.parse("m.json", json.dumps(item).encode())
        except Unreadable:
            continue  # infinity is no JSON
        manifest_file._log_content("m.json", manifest_file.Content(), read)
        content.good.update(read.good)
    node = MemoryNode([parse_ip("192.0.2.1"), parse_ip("10.244.1.1")])
    loop = Loop(config(cluster_cidrs=("10.244.0.0/16",)), Inbox(), node.kernel(), lambda: 1000.0)
    lists = {kind: {} for kind in Kind}
    for (kind, key), value in content.good.items():
        if value is not None:
            lists[kind][key] = value
    loop.turn([Listed(kind, found) for kind, found in lists.items()])
    check_text(node.nft.transactions)
    return node, content


def line(entry):
    """Return a captured log entry as it is written."""
    place = {"level": entry.pop("log_level"), "filename": "x.py", "lineno": 1}
    return log_settings.klog(None, "", {**entry, **place})


def of_good(node):
    """Everything in the kernel that the good Service has."""
    mine = [
        name for name in node.ipvs.table if name.address == parse_ip("10.96.0.100") or name.port in (31000, 31001)
    ]
    # But for a bad slice that names the address as an endpoint: it may then reach itself.
    of_others = "10.96.0.100 . 10.96.0.100"
    lines = [line for line in node.nft.dump().splitlines() if of_others not in line]
    rules = [line for line in lines if "10.96.0.100" in line or " . 3100" in line]
    return {str(name): (node.ipvs.table[name].server, node.ipvs.table[name].weights) for name in mine}, rules


@pytest.mark.parametrize("kind", list(Kind))
@many
@given(data=st.data())
def test_the_decoder_refuses_or_understands(kind, data):
    tree = {Kind.SERVICE: SERVICE, Kind.ENDPOINT_SLICE: SLICE, Kind.NODE: hostile.node()}[kind]
    bad = data.draw(hostile.mutated(tree))
    for decode, form in ((decode_mapping, bad), (decode_json, json.dumps(bad).encode())):
        try:
            found = decode(kind, form)
        except Refused as refused:
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
    assert len(state.weights) == 10_000


def test_two_services_that_want_the_same_frontends():
    twins = [hostile.service(name, "10.96.0.10") for name in ("b", "a")]
    node, _ = served([*twins, hostile.endpoint_slice("a-1", "a", "10.244.1.5"), *GOOD])
    (state,) = [s for name, s in node.ipvs.table.items() if str(name) == "10.96.0.10:80/TCP"]
    assert [str(destination) for destination in state.weights] == ["10.244.1.5:8080"]
    assert of_good(node) == of_good(served(GOOD)[0])
