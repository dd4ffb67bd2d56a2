"""The agreed counts: what a row may cost, and which rows cost more than that."""

import json
import pathlib

from tests.bench.dataplane.results import Results
from tests.bench.dataplane.rows import PriceRow, floor_of

FILE = pathlib.Path(__file__).with_name("budget.json")
TOLERANCE = 0.01


def read(path=None):
    content = json.loads((path or FILE).read_text())
    counts = {
        PriceRow(int(services), name, kind, peer): count
        for services, paths in content["counts"].items()
        for name, kinds in paths.items()
        for kind, peers in kinds.items()
        for peer, count in peers.items()
    }
    return Results(content["surroundings"], counts)


def write(results, path=None):
    nested = {}
    for row in sorted(results.counts):
        kinds = nested.setdefault(str(row.services), {}).setdefault(row.path, {})
        kinds.setdefault(row.kind, {})[row.peer] = results.counts[row]
    (path or FILE).write_text(
        json.dumps({"surroundings": results.surroundings, "counts": nested}, indent=1) + "\n"
    )


def exceeded(agreed, found):
    """Return a sentence for each agreed row that was not measured, or costs more than 1 % more.

    Floors are nobody's rules and are not judged: a row may cost as much more as its floor does in the same run,
    where a kernel, an nft or the guest has moved both.
    """
    judged = [row for row in sorted(agreed.counts) if row != floor_of(row)]
    return [sentence for row in judged if (sentence := _judge(row, agreed, found))]


def _judge(row, agreed, found):
    floor = floor_of(row)
    missing = [str(one) for one in (row, floor) if one not in found.counts or one not in agreed.counts]
    if missing:
        return f"{missing[0]}: not measured"
    moved = found.counts[floor] / agreed.counts[floor]
    may = agreed.counts[row] * (max(1, moved) if agreed.surroundings == found.surroundings else moved)
    counted = found.counts[row]
    if counted <= may * (1 + TOLERANCE):
        return None
    return f"{row}: {counted:,} instructions, {counted / may - 1:.2%} more than the {may:,.0f} agreed"


def cheaper(agreed, found):
    """Return the rows that cost more than 1 % less than agreed: the budget should be agreed anew."""
    if agreed.surroundings != found.surroundings:
        return []
    both = sorted(agreed.counts.keys() & found.counts.keys())
    return [row for row in both if found.counts[row] < agreed.counts[row] * (1 - TOLERANCE)]
