"""Packet filters of other programs as plain values, and what they would do to a packet.

In: base chains with their rules, as `kernel.filters.nf_tables` has read them. Out: for a packet of which some
fields are known, the verdict of a chain and the rule behind it. What we cannot read (sets, exotic matches) neither
matches nor fails to match: such rules are doubts, and a verdict that a doubt could change is not called certain.
"""

from collections.abc import Iterable, Iterator, Mapping

import msgspec

FALL, RETURN = "", "return"
UNTRACKED = "notrack"
ENDING = frozenset(("accept", "drop", "reject", "dnat", "snat", "masquerade", "redirect", "queue", UNTRACKED))
LOSING = frozenset(("drop", "reject"))
DEEPEST = 16
"""Jumps followed one into the other; the kernel allows as many."""
UNKNOWN = "?"


class Condition(msgspec.Struct, frozen=True):
    """One condition: `field` of the packet, masked, lies between `low` and `high` (or does not: `negated`).

    `more` are further pairs that do as well; none does where `low` is above `high`.

    A field `?` is one we cannot read. Values are bytes as the packet has them, so that they compare in order.
    """

    field: str
    low: bytes = b""
    high: bytes = b""
    mask: bytes = b""
    negated: bool = False
    more: tuple[tuple[bytes, bytes], ...] = ()


class FilterRule(msgspec.Struct, frozen=True):
    """Conditions, and a verdict with the chain it leads to; `marks` are the bits of the packet mark it changes.

    A verdict `?` is one of several, by what we cannot read.
    """

    handle: int = 0
    matches: tuple[Condition, ...] = ()
    verdict: str = FALL
    target: str = ""
    marks: int = 0
    comment: str = ""
    packets: int = 0


class FilterChain(msgspec.Struct, frozen=True):
    """A chain of one table; `hook` is empty unless it is a base chain. `legacy` names the program that owns it."""

    family: str
    table: str
    name: str
    hook: str = ""
    kind: str = ""
    priority: int = 0
    policy: str = "accept"
    rules: tuple[FilterRule, ...] = ()
    legacy: str = ""

    @property
    def place(self) -> str:
        """What people call it."""
        return f"{self.legacy or self.family} {self.table} {self.name}"

    @property
    def book(self) -> tuple[str, str, str]:
        """The table: jumps stay inside of it."""
        return self.legacy, self.family, self.table


class FilterOutcome(msgspec.Struct, frozen=True):
    """What a base chain does to a packet, where, and the rules that might change it."""

    verdict: str
    where: str
    doubts: tuple[str, ...] = ()

    @property
    def certain(self) -> bool:
        """Whether no rule that we cannot read could change it."""
        return not self.doubts


PacketFields = Mapping[str, bytes]
"""Fields of a packet; one that is missing is unknown."""


def judge(rule: FilterRule, packet: PacketFields) -> bool | None:
    """Return whether a rule matches, None when that is unknown."""
    doubt = False
    for match in rule.matches:
        found = _judge_match(match, packet)
        if found is False:
            return False
        doubt = doubt or found is None
    return None if doubt else True


def _judge_match(match: Condition, packet: PacketFields) -> bool | None:
    value = packet.get(match.field)
    if match.field == UNKNOWN or value is None:
        return None
    if match.field in ("iifname", "oifname"):
        name = value.ljust(16, b"\0")
        beginnings = (match.low, *(low for low, _ in match.more))
        return any(map(name.startswith, beginnings)) is not match.negated
    pairs = [pair for pair in ((match.low, match.high), *match.more) if len(pair[0]) == len(value)]
    if not pairs and match.low <= match.high:
        return False  # an address of the other family
    masked = bytes(a & b for a, b in zip(value, match.mask, strict=True)) if match.mask else value
    return any(low <= masked <= high for low, high in pairs) is not match.negated


class FilterTables:
    """All chains of a machine by table, to walk through."""

    def __init__(self, chains: Iterable[FilterChain]) -> None:
        self._chains = {(*chain.book, chain.name): chain for chain in chains}

    def base(self, hook: str, kind: str = "", family: int = 4) -> list[FilterChain]:
        """Return the base chains on a hook that packets of an IP family cross, in order."""
        families = ("inet", "ip" if family == 4 else "ip6")
        found = [c for c in self._chains.values() if c.hook == hook and c.family in families]
        return sorted((c for c in found if not kind or c.kind == kind), key=lambda chain: chain.priority)

    def walk(self, chain: FilterChain, packet: PacketFields) -> FilterOutcome:
        """Return what a base chain does to a packet."""
        doubts: list[str] = []
        verdict, where = self._through(chain, dict(packet), doubts, 0)
        if verdict in (FALL, RETURN):
            verdict, where = chain.policy, f"the policy of {chain.place}"
        return FilterOutcome(verdict, where, tuple(doubts))

    def _through(
        self, chain: FilterChain, packet: dict[str, bytes], doubts: list[str], depth: int
    ) -> tuple[str, str]:
        for rule in chain.rules:
            found = judge(rule, packet)
            if found is False:
                continue
            if rule.marks:
                packet.pop("mark", None)  # what it is now is unknown
            if rule.verdict == FALL:
                continue
            if rule.verdict == UNKNOWN:
                doubts.append(f"{where(chain, rule)}: one of several verdicts")
                continue
            verdict, place = self._carry_out(chain, rule, packet, doubts, depth)
            if found is None:
                if verdict in ENDING:
                    doubts.append(f"{place}: {verdict}")
            elif verdict in ENDING or rule.verdict in (RETURN, "goto"):
                return verdict, place
        return FALL, chain.place

    def _carry_out(
        self, chain: FilterChain, rule: FilterRule, packet: dict[str, bytes], doubts: list[str], depth: int
    ) -> tuple[str, str]:
        if rule.verdict not in ("jump", "goto"):
            return rule.verdict, where(chain, rule)
        inner = self._chains.get((*chain.book, rule.target))
        if inner is None or depth == DEEPEST:
            return FALL, where(chain, rule)
        return self._through(inner, packet, doubts, depth + 1)

    def filtering_rules(self) -> Iterator[tuple[FilterChain, FilterRule]]:
        """Yield every rule with its chain, but for tables that only do NAT: replies never come there."""
        filtering = {chain.book for chain in self._chains.values() if chain.hook and chain.kind != "nat"}
        for chain in self._chains.values():
            if chain.book in filtering:
                yield from ((chain, rule) for rule in chain.rules)


def where(chain: FilterChain, rule: FilterRule) -> str:
    """Name a rule so that its owner finds it."""
    words = f"rule {rule.handle} of {chain.place}"
    return f"{words} ({rule.comment})" if rule.comment else words
