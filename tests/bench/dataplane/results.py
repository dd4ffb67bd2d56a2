"""Counts of rows as they were measured, read from lines of JSON."""

import dataclasses
import json

from tests.bench.dataplane.rows import PriceRow

FIGURE = "p10"
"""What counts of a row: a round trip during which the machine had nothing else to do.

In some boots more than half of the round trips of a row are interrupted by the end of older connections (timers,
RCU), which makes 3,000 instructions more. The 10th percentile is the same within 0.3 % in every boot.
"""


@dataclasses.dataclass
class Results:
    """Instructions of one round trip for each row, and what they were counted with."""

    surroundings: dict[str, str]
    counts: dict[PriceRow, int]


def parse(lines):
    """Read what `measure` has printed; lines that are no JSON objects are of others.

    Raises ValueError when counts of one kernel and nft follow those of another.
    """
    found = Results({}, {})
    for line in lines:
        if not line.startswith("{"):
            continue
        value = json.loads(line)
        if "kernel" in value:
            if found.surroundings not in ({}, value):
                raise ValueError(
                    f"{value} after {found.surroundings}: counts of one machine cannot be held against another's"
                )
            found.surroundings = value
        else:
            found.counts[PriceRow(value["services"], value["path"], value["kind"], value["peer"])] = value[FIGURE]
    return found
