"""How Python's cyclic garbage collector is set for a process with very many small objects that stay.

Nothing on the way from the API to the kernel makes reference cycles, but every allocation counts towards a
search for some. With Python's own settings that search costs a third of a cold start with 10,000 Services.
"""

import gc

COLLECT_AFTER = 50_000
"""Allocations of containers between two searches; Python's default is 700."""


def expect_many_objects() -> None:
    """Search less often."""
    gc.set_threshold(COLLECT_AFTER, 20, 20)


def settle() -> None:
    """Take what is there now out of all later searches: after a first sync, nearly all of it stays."""
    gc.freeze()
