"""Work, counted and not timed: how many instructions of Python a call takes.

What the interpreter does inside one instruction does not show (a search through a tuple is one), so give it values
of `Seen`, whose comparisons are Python.
"""

import gc
import sys
from contextlib import contextmanager


class Seen(bytes):
    """An address whose comparisons and hashes are counted."""

    __slots__ = ()

    def __eq__(self, other):
        return bytes.__eq__(self, other)

    def __hash__(self):
        return bytes.__hash__(self)

    def __lt__(self, other):
        return bytes.__lt__(self, other)


@contextmanager
def no_collection():
    """Have nothing collected meanwhile: what that calls, in whatever test left it behind, would be counted."""
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


def instructions(call):
    """Return how many instructions a call takes."""
    count = 0

    def local(frame, event, _):
        nonlocal count
        if event == "opcode":
            count += 1
        return local

    def begin(frame, _event, _):
        frame.f_trace_opcodes, frame.f_trace_lines = True, False
        return local

    before = sys.gettrace()
    with no_collection():
        sys.settrace(begin)
        try:
            call()
        finally:
            sys.settrace(before)
    return count


def growth(prepare, small=150, factor=8):
    """Return by how much more work there is than in proportion when the input is `factor` times as large.

    `prepare(size)` returns the call to count. n log n is below 2; quadratic is near `factor`.
    """
    few, many = (instructions(prepare(size)) for size in (small, small * factor))
    return many / few / factor
