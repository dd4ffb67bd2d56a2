"""Groups of sources whose members the kernel would let in where they may not connect any more.

In: elements of groups that the kernel has not accepted yet, and what is wanted and there. Called only when there
is such an element. Deterministic: no I/O, no clock.
"""

from collections.abc import Iterable, Mapping
from typing import NamedTuple

from ipvsproxy.ruleset.elements import ElementKey, Value
from ipvsproxy.ruleset.schema import ADMITTED, BY_AUDIENCE, FRONTENDS, GROUP_VIEWS, RESTRICTED


class Behind(NamedTuple):
    """Groups that no address may join yet; `all` of them where a frontend lets in every pod and is not to.

    `all` is for addresses that change their group: to others such a frontend is open whether they join or not.
    """

    groups: frozenset[int] = frozenset()
    all: bool = False


UP_TO_DATE = Behind()


def groups_behind(
    slots: Iterable[ElementKey], wanted: Mapping[ElementKey, Value], present: Mapping[ElementKey, Value]
) -> Behind:
    """Return with which groups the kernel is behind, by the elements that it has not accepted."""
    groups, is_open = set[int](), False
    for slot in slots:
        family = slot.set.family
        if not family:
            continue
        if slot.set in (GROUP_VIEWS[family], ADMITTED[family]):
            if slot in wanted and present.get(slot, wanted[slot]) == wanted[slot]:
                # It is only lacking: a group without its view is led nowhere.
                continue
            groups |= {slot.rest} if isinstance(slot.rest, int) else set()
        elif slot.set in (RESTRICTED[family], BY_AUDIENCE[family]) and slot in wanted:
            # A frontend that the kernel does not have lets no pod in.
            is_open = is_open or ElementKey(FRONTENDS[family], slot.owner) in present
    return Behind(frozenset(groups), is_open)
