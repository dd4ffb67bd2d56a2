"""How much work and memory an input may cost: counted, never timed.

Work is instructions of Python, memory is the peak that tracemalloc sees. Both may grow with the size of the input
and with what was made of it, which has limits of its own (--service-limit and its like), and with nothing else.
"""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable

from tests.support.work import instructions

# What an empty input costs, and each byte, and each thing that was made.
WORK = {
    "configuration": (700_000, 1_000, 0),
    "connections": (60_000, 300, 700_000),
    "decoding": (60_000, 100, 0),
    "kubeconfig": (60_000, 500, 0),
    "manifests": (60_000, 800, 3_000),
    "objects": (1_500_000, 500, 3_000),
}
MEMORY = 4 << 20
MEMORY_PER_BYTE = 4096
MEMORY_PER_THING = 16384


def over(name: str, target: Callable[[bytes], int], data: bytes) -> str:
    """Return in words what an input costs too much; empty if it is within its bounds."""
    made: list[int] = []
    target(data)  # fills what is kept from the first time on
    work = instructions(lambda: made.append(target(data)))
    tracemalloc.start()
    try:
        target(data)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    base, per_byte, per_thing = WORK[name]
    most_work = base + per_byte * len(data) + per_thing * made[0]
    most_memory = MEMORY + MEMORY_PER_BYTE * len(data) + MEMORY_PER_THING * made[0]
    said = f"{len(data)} bytes, {made[0]} things"
    if work > most_work:
        return f"{said}: {work} instructions, at most {most_work} allowed"
    if peak > most_memory:
        return f"{said}: {peak} bytes of memory, at most {most_memory} allowed"
    return ""
