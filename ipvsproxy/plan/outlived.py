"""Marks of endpoints on the short path that stay though no frontend leads there any more: open connections may.

A pod may lose its labels and go on, and a Service may leave the path. Nothing counts connections on it, so nothing
shows when a mark has become useless. It does no harm: what it drops, conntrack cannot place. So the last of them
stay, as many as their memory is worth. Deterministic: no I/O, no clock.
"""

from collections import OrderedDict
from collections.abc import Iterable

from ipvsproxy.ruleset.elements import ElementKey

MOST = 8192
"""Endpoints that have left, of which the newest are remembered."""


class Outlived(OrderedDict[ElementKey, None]):
    """Elements that are kept, the oldest first."""

    def keep(self, slot: ElementKey) -> ElementKey | None:
        """Keep an element that no frontend needs any more; return one that goes for it, None if there is room."""
        self[slot] = None
        return self.popitem(last=False)[0] if len(self) > MOST else None

    def wanted(self, slots: Iterable[ElementKey]) -> None:
        """Record elements that frontends need again."""
        for slot in slots:
            self.pop(slot, None)
