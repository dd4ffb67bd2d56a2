"""All chains and rules of nf_tables in this network namespace, read over netlink into `ruleset.filters`.

Rules of iptables-nft are nft rules with matches and targets of x_tables inside, which libnftables shows only in
part; here both are read (the latter in `kernel.filters.xt`). Only reads. What depends on a set that cannot be
judged (`kernel.filters.sets`) is a condition we do not know. Numbers: include/uapi/linux/netfilter/nf_tables.h.
"""

import struct
from collections.abc import Iterator
from functools import partial

from msgspec.structs import replace

from ipvsproxy.base.names import TABLE
from ipvsproxy.kernel.filters.expressions import Fields, Lookup, Reading, network_u32
from ipvsproxy.kernel.filters.sets import SetReader
from ipvsproxy.kernel.wire.netlink import Wire, attribute, attributes, message, text
from ipvsproxy.kernel.wire.nfnetlink import (
    FAMILY_NAMES,
    NETLINK_NETFILTER,
    NFGENMSG,
    NFT_MSG_GETCHAIN,
    NFT_MSG_GETRULE,
    NFT_MSG_GETTABLE,
    NFT_TABLE_F_DORMANT,
    NFTA_CHAIN_HOOK,
    NFTA_CHAIN_NAME,
    NFTA_CHAIN_POLICY,
    NFTA_CHAIN_TABLE,
    NFTA_CHAIN_TYPE,
    NFTA_EXPR_DATA,
    NFTA_EXPR_NAME,
    NFTA_HOOK_HOOKNUM,
    NFTA_HOOK_PRIORITY,
    NFTA_RULE_CHAIN,
    NFTA_RULE_EXPRESSIONS,
    NFTA_RULE_HANDLE,
    NFTA_RULE_TABLE,
    NFTA_RULE_USERDATA,
    NFTA_TABLE_FLAGS,
    NFTA_TABLE_NAME,
)
from ipvsproxy.ruleset.filters import FilterChain, FilterRule

HOOKS = ("prerouting", "input", "forward", "output", "postrouting")


def read_chains() -> tuple[FilterChain, ...]:
    """Return all chains that are at work, with their rules. Raises KernelError."""
    wire = Wire(NETLINK_NETFILTER)
    try:
        asleep = set(_dormant(wire))
        return tuple(c for c in _read(wire, NFGENMSG.pack(0, 0, 0)) if (c.family, c.table) not in asleep)
    finally:
        wire.close()


def read_table(wire: Wire, family: int, table: str) -> dict[str, FilterChain]:
    """Return the chains of one table by name, none when there is no such table. Raises KernelError."""
    request = NFGENMSG.pack(family, 0, 0) + attribute(NFTA_RULE_TABLE, table.encode() + b"\0")
    return {c.name: c for c in _read(wire, request) if c.table == table}


def _read(wire: Wire, request: bytes) -> Iterator[FilterChain]:
    sets = SetReader(wire)
    rules: dict[tuple[int, str, str], list[FilterRule]] = {}
    for part in wire.dump(message(NFT_MSG_GETRULE, 0, request)):
        fields = dict(attributes(part, NFGENMSG.size))
        family, table, chain = part[0], text(fields[NFTA_RULE_TABLE]), text(fields[NFTA_RULE_CHAIN])
        known = partial(sets.entries, family, table) if table != TABLE else _unknown
        rules.setdefault((family, table, chain), []).extend(_rules(fields, known))
    # The kernel takes no table here: it reports all chains of a family.
    family_only = request[: NFGENMSG.size]
    yield from (_chain(part, rules) for part in wire.dump(message(NFT_MSG_GETCHAIN, 0, family_only)))


def _dormant(wire: Wire) -> Iterator[tuple[str, str]]:
    """Yield family and name of the tables whose chains no packet meets."""
    for part in wire.dump(message(NFT_MSG_GETTABLE, 0, NFGENMSG.pack(0, 0, 0))):
        fields = dict(attributes(part, NFGENMSG.size))
        if NFTA_TABLE_FLAGS in fields and network_u32(fields[NFTA_TABLE_FLAGS]) & NFT_TABLE_F_DORMANT:
            yield FAMILY_NAMES.get(part[0], str(part[0])), text(fields[NFTA_TABLE_NAME])


def _chain(part: bytes, rules: dict[tuple[int, str, str], list[FilterRule]]) -> FilterChain:
    fields = dict(attributes(part, NFGENMSG.size))
    table, name = text(fields[NFTA_CHAIN_TABLE]), text(fields[NFTA_CHAIN_NAME])
    hook = dict(attributes(fields[NFTA_CHAIN_HOOK])) if NFTA_CHAIN_HOOK in fields else {}
    family = FAMILY_NAMES.get(part[0], str(part[0]))
    number = network_u32(hook[NFTA_HOOK_HOOKNUM]) if NFTA_HOOK_HOOKNUM in hook else len(HOOKS)
    return FilterChain(
        family=family,
        table=table,
        name=name,
        hook=HOOKS[number] if number < len(HOOKS) and family not in ("netdev", "arp") else "",
        kind=text(fields[NFTA_CHAIN_TYPE]) if NFTA_CHAIN_TYPE in fields else "",
        priority=struct.unpack(">i", hook[NFTA_HOOK_PRIORITY])[0] if NFTA_HOOK_PRIORITY in hook else 0,
        policy="drop" if NFTA_CHAIN_POLICY in fields and network_u32(fields[NFTA_CHAIN_POLICY]) == 0 else "accept",
        rules=tuple(rules.get((part[0], table, name), ())),
    )


def _unknown(_: str) -> None:
    """Our own sets: rules of our table are counted and not judged."""


def _rules(fields: Fields, sets: Lookup) -> Iterator[FilterRule]:
    """Yield a rule; one with a map of verdicts as a rule for each entry."""
    reading = Reading(sets)
    for _, element in attributes(fields.get(NFTA_RULE_EXPRESSIONS, memoryview(b""))):
        expression = dict(attributes(element))
        reading.take(
            text(expression[NFTA_EXPR_NAME]), dict(attributes(expression.get(NFTA_EXPR_DATA, memoryview(b""))))
        )
    (handle,) = struct.unpack(">Q", fields[NFTA_RULE_HANDLE])
    data = bytes(fields.get(NFTA_RULE_USERDATA, b""))
    comment = data[2 : 2 + data[1]].rstrip(b"\0").decode(errors="replace") if data[:1] == b"\0" else ""
    rule = FilterRule(
        handle=handle,
        matches=tuple(reading.matches),
        verdict=reading.verdict,
        target=reading.target,
        marks=reading.marks,
        comment=comment or reading.comment,
        packets=reading.packets,
    )
    if reading.choices is None:
        yield rule
    for match, verdict, chain in reading.choices or ():
        yield replace(rule, matches=(*rule.matches, match), verdict=verdict, target=chain)
