"""The expressions of one nf_tables rule, read as conditions and a verdict of `ruleset.filters`.

In: attributes as the kernel sends them, and a look-up of the sets that a rule names. Out: a `Reading`. Matches and
targets of x_tables inside are read by `kernel.filters.xt`. What cannot be judged is a condition we do not know.
Numbers: include/uapi/linux/netfilter/nf_tables.h.
"""

import struct
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

from ipvsproxy.kernel.filters.sets import SetEntry
from ipvsproxy.kernel.filters.xt import read_match, read_target
from ipvsproxy.kernel.wire.netlink import attributes, text
from ipvsproxy.kernel.wire.nfnetlink import (
    NFT_FIB_RESULT_ADDRTYPE,
    NFT_LOOKUP_F_INV,
    NFT_META_MARK,
    NFT_PAYLOAD_NETWORK_HEADER,
    NFT_PAYLOAD_TRANSPORT_HEADER,
    NFT_REG_VERDICT,
    NFTA_BITWISE_DREG,
    NFTA_BITWISE_MASK,
    NFTA_BITWISE_SREG,
    NFTA_BITWISE_XOR,
    NFTA_CMP_DATA,
    NFTA_CMP_OP,
    NFTA_CMP_SREG,
    NFTA_COUNTER_PACKETS,
    NFTA_CT_DREG,
    NFTA_CT_KEY,
    NFTA_DATA_VERDICT,
    NFTA_FIB_DREG,
    NFTA_FIB_F_DADDR,
    NFTA_FIB_FLAGS,
    NFTA_FIB_RESULT,
    NFTA_IMMEDIATE_DATA,
    NFTA_IMMEDIATE_DREG,
    NFTA_LOOKUP_DREG,
    NFTA_LOOKUP_FLAGS,
    NFTA_LOOKUP_SET,
    NFTA_LOOKUP_SREG,
    NFTA_MATCH_INFO,
    NFTA_MATCH_NAME,
    NFTA_MATCH_REV,
    NFTA_META_DREG,
    NFTA_META_KEY,
    NFTA_META_SREG,
    NFTA_NAT_TYPE,
    NFTA_PAYLOAD_BASE,
    NFTA_PAYLOAD_DREG,
    NFTA_PAYLOAD_LEN,
    NFTA_PAYLOAD_OFFSET,
    NFTA_RANGE_FROM_DATA,
    NFTA_RANGE_OP,
    NFTA_RANGE_SREG,
    NFTA_RANGE_TO_DATA,
    NFTA_TARGET_INFO,
    NFTA_TARGET_NAME,
    NFTA_TARGET_REV,
    NFTA_VERDICT_CHAIN,
    NFTA_VERDICT_CODE,
)
from ipvsproxy.ruleset.filters import UNKNOWN, UNTRACKED, Condition

VERDICTS = {0: "drop", 1: "accept", 3: "queue", -3: "jump", -4: "goto", -5: "return"}
NETWORK = {(12, 4): "saddr", (16, 4): "daddr", (8, 16): "saddr", (24, 16): "daddr", (9, 1): "l4proto"}
TRANSPORT = {(0, 2): "sport", (2, 2): "dport"}
META = {3: "mark", 6: "iifname", 7: "oifname", 15: "nfproto", 16: "l4proto"}
CT = {0: "ctstate"}
HARMLESS = frozenset(("counter", "log", "dup"))
VERDICT_BY_NAME = {
    "masq": "masquerade",
    "redir": "redirect",
    "reject": "reject",
    "queue": "queue",
    "tproxy": "drop",
    "notrack": UNTRACKED,
}

SIZES = {
    "saddr": (4, 16), "daddr": (4, 16), "sport": (2,), "dport": (2,), "l4proto": (1,), "nfproto": (1,),
    "ctstate": (4,), "mark": (4,), "daddrtype": (4,), "iifname": (16,), "oifname": (16,),
}  # fmt: skip
"""Of the fields that are looked up in sets, by their size in bytes."""
NOTHING = (b"\xff", b"\0")
"""First and last value of an interval that has none."""

Fields = dict[int, memoryview]
Lookup = Callable[[str], Sequence[SetEntry] | None]


class Register(NamedTuple):
    """What a register holds: a field of the packet, its length in bytes, and the mask laid over it."""

    field: str = UNKNOWN
    size: int = 0
    mask: bytes = b""
    xor: bytes = b""


class Reading:
    """The expressions of one rule, one after the other: a little machine of registers."""

    def __init__(self, sets: Lookup) -> None:
        self.choices: list[tuple[Condition, str, str]] | None = None
        self._sets = sets
        self.matches: list[Condition] = []
        self.verdict = self.target = self.comment = ""
        self.marks = self.packets = 0
        self._registers: dict[int, Register] = {}
        self._known: dict[str, Callable[[Fields], None]] = {
            "payload": self._payload,
            "meta": self._meta,
            "ct": self._ct,
            "fib": self._fib,
            "bitwise": self._bitwise,
            "cmp": self._cmp,
            "range": self._range,
            "immediate": self._immediate,
            "lookup": self._lookup,
            "nat": self._nat,
            "match": self._match,
            "target": self._target,
            "counter": self._counter,
        }

    def take(self, name: str, fields: Fields) -> None:
        """Read one expression."""
        if name in self._known:
            self._known[name](fields)
        elif name in VERDICT_BY_NAME:
            self.verdict = VERDICT_BY_NAME[name]
        elif name not in HARMLESS:
            self.matches.append(Condition(UNKNOWN))

    def _load(self, register: int, field: str, size: int = 0) -> None:
        self._registers[register] = Register(field, size)

    def _payload(self, fields: Fields) -> None:
        if NFTA_PAYLOAD_DREG not in fields:
            return  # it writes into the packet
        table = {NFT_PAYLOAD_NETWORK_HEADER: NETWORK, NFT_PAYLOAD_TRANSPORT_HEADER: TRANSPORT}.get(
            network_u32(fields[NFTA_PAYLOAD_BASE]), {}
        )
        offset, length = network_u32(fields[NFTA_PAYLOAD_OFFSET]), network_u32(fields[NFTA_PAYLOAD_LEN])
        # A prefix on a byte boundary is loaded as a shorter address.
        whole = next(((at, size) for at, size in table if at == offset and size >= length), (0, 0))
        self._load(network_u32(fields[NFTA_PAYLOAD_DREG]), table.get(whole, UNKNOWN), whole[1])

    def _meta(self, fields: Fields) -> None:
        key = network_u32(fields[NFTA_META_KEY])
        if NFTA_META_DREG in fields:
            self._load(network_u32(fields[NFTA_META_DREG]), META.get(key, UNKNOWN))
        elif key == NFT_META_MARK:
            source = self._registers.get(network_u32(fields[NFTA_META_SREG]), Register())
            kept = _number(source.mask) if source.field == "mark" else 0
            self.marks |= (~kept & 0xFFFFFFFF) | (_number(source.xor) if source.field == "mark" else 0)

    def _ct(self, fields: Fields) -> None:
        if NFTA_CT_DREG in fields:
            self._load(network_u32(fields[NFTA_CT_DREG]), CT.get(network_u32(fields[NFTA_CT_KEY]), UNKNOWN))

    def _fib(self, fields: Fields) -> None:
        is_type_of_destination = (
            network_u32(fields[NFTA_FIB_RESULT]) == NFT_FIB_RESULT_ADDRTYPE
            and network_u32(fields[NFTA_FIB_FLAGS]) & NFTA_FIB_F_DADDR
        )
        self._load(network_u32(fields[NFTA_FIB_DREG]), "daddrtype" if is_type_of_destination else UNKNOWN)

    def _bitwise(self, fields: Fields) -> None:
        source = self._registers.get(network_u32(fields[NFTA_BITWISE_SREG]), Register())
        is_mask = NFTA_BITWISE_MASK in fields and NFTA_BITWISE_XOR in fields
        made = (
            Register(source.field, 0, _value(fields[NFTA_BITWISE_MASK]), _value(fields[NFTA_BITWISE_XOR]))
            if is_mask
            else Register()
        )
        self._registers[network_u32(fields[NFTA_BITWISE_DREG])] = made

    def _cmp(self, fields: Fields) -> None:
        register, operation, value = (
            self._registers.get(network_u32(fields[NFTA_CMP_SREG])),
            network_u32(fields[NFTA_CMP_OP]),
            _value(fields[NFTA_CMP_DATA]),
        )
        self.matches += _compared(register or Register(), operation, value)

    def _range(self, fields: Fields) -> None:
        register = self._registers.get(network_u32(fields[NFTA_RANGE_SREG]), Register())
        low, high = _value(fields[NFTA_RANGE_FROM_DATA]), _value(fields[NFTA_RANGE_TO_DATA])
        self.matches.append(Condition(register.field, low, high, b"", bool(network_u32(fields[NFTA_RANGE_OP]))))

    def _immediate(self, fields: Fields) -> None:
        data = dict(attributes(fields[NFTA_IMMEDIATE_DATA]))
        if NFTA_DATA_VERDICT not in data:
            self._load(network_u32(fields[NFTA_IMMEDIATE_DREG]), "constant")
            return
        verdict = dict(attributes(data[NFTA_DATA_VERDICT]))
        (code,) = struct.unpack(">i", verdict[NFTA_VERDICT_CODE])
        if self.verdict != UNTRACKED:  # whatever follows: conntrack will not know the packet
            self.verdict = VERDICTS.get(code, "")
            self.target = text(verdict[NFTA_VERDICT_CHAIN]) if NFTA_VERDICT_CHAIN in verdict else ""

    def _lookup(self, fields: Fields) -> None:
        """A set is a condition, a map of verdicts many rules, another map a condition and a value."""
        register = self._registers.get(network_u32(fields[NFTA_LOOKUP_SREG]), Register())
        found = _judged(register, self._sets(text(fields[NFTA_LOOKUP_SET])) if register.field in SIZES else None)
        to = network_u32(fields[NFTA_LOOKUP_DREG]) if NFTA_LOOKUP_DREG in fields else None
        if to == NFT_REG_VERDICT:
            self._choose(register.field, found)
            return
        self.matches.append(
            _one_of(
                register.field,
                found,
                negated=NFTA_LOOKUP_FLAGS in fields
                and bool(network_u32(fields[NFTA_LOOKUP_FLAGS]) & NFT_LOOKUP_F_INV),
            )
        )
        if to is not None:
            self._load(to, UNKNOWN)

    def _choose(self, field: str, found: Sequence[SetEntry] | None) -> None:
        if found is None:
            self.verdict = UNKNOWN
            return
        rest = _one_of(field, [entry for entry in found if entry.low], negated=True)
        self.choices = [
            (
                Condition(field, entry.low, entry.high) if entry.low else rest,
                "" if entry.code is None else VERDICTS.get(entry.code, ""),
                entry.chain,
            )
            for entry in found
        ]

    def _nat(self, fields: Fields) -> None:
        self.verdict = "dnat" if network_u32(fields[NFTA_NAT_TYPE]) else "snat"

    def _match(self, fields: Fields) -> None:
        found = read_match(
            text(fields[NFTA_MATCH_NAME]), network_u32(fields[NFTA_MATCH_REV]), bytes(fields[NFTA_MATCH_INFO])
        )
        self.matches += found.matches
        self.comment = self.comment or found.comment

    def _target(self, fields: Fields) -> None:
        found = read_target(
            text(fields[NFTA_TARGET_NAME]), network_u32(fields[NFTA_TARGET_REV]), bytes(fields[NFTA_TARGET_INFO])
        )
        self.verdict, self.marks = found.verdict, self.marks | found.marks

    def _counter(self, fields: Fields) -> None:
        (self.packets,) = struct.unpack(">Q", fields[NFTA_COUNTER_PACKETS])


def _judged(register: Register, found: Sequence[SetEntry] | None) -> list[SetEntry] | None:
    """Return the entries if this field can be compared with them; of names of links, the beginning."""
    if found is None or register.mask:
        return None
    if any(len(entry.low) not in SIZES[register.field] for entry in found if entry.low):
        return None
    if register.field not in ("iifname", "oifname"):
        return list(found)
    return [
        entry if entry.low == entry.high else entry._replace(low=entry.low.rstrip(b"\0"), high=b"\xff")
        for entry in found
    ]


def _one_of(field: str, found: Sequence[SetEntry] | None, *, negated: bool) -> Condition:
    """Return the condition that a field has one of these values; of none at all, one that never holds."""
    if found is None or any(not entry.low for entry in found):
        return Condition(UNKNOWN)
    (low, high), *more = [(entry.low, entry.high) for entry in found] or [NOTHING]
    return Condition(field, low, high, b"", negated, tuple(more))


def _compared(register: Register, operation: int, value: bytes) -> Iterator[Condition]:
    """Return the condition of a comparison: 0 and 1 are equal and unequal, the others order."""
    if register.field == "ctstate" and not any(value) and register.mask:
        # `ct state established,related` is: these bits and the state are not zero.
        yield Condition("ctstate", value, value, register.mask, negated=operation == 1)
    elif operation in (0, 1):
        mask = register.mask
        if len(value) < register.size:
            mask, value = (b"\xff" * len(value)).ljust(register.size, b"\0"), value.ljust(register.size, b"\0")
        yield Condition(register.field, value, value, mask, operation == 1)
    elif register.field in ("sport", "dport"):
        yield _ordered(register.field, operation, value)
    else:
        yield Condition(UNKNOWN)


def _ordered(field: str, operation: int, value: bytes) -> Condition:
    if len(value) != 2:  # of both ports, as one number
        return Condition(UNKNOWN)
    number = int.from_bytes(value)
    low, high = {2: (0, number - 1), 3: (0, number), 4: (number + 1, 65535), 5: (number, 65535)}[operation]
    return Condition(field, low.to_bytes(2), high.to_bytes(2)) if low <= high else Condition(field, *NOTHING)


def _value(payload: memoryview) -> bytes:
    return bytes(dict(attributes(payload)).get(1, b""))


def network_u32(payload: memoryview) -> int:
    """Return a number of four bytes in network order."""
    return int(struct.unpack(">I", payload)[0])


def _number(value: bytes) -> int:
    return int.from_bytes(value, sys.byteorder)
