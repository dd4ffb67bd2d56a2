"""Groups of sources that two processes have numbered, each for itself: which numbers mean the same."""

from collections.abc import Mapping

from ipvsproxy.plan.state import FrontendKey
from ipvsproxy.ruleset.elements import ElementKey, Value
from ipvsproxy.ruleset.schema import ADMITTED, GROUP_VIEWS, REFUSALS, SHARED_GROUP, UNKNOWN_GROUP

NUMBERED = (*ADMITTED.values(), *GROUP_VIEWS.values(), REFUSALS)
"""Sets that have the number of a group in their keys."""


def renumbered(found: Mapping[ElementKey, Value], wanted: Mapping[ElementKey, Value]) -> dict[ElementKey, Value]:
    """Return elements with the numbers that `wanted` has for their groups; others keep their number."""
    numbers = same_groups(found, wanted)
    counted = [
        _counted(elements) - known for elements, known in ((found, numbers.keys()), (wanted, {*numbers.values()}))
    ]
    # Which of those is which makes no difference: nothing else is known of them.
    numbers |= zip(*map(sorted, counted), strict=False)
    return {_slot(slot, numbers): _value(value, numbers) for slot, value in found.items()}


def same_groups(found: Mapping[ElementKey, Value], wanted: Mapping[ElementKey, Value]) -> dict[int, int]:
    """Return the numbers of groups that `wanted` has, by those that `found` has.

    A group is known by an address that is in it, or as the only one not known yet of those that may connect to a
    frontend.
    """
    numbers = {UNKNOWN_GROUP: UNKNOWN_GROUP, SHARED_GROUP: SHARED_GROUP}
    for slot, value in wanted.items():
        old = found.get(slot) if slot.is_member else None
        if isinstance(old, int) and isinstance(value, int):
            numbers.setdefault(old, value)
    _by_frontends(_groups(found), _groups(wanted), numbers)
    return numbers


def _groups(elements: Mapping[ElementKey, Value]) -> dict[FrontendKey, set[int]]:
    groups: dict[FrontendKey, set[int]] = {}
    for slot in elements:
        if slot.frontend and slot.set in NUMBERED and isinstance(slot.rest, int):
            groups.setdefault(slot.frontend, set()).add(slot.rest)
    return groups


def _counted(elements: Mapping[ElementKey, Value]) -> set[int]:
    return {slot.rest for slot in elements if slot.set is REFUSALS and isinstance(slot.rest, int)}


def _by_frontends(
    found: Mapping[FrontendKey, set[int]], wanted: Mapping[FrontendKey, set[int]], numbers: dict[int, int]
) -> None:
    """Add what follows from frontends, until nothing more does."""
    left = found.keys() & wanted.keys()
    known = -1
    while known != len(numbers):
        known = len(numbers)
        for key in left:
            old, new = found[key] - numbers.keys(), wanted[key] - {*numbers.values()}
            if len(old) == len(new) == 1:
                numbers[old.pop()] = new.pop()


def _slot(slot: ElementKey, numbers: Mapping[int, int]) -> ElementKey:
    if slot.set not in NUMBERED or not isinstance(slot.rest, int):
        return slot
    return ElementKey(slot.set, slot.owner, numbers.get(slot.rest, slot.rest))


def _value(value: Value, numbers: Mapping[int, int]) -> Value:
    return numbers.get(value, value) if isinstance(value, int) else value
