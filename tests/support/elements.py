"""Elements from the text of nft: what tests write, and what a ruleset in memory has."""

from ipvsproxy.base.address import parse_cidr, parse_ip
from ipvsproxy.base.frontend import PROTOCOL_NAMES, FrontendKey
from ipvsproxy.ruleset.elements import ElementKey, PortRange
from ipvsproxy.ruleset.schema import SETS, Field, OwnerKind

GROUP_UNIT = 16
"""Values of `meta priority` are the numbers of groups times this."""
NUMBERS = {name: number for number, name in PROTOCOL_NAMES.items()}


def element(name, text):
    """Return the element of a set by its key as text."""
    kind, words = SETS[name], text.split(" . ")
    rest = words[kind.owner :]
    owner = None
    if kind.port_interval:
        first, _, last = words[2].partition("-")
        owner = FrontendKey(parse_ip(words[0]), NUMBERS[words[1]], 0)
        return ElementKey(kind, owner, PortRange(int(first), int(last or first)))
    if kind.owner is OwnerKind.FRONTEND:
        owner = FrontendKey(parse_ip(words[0]), NUMBERS[words[1]], int(words[2]))
    elif kind.owner is OwnerKind.ADDRESS:
        owner = parse_ip(words[0])
    return ElementKey(kind, owner, _rest(kind, rest[0]) if rest else None)


def _rest(kind, word):
    field = kind.key[-1]
    if field is Field.LINK:
        return word.strip('"')
    if field is Field.AUDIENCE:
        return int(word.removeprefix("0:"), 16) // GROUP_UNIT
    if field in (Field.PORT, Field.NUMBER):
        return int(word)
    if not kind.interval:
        return parse_ip(word)
    return parse_cidr(word if "/" in word else f"{word}/{32 if ':' not in word else 128}")


def value(slot, text):
    """Return what a map says of an element."""
    if not slot.set.value or slot.set.value == (Field.VERDICT,):
        return text
    if slot.set.value == (Field.AUDIENCE,):
        return int(text.removeprefix("0:"), 16) // GROUP_UNIT
    address, *port = text.split(" . ")
    return FrontendKey(parse_ip(address), slot.owner.protocol, int(port[0])) if port else parse_ip(address)


def elements(name, items):
    """Return the elements of a set, given as texts."""
    slots = ((element(name, key), text) for key, text in items.items())
    return {slot: value(slot, text) for slot, text in slots}
