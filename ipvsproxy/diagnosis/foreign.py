"""Checks of what other programs have written: rules that would drop or rewrite what belongs to Services.

For each kind of frontend a packet is simulated through the chains of others
(`ruleset.filters`). The way of a packet is in docs/design.md, section 2. What only depends on things we cannot
read is never called a problem.
"""

import sys
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from ipvsproxy.base.address import family, parse_cidr, parse_ip
from ipvsproxy.base.names import NAT_PRIORITY, REPLIES_COMMENT, TABLE
from ipvsproxy.diagnosis.facts import Facts, ServerFacts, join
from ipvsproxy.diagnosis.finding import Finding, fine, problem, unchecked, warning
from ipvsproxy.diagnosis.host import is_uplink
from ipvsproxy.diagnosis.links import pod_bridges
from ipvsproxy.plan.leftovers import is_leftover
from ipvsproxy.ruleset.filters import (
    LOSING,
    UNTRACKED,
    FilterChain,
    FilterOutcome,
    FilterRule,
    FilterTables,
    PacketFields,
    where,
)

CONNTRACK = -200
"""Chains before this priority cannot ask for the state of a connection."""
IPVS_INPUT, IPVS_OUTPUT = 98, -98
"""Where IPVS takes a packet off its way: later chains of the hook do not see it as it was."""
LAST = 1 << 31
PROTOCOLS = {"TCP": 6, "UDP": 17, "SCTP": 132}
NEW, ESTABLISHED = 8, 2
UNICAST, LOCAL = 1, 2
SAMPLES = 300
"""Frontends of different ports that are tried, for each family: rules tell ports apart, hardly ever addresses."""
LOWEST_NODE_PORT = 30000
"""Of Kubernetes' default range."""
REWRITING = frozenset(("dnat", "redirect"))
HIDING = frozenset(("masquerade", "snat"))
FULL_MASK = b"\xff\xff\xff\xff"


class TrafficPath(NamedTuple):
    """A packet on its way: what it is for people, a hook it crosses, and what is known of it.

    Chains of the hook from the priority `until` on do not see it.
    """

    description: str
    hook: str
    packet: PacketFields
    until: int = LAST


class Pods(NamedTuple):
    """The address of a pod of this node, and of one of another node, by family, where endpoints tell of one."""

    here: dict[int, str]
    there: dict[int, str]


class Ends(NamedTuple):
    """By which link packets of local pods, and those from outside, come in; empty where that is not one link."""

    pods: dict[str, bytes]
    uplink: dict[str, bytes]


def check_foreign(facts: Facts) -> Iterator[Finding]:
    """No rule of another program drops, rewrites or masks what belongs to Services, and none uses our mark."""
    if facts.chains is None:
        yield unchecked(
            "other rules",
            facts.unread.get("chains", "could not be read"),
            "run it with the capability CAP_NET_ADMIN",
        )
        return
    book = FilterTables(chain for chain in facts.chains if not is_ours(chain))
    findings = [
        *_marks(book, facts.settings.mark),
        *_drops(facts, book),
        *_rewrites(facts, book),
        *_masks(facts, book),
    ]
    yield from findings
    if not findings:
        others = sorted({f"{c.legacy or c.family} {c.table}" for c in facts.chains if c.hook and not is_ours(c)})
        tables = f"tables with hooks: {', '.join(others)}" if others else "there are none"
        yield fine("other rules", "no other program's rules get in the way", tables)


def is_ours(chain: FilterChain) -> bool:
    """Whether a chain is part of our table."""
    return (chain.family, chain.table) == ("inet", TABLE)


# Marks


def _marks(book: FilterTables, mark: int) -> Iterator[Finding]:
    """Rules that ask for the bit that we set on replies, or change it."""
    colliding = [(chain, rule) for chain, rule in book.filtering_rules() if _uses(chain, rule, mark)]
    for chain, rule in colliding[:1]:
        others = [where(*pair) for pair in colliding[1:5]]
        finding = problem if rule.verdict in LOSING else warning
        yield finding(
            "packet mark",
            f"{where(chain, rule)} uses bit {mark:#x} of the packet mark, which ipvsproxy sets on replies"
            + (", and drops them" if rule.verdict in LOSING else ""),
            *others,
            step="choose a bit that no other program uses: --iptables-masquerade-bit",
        )


def _uses(chain: FilterChain, rule: FilterRule, mark: int) -> bool:
    if rule.comment.startswith(REPLIES_COMMENT) or is_leftover(chain.name) or chain.name.startswith("KUBE-"):
        return False
    masks = (int.from_bytes(m.mask, sys.byteorder) for m in rule.matches if m.field == "mark")
    whole = int.from_bytes(FULL_MASK)
    return bool(rule.marks != whole and rule.marks & mark) or any(m != whole and m & mark for m in masks)


# Drops


def _drops(facts: Facts, book: FilterTables) -> Iterator[Finding]:
    """One finding for each rule or policy that loses packets; each rule is reported once."""
    reported: set[str] = set()
    for path, outcome in _outcomes(book, _paths(facts)):
        is_hidden = outcome.verdict == UNTRACKED and outcome.certain
        if not (outcome.verdict in LOSING or is_hidden) or outcome.where in reported:
            continue
        reported.add(outcome.where)
        if outcome.verdict == UNTRACKED:
            yield problem(
                "other rules",
                f"{outcome.where} hides {path.description} from conntrack: no filter, no masquerade",
                step="have the program that owns it track them",
            )
        elif outcome.certain:
            yield problem("other rules", f"{outcome.where} drops {path.description}", step=_advice(outcome, path))
        else:
            yield warning(
                "other rules",
                f"{outcome.where} drops {path.description}, unless a rule that cannot be judged here lets it pass",
                *outcome.doubts[:3],
                step=_advice(outcome, path),
            )


def _advice(outcome: FilterOutcome, path: TrafficPath) -> str:
    legacy = "legacy" in outcome.where
    if path.hook == "forward" and legacy:
        return (
            "in legacy iptables: iptables-legacy -I FORWARD -m conntrack --ctstate RELATED,ESTABLISHED -j ACCEPT"
        )
    return f"have the program that owns it accept {path.description}, or remove the rule"


def _outcomes(book: FilterTables, paths: Iterable[TrafficPath]) -> Iterator[tuple[TrafficPath, FilterOutcome]]:
    for path in paths:
        family = 4 if path.packet["nfproto"] == bytes([2]) else 6
        for chain in book.base(path.hook, family=family):
            if chain.kind != "nat" and chain.priority < path.until:
                early = chain.priority <= CONNTRACK
                packet = {name: v for name, v in path.packet.items() if not (early and name == "ctstate")}
                yield path, book.walk(chain, packet)


def _paths(facts: Facts) -> Iterator[TrafficPath]:
    pods, links = _pods(facts), _links(facts)
    for server in _samples(facts):
        yield from _paths_of(facts, server, pods, links)


def _samples(facts: Facts) -> list[ServerFacts]:
    """Return one server for each family, protocol, port and kind of frontend, those with endpoints first."""
    vips = frozenset(facts.vips)
    found: dict[tuple[bool, str, int, bool], ServerFacts] = {}
    for server in sorted(facts.servers or (), key=lambda s: not s.backends):
        found.setdefault((":" in server.address, server.protocol, server.port, server.address in vips), server)
    return list(found.values())[:SAMPLES]


def _paths_of(facts: Facts, server: ServerFacts, pods: Pods, links: Ends) -> Iterator[TrafficPath]:
    destination = {"daddr": parse_ip(server.address), "dport": server.port.to_bytes(2)}
    base = _base(server)
    local = [b for b in server.backends if _is_local(facts, b.address)]
    is_vip = server.address in facts.vips
    # A client whose address is known, where there is one: firewalls often let pods pass.
    pod = pods.here.get(family(destination["daddr"]))
    client = links.pods | {"saddr": parse_ip(pod)} if is_vip and pod else links.uplink
    coming = {**base, **destination, **client, **_state(NEW, LOCAL)}
    # On the short path they have the endpoint's address from our decision on.
    yield TrafficPath(f"connections to {server}", "prerouting", coming, NAT_PRIORITY if server.is_short else LAST)
    if not server.is_short:
        yield TrafficPath(f"connections to {server}", "input", coming, IPVS_INPUT)
    if is_vip:
        from_node = {**base, **destination, **_state(NEW, LOCAL)}
        until = NAT_PRIORITY if server.is_short else IPVS_OUTPUT
        yield TrafficPath(f"connections from the node to {server}", "output", from_node, until)
    for backend in server.backends[:1]:
        to = {"daddr": parse_ip(backend.address), "dport": backend.port.to_bytes(2)}
        description = f"what {server} sends to its endpoint {backend}"
        for hook in ("output", "postrouting"):
            yield TrafficPath(description, hook, {**base, **to, **_state(NEW, UNICAST)})
    mark = {"mark": facts.settings.mark.to_bytes(4, sys.byteorder)}
    for backend in local[:1]:
        source = {"saddr": parse_ip(backend.address), "sport": backend.port.to_bytes(2), **links.pods}
        replies = {**base, **source, **_state(ESTABLISHED, UNICAST)}
        description = f"replies of the endpoint {join(backend.address, backend.port)} through {server}"
        yield TrafficPath(description, "prerouting", replies)
        yield TrafficPath(description, "forward", {**replies, **mark})
    for backend in server.backends[:1] if server.is_short else ():
        to = {"daddr": parse_ip(backend.address), "dport": backend.port.to_bytes(2)}
        description = f"new connections through {server} to its endpoint {backend}"
        yield TrafficPath(description, "forward", {**base, **to, **mark, **_state(NEW, UNICAST)})


def _links(facts: Facts) -> Ends:
    bridges = [link.name for link in pod_bridges(facts)]
    uplinks = [link.name for link in facts.links or () if is_uplink(link)]
    return Ends(*({"iifname": names[0].encode()} if len(names) == 1 else {} for names in (bridges, uplinks)))


def _base(server: ServerFacts) -> dict[str, bytes]:
    family = 10 if ":" in server.address else 2
    return {"nfproto": bytes([family]), "l4proto": bytes([PROTOCOLS.get(server.protocol, 0)])}


def _state(state: int, kind: int) -> dict[str, bytes]:
    return {"ctstate": state.to_bytes(4, sys.byteorder), "daddrtype": kind.to_bytes(4, sys.byteorder)}


def _is_local(facts: Facts, address: str) -> bool:
    packed = parse_ip(address)
    return any(packed in parse_cidr(text) for text in facts.pod_cidrs)


def _pods(facts: Facts) -> Pods:
    found = Pods({}, {})
    mine = [parse_cidr(text) for text in facts.pod_cidrs]
    every = [*mine, *(parse_cidr(text) for text in facts.settings.cluster_cidrs)]
    for address in sorted({b.address for server in facts.servers or () for b in server.backends}):
        packed = parse_ip(address)
        if any(packed in cidr for cidr in mine):
            found.here.setdefault(family(packed), address)
        elif any(packed in cidr for cidr in every):
            found.there.setdefault(family(packed), address)
    return found


# Rewriting


def _rewrites(facts: Facts, book: FilterTables) -> Iterator[Finding]:
    """A hostPort of the same number takes a NodePort away; VIPs we have claimed before such rules are asked."""
    taken: dict[str, list[ServerFacts]] = {}
    for server in _samples(facts):
        if rule := _taken_by(facts, book, server):
            taken.setdefault(rule, []).append(server)
    for rule, servers in taken.items():
        kind = "VIP" if servers[0].address in facts.vips else "NodePort"
        # On other ports it may be meant, as by load balancers that are pods with a hostPort.
        finding = problem if kind == "VIP" or servers[0].port >= LOWEST_NODE_PORT else warning
        yield finding(
            "hostPort",
            f"{rule} takes connections to the {kind} {servers[0]} elsewhere, before IPVS sees them",
            *(str(server) for server in servers[1:4]),
            step="give the pod another hostPort, or the Service another port",
        )


def _taken_by(facts: Facts, book: FilterTables, server: ServerFacts) -> str:
    family = 6 if ":" in server.address else 4
    packet = {**_base(server), "daddr": parse_ip(server.address), "dport": server.port.to_bytes(2)}
    for chain in book.base("prerouting", "nat", family):
        if server.address in facts.vips and chain.priority >= NAT_PRIORITY:
            continue
        outcome = book.walk(chain, {**packet, **_state(NEW, LOCAL)})
        if outcome.verdict in REWRITING and outcome.certain and not is_leftover(chain.name):
            return outcome.where
    return ""


# Masking


def _masks(facts: Facts, book: FilterTables) -> Iterator[Finding]:
    """A network plugin that masquerades from pod to pod hides the client."""
    pods = _pods(facts)
    for number in pods.here.keys() & pods.there.keys():
        source, destination = pods.here[number], pods.there[number]
        packet = {
            "nfproto": bytes([2 if number == 4 else 10]),
            "l4proto": bytes([6]),
            "saddr": parse_ip(source),
            "daddr": parse_ip(destination),
            **_state(NEW, UNICAST),
        }
        for chain in book.base("postrouting", "nat", number):
            outcome = book.walk(chain, packet)
            if outcome.verdict in HIDING and outcome.certain:
                yield warning(
                    "masquerade",
                    f"{outcome.where} masquerades what one pod sends to another: endpoints do not see the client",
                    f"for example from {source} to {destination}",
                    step="have the network plugin masquerade only what leaves the cluster (see its ipMasq)",
                )
                return
