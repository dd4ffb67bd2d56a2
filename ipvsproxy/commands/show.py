"""`ipvsproxy show services|endpoints|connections|rules [NAME...]`: what the kernel has, by the names of Services.

Rows come from `commands.rows`; here they are filtered, sorted and printed as kubectl does it. Words after the
first one are names of Services, with or without their namespace.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ipvsproxy.commands import objects, rows
from ipvsproxy.commands.command_table import EXIT_FINDINGS, EXIT_OK
from ipvsproxy.commands.invocation import Invocation, WrongUsage, unreadable
from ipvsproxy.commands.output import Cell, Grid, Marked, OutputParts, Style, emit, follow, note
from ipvsproxy.commands.rows import OutputRow
from ipvsproxy.commands.running import at_its_address
from ipvsproxy.commands.selector import selector
from ipvsproxy.commands.service_names import Names, names, similar
from ipvsproxy.config.kinds import NANOSECONDS
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.kernel.wire.netlink import KernelError


class Topic(NamedTuple):
    """What can be shown: the kind of its document, where rows come from, columns and the fields they show.

    `spare` are columns that a narrow terminal can do without, the least important first.
    """

    kind: str
    read: Callable[[KernelReader, Names, int], list[OutputRow]]
    columns: dict[str, str]
    wide: dict[str, str]
    spare: tuple[str, ...]


CUT = "only the first {} connections were read; --limit reads more"
MOODS = {
    "accept": Style.GOOD, "serving": Style.GOOD, "refuse": Style.BAD, "drop": Style.BAD, "draining": Style.WARNING,
    "full": Style.WARNING, "maintenance": Style.WARNING,
}  # fmt: skip
SERVICE = {"NAMESPACE": "namespace", "SERVICE": "service"}
LOAD = {"ACTIVE": "active", "INACTIVE": "inactive", "CONNECTIONS": "connections"}
COUNTED = {"IN-PACKETS": "inPackets", "OUT-PACKETS": "outPackets", "IN-BYTES": "inBytes", "OUT-BYTES": "outBytes"}
RATES = {"CONN/S": "connectionRate", "IN-BYTES/S": "inByteRate", "OUT-BYTES/S": "outByteRate"}
SPARE = ("OUT-BYTES/S", "IN-BYTES/S", "CONN/S", "INACTIVE", "CONNECTIONS")
TOPICS = {
    "services": Topic(
        "ServiceList",
        rows.services,
        SERVICE | {"FRONTEND": "frontend", "VERDICT": "verdict", "ENDPOINTS": "endpoints", "DRAINING": "draining"}
        | LOAD | RATES,
        {"TENANT": "tenant", "MAINTENANCE": "maintenance", "SCHEDULER": "scheduler", "AFFINITY": "affinitySeconds",
         "ONE-PACKET": "onePacket", "ATTRIBUTES": "attributes"} | COUNTED,
        (*SPARE, "DRAINING", "ACTIVE"),
    ),
    "endpoints": Topic(
        "EndpointList",
        rows.endpoints,
        SERVICE | {"FRONTEND": "frontend", "ENDPOINT": "endpoint", "STATE": "state", "WEIGHT": "weight"}
        | LOAD | RATES,
        {"UPPER": "upperThreshold", "LOWER": "lowerThreshold", "PERSISTENT": "persistent",
         "FORWARDING": "forwarding"} | COUNTED,
        (*SPARE, "WEIGHT", "ACTIVE"),
    ),
    "connections": Topic(
        "ConnectionList",
        rows.connections,
        SERVICE | {"CLIENT": "client", "FRONTEND": "frontend", "ENDPOINT": "endpoint", "STATE": "state",
                   "EXPIRES": "expiresSeconds"},
        {},
        ("EXPIRES", "NAMESPACE", "SERVICE"),
    ),
    "rules": Topic(
        "RuleList",
        rows.rules,
        SERVICE | {"FRONTEND": "frontend", "VERDICT": "verdict", "MASQUERADE": "masquerade",
                   "INSIDE-VIEW": "inside", "SOURCE-RANGES": "sourceRanges"},
        {"ADDRESS": "address", "PING": "ping", "TENANTS": "tenants", "PORTS": "ports"},
        ("INSIDE-VIEW", "MASQUERADE", "SOURCE-RANGES"),
    ),
}  # fmt: skip


def run(invocation: Invocation) -> int:
    """Show one topic, once or again and again."""
    if not invocation.arguments or invocation.arguments[0] not in TOPICS:
        raise WrongUsage(f"one of these is needed: {', '.join(TOPICS)}")
    invocation = at_its_address(invocation)
    topic, flags = TOPICS[invocation.arguments[0]], invocation.flags
    if flags["interval"] <= 0:
        raise WrongUsage("--interval: must be greater than 0")
    fits = _filter(invocation)
    sort = _sort(topic, flags["sort-by"])
    form = flags["output"]
    limit = flags["limit"] if topic is TOPICS["connections"] else 0

    reported: set[str] = set()

    def look() -> tuple[Mapping[str, Any], OutputParts]:
        found, known, lacks = _read(invocation, topic, limit)
        cut = bool(limit) and len(found) >= limit
        shown = sort([row for row in found if fits(row)])
        missing = _missing(invocation.arguments[1:], known)
        for problem in _problems([*lacks, known.problem], limit if cut else 0, missing, shown):
            if problem not in reported:
                reported.add(problem)
                note(problem)
        document = {"items": shown, "named": not known.problem, "truncated": cut, "missing": list(missing)}
        return document, [_grid(topic, shown, flags["sort-by"], wide=form == "wide")]

    if flags["watch"]:
        follow(form, topic.kind, look, flags["interval"] / NANOSECONDS)
    document, parts = look()
    emit(form, topic.kind, document, parts)
    return (
        EXIT_FINDINGS if document["missing"] or (invocation.arguments[1:] and not document["named"]) else EXIT_OK
    )


def _missing(wanted_names: Sequence[str], known: Names) -> dict[str, list[str]]:
    """Return the names that no Service here has, each with those that may be meant; none where that is unknown."""
    if known.problem:
        return {}
    every = set(known.services.values())
    bare = {name.partition("/")[2] for name in every}
    return {word: similar(word, every) for word in wanted_names if word not in every | bare}


def _problems(
    problems: Sequence[str], cut: int, missing: Mapping[str, Sequence[str]], shown: Sequence[OutputRow]
) -> Iterator[str]:
    yield from filter(None, problems)
    if cut:
        yield CUT.format(cut)
    for name, like in missing.items():
        yield f"no Service {name} has a frontend here" + (f"; there are: {', '.join(like)}" if like else "")
    if not shown:
        yield "nothing to show"


def _read(invocation: Invocation, topic: Topic, limit: int) -> tuple[list[OutputRow], Names, list[str]]:
    try:
        with KernelReader() as view:
            known = names(invocation.config, view)
            return topic.read(view, known, limit), known, list(objects.lacking(view))
    except (KernelError, OSError) as error:
        raise unreadable(error) from error


def _grid(topic: Topic, found: Sequence[OutputRow], sorted_by: str, *, wide: bool) -> Grid:
    columns = topic.columns | (topic.wide if wide else {})
    by = sorted_by.removeprefix("-").lower()
    spare = [head for head in topic.spare if by not in (head.lower(), columns[head].lower())]
    return Grid(list(columns), [[_cell(row[name]) for name in columns.values()] for row in found], spare)


def _cell(value: Any) -> Cell:
    """Show nothing as a dash, so that columns can be counted."""
    if isinstance(value, list):
        return value
    if isinstance(value, bool):
        return Marked(str(value).lower())
    return value if isinstance(value, int) else Marked(value, MOODS.get(value, Style.PLAIN)) if value else "-"


def _sort(topic: Topic, wanted: str) -> Callable[[list[OutputRow]], list[OutputRow]]:
    """Return what sorts rows by a column or field. Raises WrongUsage."""
    if not wanted:
        return lambda found: sorted(found, key=lambda row: [_order(row[name]) for name in topic.columns.values()])
    columns = topic.columns | topic.wide
    named = {name.lower(): name for name in columns.values()} | {k.lower(): v for k, v in columns.items()}
    name = named.get(wanted.removeprefix("-").lower())
    if name is None:
        raise WrongUsage(f"--sort-by: {wanted!r} is none of {', '.join(columns)}")
    return lambda found: sorted(found, key=lambda row: _order(row[name]), reverse=wanted.startswith("-"))


def _order(value: Any) -> tuple[int, str]:
    return (value, "") if isinstance(value, int) else (0, str(value))


def _filter(invocation: Invocation) -> Callable[[OutputRow], bool]:
    """Return what tells whether a row was asked for. Raises WrongUsage, Failed."""
    namespace = "" if invocation.flags["all-namespaces"] else invocation.flags["namespace"]
    wanted = frozenset(invocation.arguments[1:])
    labelled = _labelled(invocation)

    def fits(row: OutputRow) -> bool:
        name = f"{row['namespace']}/{row['service']}"
        return (
            namespace in ("", row["namespace"])
            and (not wanted or not wanted.isdisjoint((name, row["service"])))
            and (labelled is None or name in labelled)
        )

    return fits


def _labelled(invocation: Invocation) -> frozenset[str] | None:
    """Return the Services that --selector selects, None for all. Raises WrongUsage, Failed."""
    if not invocation.flags["selector"]:
        return None
    selects = selector(invocation.flags["selector"])
    if not objects.are_named(invocation.config):
        raise WrongUsage("--selector: only objects have labels: give --manifests or --kubeconfig")
    return frozenset(name for name, labels in objects.read(invocation.config).labels().items() if selects(labels))
