"""A node in memory that is given objects of all kinds: what nftables and IPVS then have, and what must hold of it.

`served` runs objects through manifests, decoder, planner and loop. No text that it makes may be more than our
ruleset and elements of addresses, protocols and ports.
"""

import ipaddress
import json
import re

from ipvsproxy.base.address import parse_ip
from ipvsproxy.exchange.inbox import Inbox, Kind, Listed
from ipvsproxy.kernel.ruleset import layout
from ipvsproxy.kernel.scripts import PARTS, part, ruleset
from ipvsproxy.kube import manifest_file
from ipvsproxy.kube.text import Unreadable
from ipvsproxy.plan.model import Protocol
from ipvsproxy.process.assembly import make_loop
from tests.support import hostile
from tests.support.build import config
from tests.support.memory_kernel import MemoryNode

MOST_SLICES = 1000
GOOD = [
    hostile.node(),
    hostile.service("good", "10.96.0.100", type="ClusterIP", externalIPs=[], loadBalancerSourceRanges=[]),
    hostile.endpoint_slice("good-1", "good", "10.244.1.9", "10.244.2.9"),
]
GOOD[1]["metadata"]["creationTimestamp"] = "2020-01-01T00:00:00Z"
GOOD[1]["status"] = {}
for number, found in enumerate(GOOD[1]["spec"]["ports"]):
    found["nodePort"] = 31000 + number
COMMAND = re.compile(r"(add|delete) element (?:inet|arp|ip|ip6) ipvsproxy ([a-z_]+[46]?) { (.+) }")
ADMISSION = re.compile(r"\t\tip6? saddr (\S+) return")
ADMISSIONS = re.compile(
    r"insert rule inet ipvsproxy excluded meta l4proto { tcp, udp, sctp }"
    r" ct original ip6? daddr . meta l4proto . ct original proto-dst vmap { (.+) }"
)
LATE_CHAIN = re.compile(r"\tchain late_\d+ {|delete chain inet ipvsproxy late_\d+")
FIXED = {
    f'add table inet ipvsproxy {{ comment "{layout(ruleset())}"; }}',
    *(f"{verb} table {family} ipvsproxy" for verb in ("add", "delete") for family in ("inet", "arp", "ip", "ip6")),
    "flush chain inet ipvsproxy excluded",
    "add rule inet ipvsproxy excluded drop",
    *("table inet ipvsproxy {", "\t\tdrop", "\t}", "}"),
}
VERDICTS = re.compile(r"accept|drop|goto [a-z_]+|goto late_\d+|[0-9a-f.:]+ \. \d+|")


def an_address(text):
    ipaddress.ip_network(text, strict=False)


def a_word(text):
    """Fail unless the text is an address or range, a protocol, or a port, and nothing else."""
    if text not in {p.name.lower() for p in Protocol} and not (text.isdecimal() and int(text) <= 65535):
        an_address(text)


def check_text(transactions):
    """Fail unless nftables gets our ruleset and elements of addresses, protocols and ports, and nothing else."""
    for text in transactions:
        rest = text.replace(ruleset(parts=()), "")
        for name in PARTS:
            rest = rest.replace(part(name), "")
        lines = [line for line in rest.splitlines() if line]
        for line in lines:
            if line in FIXED or LATE_CHAIN.fullmatch(line):
                continue
            if admission := ADMISSION.fullmatch(line):
                an_address(admission[1])
                continue
            match = COMMAND.fullmatch(line) or ADMISSIONS.fullmatch(line)
            assert match, line
            for item in match[match.lastindex].split(", "):
                key, _, value = item.partition(" : ")
                assert VERDICTS.fullmatch(value), item
                for word in key.split(" . "):
                    a_word(word)


def _lists(objects):
    """Read objects as from a manifest file; return events for all of them, and what the file holds."""
    content = manifest_file.FileContent()
    for item in objects:
        try:
            read = manifest_file.parse("m.json", json.dumps(item).encode())
        except Unreadable:
            continue  # infinity is no JSON
        manifest_file._log_content("m.json", manifest_file.FileContent(), read)
        content.good.update(read.good)
    lists = {kind: {} for kind in Kind}
    for (kind, key), value in content.good.items():
        if value is not None:
            lists[kind][key] = value
    return [Listed(kind, found) for kind, found in lists.items()], content


def _record(ipvs):
    """Keep all steps in `ipvs.steps`."""
    ipvs.steps, apply = [], ipvs.apply

    def recorded(steps):
        ipvs.steps += steps
        return apply(steps)

    ipvs.apply = recorded


def _reconcile(loop, events):
    """Handle events, with all slices of what follows."""
    loop.reconcile(events)
    for _ in range(MOST_SLICES):
        if loop.timeout() != 0:
            return
        loop.reconcile([])
    raise AssertionError("the loop finds no end")


def served(objects, then=(), after=lambda *_: None, **limits):
    """Run objects through manifests, decoder, planner and loop; return the node and what was understood.

    `then` are lists that follow, each in place of the one before. `after` is called after each of them.
    """
    node = MemoryNode([parse_ip("192.0.2.1"), parse_ip("10.244.1.1")])
    _record(node.ipvs)
    loop = make_loop(config(cluster_cidrs=("10.244.0.0/16",), **limits), Inbox(), node.kernel(), lambda: 1000.0)
    events, content = _lists(objects)
    _reconcile(loop, events)
    check_text(node.nft.transactions)
    after(node, objects)
    for later in then:
        _reconcile(loop, _lists(later)[0])
        check_text(node.nft.transactions)
        after(node, later)
    return node, content


def of_good(node):
    """Everything in the kernel that the good Service has."""
    mine = [
        name for name in node.ipvs.table if name.address == parse_ip("10.96.0.100") or name.port in (31000, 31001)
    ]
    # But for a bad slice that names the address as an endpoint: it may then reach itself.
    of_others = "10.96.0.100 . 10.96.0.100"
    lines = [line for line in node.nft.dump().splitlines() if of_others not in line]
    rules = [line for line in lines if "10.96.0.100" in line or " . 3100" in line]
    return {str(name): (node.ipvs.table[name].server, node.ipvs.table[name].destinations) for name in mine}, rules
