"""Chains and rules of legacy iptables, taken out of the blobs that the kernel hands out.

Layouts: include/uapi/linux/netfilter_ipv4/ip_tables.h, netfilter_ipv6/ip6_tables.h, netfilter/x_tables.h. A table
is one run of entries; hooks point into it, a chain of the user begins after an entry whose target is ERROR.
"""

import struct
from collections.abc import Iterator
from typing import NamedTuple

from msgspec.structs import replace

from ipvsproxy.kernel.filters.nf_tables import HOOKS
from ipvsproxy.kernel.filters.xt import read_match, read_target
from ipvsproxy.kernel.filters.xtables import PROGRAMS, Blob, blobs
from ipvsproxy.ruleset.filters import Condition, FilterChain, FilterRule

PRIORITIES = {"raw": -300, "mangle": -150, "nat": -100, "filter": 0, "security": 50}
NAT_SOURCE_PRIORITY = 100
ERROR, GOTO = "ERROR", 0x02
VIA_IN, VIA_OUT, SOURCE, DESTINATION, PROTOCOL = 0x01, 0x02, 0x08, 0x10, 0x40
STANDARD = {-1: "drop", -2: "accept", -4: "queue", -5: "return"}
PIECE = struct.Struct("=H29sB")
"""The head of a match or target: its size, name and revision; 32 bytes."""


class BlobLayout(NamedTuple):
    """Length of an address; where protocol, flags, inverted flags and offsets stand; size of an entry's head."""

    address: int
    protocol: int
    flags: int
    inverted: int
    offsets: int
    size: int


LAYOUTS = {
    "iptables-legacy": BlobLayout(4, 80, 82, 83, 88, 112),
    "ip6tables-legacy": BlobLayout(16, 128, 131, 132, 140, 168),
}


class LegacyEntry(NamedTuple):
    """An entry: its offset and that of the next one, its matches, its target; `goes`: its jump does not return."""

    at: int
    end: int
    matches: tuple[Condition, ...]
    comment: str
    revision: int
    target: str
    data: bytes
    goes: bool


def read_legacy() -> tuple[FilterChain, ...]:
    """Return all chains of legacy iptables and ip6tables; none where they cannot be read."""
    return tuple(chain for program in PROGRAMS for blob in blobs(program) for chain in parse(program, blob))


def parse(program: str, blob: Blob) -> list[FilterChain]:
    """Return the chains of one table."""
    hooks, underflows = _hooks(blob.info)
    entries = list(_entries(LAYOUTS[program], blob.entries))
    heads = {start: HOOKS[hook].upper() for hook, start in hooks.items()}
    heads |= {e.end: _name(e.data) for e in entries if e.target == ERROR}
    policies = {at: heads[hooks[hook]] for hook, at in underflows.items()}
    rules: dict[str, list[FilterRule]] = {}
    ends: dict[str, str] = {}
    name = ""
    for entry in entries:
        name = heads.get(entry.at, name)
        if entry.target == ERROR:
            continue
        found, rule = rules.setdefault(name, []), _rule(entry, heads)
        if entry.at in policies:
            ends[name] = rule.verdict
        else:
            found.append(rule)
    return [
        replace(_chain(program, blob.table, name, hooks), policy=ends.get(name) or "accept", rules=tuple(found))
        for name, found in rules.items()
    ]


def _chain(program: str, table: str, name: str, hooks: dict[int, int]) -> FilterChain:
    hook = name.lower() if name.lower() in {HOOKS[number] for number in hooks} else ""
    priority = PRIORITIES.get(table, 0)
    if table == "nat" and hook in ("postrouting", "input"):
        priority = NAT_SOURCE_PRIORITY
    family = "ip" if program == "iptables-legacy" else "ip6"
    kind = ("nat" if table == "nat" else "filter") if hook else ""
    return FilterChain(family, table, name, hook, kind, priority, legacy=program)


def _hooks(info: bytes) -> tuple[dict[int, int], dict[int, int]]:
    """Return the offsets of the first entry and of the policy for each hook."""
    valid, *offsets = struct.unpack_from("=11I", info, 32)
    used = [hook for hook in range(5) if valid & 1 << hook]
    return {hook: offsets[hook] for hook in used}, {hook: offsets[5 + hook] for hook in used}


def _entries(layout: BlobLayout, data: bytes) -> Iterator[LegacyEntry]:
    at = 0
    while at + layout.size <= len(data):
        target, following = struct.unpack_from("=HH", data, at + layout.offsets)
        matches, comment = list(_header(layout, data[at : at + layout.size])), ""
        piece = at + layout.size
        while piece < at + target:
            size, name, revision = PIECE.unpack_from(data, piece)
            found = read_match(_name(name), revision, data[piece + PIECE.size : piece + size])
            matches += found.matches
            comment = comment or found.comment
            piece += size
        _, name, revision = PIECE.unpack_from(data, at + target)
        body = data[at + target + PIECE.size : at + following]
        goes = bool(data[at + layout.flags] & GOTO)
        yield LegacyEntry(at, at + following, tuple(matches), comment, revision, _name(name), body, goes)
        at += following


def _header(layout: BlobLayout, data: bytes) -> Iterator[Condition]:
    """Yield the conditions of an entry itself: addresses, links, protocol."""
    size, inverted = layout.address, data[layout.inverted]
    source, destination, source_mask, destination_mask = (data[n * size : (n + 1) * size] for n in range(4))
    if any(source_mask):
        yield Condition("saddr", source, source, source_mask, bool(inverted & SOURCE))
    if any(destination_mask):
        yield Condition("daddr", destination, destination, destination_mask, bool(inverted & DESTINATION))
    links = data[4 * size : 4 * size + 64]
    for field, at, bit in (("iifname", 0, VIA_IN), ("oifname", 16, VIA_OUT)):
        length = links[at + 32 : at + 48].count(0xFF)
        if length:
            name = links[at : at + length]
            yield Condition(field, name, name, b"", bool(inverted & bit))
    protocol = data[layout.protocol]
    if protocol:
        yield Condition("l4proto", bytes([protocol]), bytes([protocol]), b"", bool(inverted & PROTOCOL))


def _rule(entry: LegacyEntry, heads: dict[int, str]) -> FilterRule:
    if entry.target:
        found = read_target(entry.target, entry.revision, entry.data)
        return FilterRule(0, entry.matches, found.verdict, "", found.marks, entry.comment)
    (code,) = struct.unpack_from("=i", entry.data)
    if code < 0:
        return FilterRule(0, entry.matches, STANDARD.get(code, ""), "", 0, entry.comment)
    if code == entry.end:
        return FilterRule(0, entry.matches, "", "", 0, entry.comment)
    return FilterRule(0, entry.matches, "goto" if entry.goes else "jump", heads.get(code, ""), 0, entry.comment)


def _name(payload: bytes) -> str:
    """Return a name, which may be of any bytes."""
    return payload.split(b"\0", 1)[0].decode(errors="replace")
