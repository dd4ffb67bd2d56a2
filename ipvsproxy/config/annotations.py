"""Every annotation that we read, as one row: its name, what may stand in it, and what becomes of it.

All else is derived from these rows: reading them, the complaint about a value that cannot be used or a name that
is misspelt, the values that the setting `serviceDefaults` may have, and docs/annotations.md. A row names the field
of `plan.model` that gets the value; what the value means is decided in `plan.planner`.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from difflib import get_close_matches
from typing import Any, NamedTuple

from ipvsproxy.config import annotation_values as values

PREFIX = "ipvsproxy.io/"
SERVICE, ENDPOINT_SLICE = "Service", "EndpointSlice"
LONGEST_VALUE, LONGEST_KEY = 40, 80
"""Characters of a value, and of a name, that a complaint repeats."""
IS_LOCAL = "is_local"
"""What `read` returns for a Service with an annotation of kube-router, beside fields of `plan.model`."""
MOST_COMPARED = 5
"""Unknown names of one object that are looked up among the known ones: each takes some microseconds."""


class Annotation(NamedTuple):
    """One annotation of ours.

    `read` makes the value of the field from what the object holds, which may be anything: it raises ValueError for
    what is not `allowed`. `aliases` are whole names that other programs have for the same thing. Without
    `has_default` it is about one Service, and a node has none for all.
    """

    name: str
    field: str
    read: Callable[[Any], Any]
    allowed: str
    example: str
    help: str
    objects: tuple[str, ...] = (SERVICE,)
    aliases: tuple[str, ...] = ()
    has_default: bool = True

    @property
    def key(self) -> str:
        """The name as it stands in an object."""
        return PREFIX + self.name


TABLE = (
    Annotation(
        "drain-timeout", "drain_seconds", values.drain, "a duration such as 30s or 1h or the word pod", "90s",
        "How long a TCP endpoint that is removed keeps its connections. `0s`: without limit. `pod`: until its pod"
        " is gone, which is when it has ended, at the latest after its terminationGracePeriodSeconds. In place of"
        " `--drain-timeout`."),
    Annotation(
        "data-path", "data_path", values.data_path, "ipvs or auto", "auto",
        "The way of packets to it, in place of `--data-path`: `ipvs`, or `auto` for the short path by"
        " conntrack's DNAT where the Service wants nothing that only IPVS has"
        " ([the short path](internals-packets.md#the-short-path)). A change counts for new connections."),
    Annotation(
        "scheduler", "scheduler", values.scheduler, f"an IPVS scheduler ({', '.join(values.SCHEDULERS)})", "mh",
        "The IPVS scheduler of its virtual servers, in place of `--ipvs-scheduler`, with the flags that that one"
        " would have. A change counts for new connections.", aliases=("kube-router.io/service.scheduler",)),
    Annotation(
        "scheduler-flags", "scheduler_flags", values.scheduler_flags,
        f"none, or some of {', '.join(values.FLAGS)}", "sh-port",
        "The flags of the scheduler in place of those that it has of itself (`mh-fallback` and `mh-port` with"
        " `mh`, `sh-fallback` with `sh`): with `port` the client's port counts too, with `fallback` an endpoint"
        " that takes no connections is passed over and does not refuse them.",
        aliases=("kube-router.io/service.schedflags",)),
    Annotation(
        "affinity-netmask", "affinity_prefixes", values.prefixes,
        "the length of an IPv4 prefix, also with that of IPv6: 24 or 24,64", '"24,64"',
        "With sessionAffinity ClientIP: clients of one such network are taken for one, and get one endpoint."),
    Annotation(
        "affinity-engine", "affinity_engine", values.affinity_engine, f"one of {', '.join(values.ENGINES)}", "sip",
        "With sessionAffinity ClientIP, for UDP ports: what a client is known by in place of its address. `sip` is"
        " the Call-ID of a SIP message: all messages of a call get one endpoint, from whatever address; the kernel"
        " drops datagrams without one. It needs the module ip_vs_pe_sip; without it affinity is by addresses, and"
        " an Event reports it."),
    Annotation(
        "affinity-scope", "affinity_scope", values.affinity_scope, f"one of {', '.join(values.SCOPES)}",
        values.ONE_FOR_ALL_PORTS,
        "With sessionAffinity ClientIP: `service` gives a client one endpoint for all TCP ports of the Service,"
        " and one for all UDP ports; by default each port has an affinity of its own. At VIPs (ClusterIPs,"
        " external and load balancer addresses that no link of the node has), where endpoints have all ports by"
        " the numbers of the Service (targetPort is port) and no policy is Local; not on NodePorts, and not at"
        " load balancer addresses with source ranges. A change ends open connections to these ports."),
    Annotation(
        "port-range", "port_ranges", values.port_ranges,
        f"at most {values.MOST_RANGES} ports, ranges or * for all, with /udp or /sctp if not TCP; no overlaps",
        "30000-31000/udp,5060",
        "Ports beside those of `spec.ports` at which its VIPs (ClusterIPs, external and load balancer addresses"
        " that no link of the node has) lead to its endpoints; each connection keeps the port that it asked for."
        " All ports of a client go to one endpoint, for as long as sessionAffinityConfig sets, three hours by"
        " default: RTP, SIP, passive FTP. Not on NodePorts, not at load balancer addresses with source ranges, and"
        " not where both traffic policies are Local; local pods get the endpoints that clients from outside get."),
    Annotation(
        "one-packet", "one_packet", values.boolean, '"true" or "false"', '"true"',
        "No UDP packet belongs to a connection: each goes to the next endpoint, also those of one client port"
        " (`ops` in `ipvsadm -Ln`). For senders that keep one socket and expect no answer: syslog, sFlow, NetFlow,"
        " metrics. Session affinity excludes it."),
    Annotation(
        "weights", "weights", values.weights,
        f"pods and their weights, 0 to {values.MOST_WEIGHT}, such as web-0=3,web-1=0 or web-canary-*=1"
        f" (at most {values.MOST_PATTERNS} names with *)", "web-0=3,web-1=0,web-canary-*=1",
        "How many of the new connections a pod gets in proportion to others; 1 for pods that are not named. The"
        " longest beginning of a name counts, and that of an EndpointSlice comes before that of its Service."
        " With 0 a pod gets no new connections and keeps those it has: maintenance. The schedulers `rr`, `lc` and"
        " `dh` know of weights only that 0 is none: an Event reports it.",
        objects=(SERVICE, ENDPOINT_SLICE)),
    Annotation(
        "weight", "weight", values.weight, f"a number from 0 to {values.MOST_WEIGHT}", '"3"',
        "The weight of all endpoints of the EndpointSlice whose pods `weights` does not name in full; also of"
        " those that are no pods, in slices that people or gateways have written. 0: maintenance.",
        objects=(ENDPOINT_SLICE,), aliases=("service.cilium.io/weight",)),
    Annotation(
        "same-zone-weight", "same_zone_weight", values.same_zone_weight,
        f"a number from 1 to {values.MOST_ZONE_WEIGHT}", '"10"',
        "Endpoints in the zone of the node get so many times the connections of others: a preference without"
        " the cliff of topology hints, as others still get some. It multiplies the weights of pods. Endpoints"
        " and nodes without a zone count as elsewhere. The schedulers are those of `weights`."),
    Annotation(
        "slow-start", "slow_start_seconds", values.slow_start,
        "a duration such as 30s, at most 1h; 0s for none", "30s",
        "How long a new endpoint takes to get as many new connections as others: it begins with a tenth of its"
        " weight and gets a tenth more in each of nine steps. New is what becomes ready while this node knows the"
        " others; a restart of the proxy continues it. All weights of the Service are ten times as large. The"
        " schedulers are those of `weights`; with `sh` and `mh` each step leads some clients to other endpoints."),
    Annotation(
        "ping", "ping", values.ping, f"one of {', '.join(values.PINGS)}", "when-ready",
        "Whether its VIPs answer pings: its ClusterIPs, and external and load balancer addresses that no link of"
        " the node has. With `when-ready` only while connections to the same address find an endpoint, on this"
        " node if a policy wants that. With `always` and `when-ready` loadBalancerSourceRanges count for pings as"
        " well. Without the annotation everybody gets an answer, as from kube-proxy. Where Services share an"
        " address, the strictest that has one counts."),
    Annotation(
        "forwarding", "forwarding", values.forwarding, "one of masquerade, ipip, gue", "ipip",
        "With `ipip` and `gue`, direct server return ([dsr.md](dsr.md)): what clients from outside send to its"
        " external and load balancer addresses goes to the pod unchanged, in a tunnel of this kind, and the pod"
        " answers the client itself, past the node that has balanced. All its pods need an init container, and"
        " targetPort must be the number of the port. A change between the two, or back to `masquerade`, ends open"
        " connections.",
        aliases=("kube-router.io/service.dsr",), has_default=False),
    Annotation(
        "max-connections", "max_connections", values.max_connections,
        f"a number of connections from 1 to {values.MOST_CONNECTIONS}, also with that below which an endpoint gets"
        " new ones again: 100 or 100/80; 0 for no limit", '"100/80"',
        "An endpoint with so many connections through this node gets no new ones until it has fewer than the"
        " second number, or than three quarters of the first where there is none. Others get them instead; if all"
        " are full, connections are refused. Each node counts the connections that come through it, those that"
        " have just ended included (`active` and `inactive` in `show endpoints`)."),
    Annotation(
        "share-with", "share_with", values.tenants,
        f"names of tenants such as blue,green (at most {values.MOST_TENANTS}), or * for all of them", "blue,green",
        "Pods of these tenants may connect to the Service as those of its own tenant may (docs/tenants.md). Means"
        " nothing without `--tenant-label`, and for a Service that is in no tenant's namespace.",
        has_default=False),
    Annotation(
        "tenant-dns", "tenant_dns", values.boolean, '"true" or "false"', '"true"',
        "The Service is the DNS of its tenant: pods of the tenant that ask the cluster's DNS Service"
        " (`--cluster-dns`) are answered by this one (docs/tenants.md). Of several the oldest counts.",
        has_default=False),
)  # fmt: skip


class ForeignAnnotation(NamedTuple):
    """An annotation of kube-router that other fields of the API, or nothing, stand for here.

    kube-router looks whether it is there, whatever its value; "false" counts as not there. `is_local` tells that
    the Service wants endpoints of the node only.
    """

    key: str
    note: str
    is_local: bool = False


FOREIGN = {
    row.key: row
    for row in (
        ForeignAnnotation(
            "kube-router.io/service.local",
            "counts as internalTrafficPolicy Local and externalTrafficPolicy Local; set those, since others, such"
            " as load balancers, do not know the annotation",
            is_local=True,
        ),
        ForeignAnnotation(
            "kube-router.io/service.hairpin",
            "has no effect: here each pod reaches itself through each Service",
        ),
        ForeignAnnotation(
            "kube-router.io/service.hairpin.externalips",
            "has no effect: here each pod reaches itself through each Service",
        ),
        ForeignAnnotation(
            "kube-router.io/service.dsr",
            "stands for ipvsproxy.io/forwarding: ipip, and pods need an init container for it (docs/dsr.md):"
            " this proxy puts nothing into pods",
        ),
    )
}
BY_KEY = {kind: {row.key: row for row in TABLE if kind in row.objects} for kind in (SERVICE, ENDPOINT_SLICE)}
ALIASES = {kind: {a: row for row in TABLE if kind in row.objects for a in row.aliases} for kind in BY_KEY}
DEFAULTS = {row.name: row for row in TABLE if SERVICE in row.objects and row.has_default}
"""What a node may have for Services that do not have it themselves."""
PREFIXES = (PREFIX, *(alias for row in TABLE for alias in row.aliases), *FOREIGN)


def read(kind: str, annotations: Mapping[str, Any] | None, complaints: list[str]) -> dict[str, Any]:
    """Return the values of annotations by the field they are for; complain about those that cannot be used."""
    if not annotations:
        return {}
    found: dict[str, Any] = {}
    ours = [key for key in annotations if key.startswith(PREFIXES)]
    if not ours:
        return found
    for known in (ALIASES[kind], BY_KEY[kind]):  # our own name wins
        for key in known.keys() & ours:
            try:
                found[known[key].field] = known[key].read(annotations[key])
            except ValueError:
                complaints.append(misused(key, annotations[key], f"is not {known[key].allowed}; default used"))
    complaints += _unknown(kind, ours)
    if kind == SERVICE:
        found |= _foreign(annotations, FOREIGN.keys() & ours, complaints)
    return found


def _foreign(annotations: Mapping[str, Any], keys: Iterable[str], complaints: list[str]) -> dict[str, Any]:
    given = [key for key in sorted(keys) if annotations[key] != "false"]
    complaints += [misused(key, annotations[key], FOREIGN[key].note) for key in given]
    return {IS_LOCAL: True} if any(FOREIGN[key].is_local for key in given) else {}


def default_problems(texts: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    """Yield those defaults for Services that cannot be used: the name, without our prefix, and the reason."""
    for name, text in texts.items():
        row = DEFAULTS.get(name)
        if f"{PREFIX}{name}" in BY_KEY[SERVICE] and row is None:
            yield name, "has no default: its value is about one Service"
        elif row is None:
            near = get_close_matches(name[:LONGEST_KEY], DEFAULTS, n=1, cutoff=0.0)
            yield name, f"no annotation of a Service has this name; the nearest is {near[0]}"
        elif not _is_readable(row, text):
            yield name, f"is not {row.allowed}"


def _is_readable(row: Annotation, text: str) -> bool:
    try:
        row.read(text)
    except ValueError:
        return False
    return True


def defaults(texts: Iterable[tuple[str, str]]) -> dict[str, Any]:
    """Return the values of usable defaults by the field they are for."""
    return {DEFAULTS[name].field: DEFAULTS[name].read(text) for name, text in texts}


def misused(key: str, value: Any, problem: str) -> str:
    """Return the complaint about an annotation."""
    return f"metadata.annotations[{key}]: {str(value)[:LONGEST_VALUE]!r} {problem}"


def _unknown(kind: str, ours: Iterable[str]) -> Iterator[str]:
    """Yield complaints about names that begin like ours and are none."""
    strange = [key for key in ours if key.startswith(PREFIX) and key not in BY_KEY[kind]]
    for key in strange[:MOST_COMPARED]:
        yield f"metadata.annotations[{key[:LONGEST_KEY]}]: {_advice(kind, key)}"
    if len(strange) > MOST_COMPARED:
        yield f"metadata.annotations: {len(strange) - MOST_COMPARED} more of {PREFIX} are not known"


def _advice(kind: str, key: str) -> str:
    elsewhere = next((other for other, rows in BY_KEY.items() if key in rows), None)
    if elsewhere:
        return f"not read from an object of kind {kind}, but {elsewhere}"
    near = get_close_matches(key[:LONGEST_KEY], BY_KEY[kind], n=1, cutoff=0.0)
    return f"not known; the nearest that is: {near[0]}" if near else f"not known for an object of kind {kind}"
