"""Counts as tables in Markdown: what each peer costs, and ratios."""

from tests.bench.dataplane.rows import IPVS, NO_SERVICE, OURS, PATHS, PriceRow, floor_of

KIND_NAMES = {"connection": "connect, ask, close", "tcp": "TCP on an open connection", "udp": "UDP"}


def tables(results):
    """Return one table for each number of Services."""
    sizes = sorted({row.services for row in results.counts})
    return "\n\n".join(_table(results, services) for services in sizes)


def _table(results, services):
    proxies = _proxies(results)
    theirs = [name for name in proxies if name != OURS]
    heads = ["round trip", "floor", *proxies, "to the floor", *(f"to {name}" for name in theirs)]
    lines = [f"{services:,} Services, thousands of instructions", "", _line(heads), _line(["---"] * len(heads))]
    for path in PATHS:
        for kind in path.kinds:
            row = PriceRow(services, path.name, kind, OURS)
            lines += _row(results, row, proxies, theirs)
    return "\n".join(lines)


def _row(results, row, proxies, theirs):
    counts = {name: results.counts.get(PriceRow(row.services, row.path, row.kind, name)) for name in proxies}
    floor = results.counts.get(floor_of(row))
    if not any(counts.values()):
        return []
    cells = [f"{row.path}: {KIND_NAMES[row.kind]}", _thousands(floor), *map(_thousands, counts.values())]
    cells += [_ratio(counts.get(OURS), other) for other in (floor, *(counts[name] for name in theirs))]
    return [_line(cells)]


def _proxies(results):
    """Peers that are no floors, ours first."""
    found = {row.peer for row in results.counts} - {IPVS, NO_SERVICE}
    return sorted(found, key=lambda name: (name != OURS, name))


def _thousands(count):
    return "-" if count is None else f"{count / 1000:.1f}"


def _ratio(ours, other):
    return f"{ours / other:.3f}" if ours and other else "-"


def _line(cells):
    return f"| {' | '.join(cells)} |"
