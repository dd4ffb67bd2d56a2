"""The way of one packet through this node: what happens to it and why, from the kernel's state alone.

Follows nft/rulesets/ipvsproxy.nft and its parts chain by chain, with the lookups that a packet would make, for
the first packet of a new connection; then IPVS, then the masquerade of each endpoint. No I/O but the questions to
`State`. What the packet meets of others (their chains, rp_filter, a FORWARD that drops), and what persistence
remembers of one client, is not looked at here.
"""

from collections.abc import Iterable, Sequence

from ipvsproxy.base.address import family, format_ip
from ipvsproxy.base.frontend import FIRST_DATA_PORT, FTP_DATA_PORT, FTP_PORT, every_port
from ipvsproxy.inspect import short_path
from ipvsproxy.inspect.admission import NOT_JUDGED, Rule, admission
from ipvsproxy.inspect.ends import ENDS, TO_IPVS, WORDS, End, affinity, by_chance, next_hop
from ipvsproxy.inspect.explanation import Explanation, Packet, PacketOutcome, Sender, Step, Target
from ipvsproxy.inspect.spread import shares
from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.records import DestinationRecord, ElementMatch, ServerRecord, State
from ipvsproxy.plan.state import Destination, FrontendKey
from ipvsproxy.ruleset.codec import value_text
from ipvsproxy.ruleset.elements import Masquerade, PacketVerdict, is_short
from ipvsproxy.ruleset.schema import (
    ALLOWED,
    BY_AUDIENCE,
    FRONTENDS,
    GROUP_VIEWS,
    HAIRPIN,
    HEALTH_CHECK_PORTS,
    INTERNAL_VIEWS,
    MASQUERADE,
    POD_CIDRS,
    POD_INTERFACES,
    PORT_RANGES,
    RANGE_MASQUERADE,
    RANGED,
    RANGED_VIPS,
    SHORT_VIEWS,
    VIEWED,
    VIPS,
    ByFamily,
)

INTERNAL_VIEW = "internal view (externalTrafficPolicy Local, or direct server return)"
OF_EACH_FAMILY = ("inside", "decide", "check_source")
"""Chains that there are twice, with the number of the family in their names."""
NOWHERE = "?"
"""The link of a packet whose source no route leads to."""


def packet(to: FrontendKey, state: State, source: bytes | None = None, link: str = "") -> Packet:
    """Return the packet that a client sends: this node itself (None, or one of its addresses), or another.

    What comes from elsewhere comes in by the link that leads to its source, unless `link` specifies otherwise.
    Raises KernelError.
    """
    if source is None:
        route = state.route(to.address)
        return Packet(route.source if route and route.source else bytes(len(to.address)), to)
    route = state.route(source)
    if route is not None and route.local and not link:
        return Packet(source, to)
    return Packet(source, to, link or (route.link if route else "") or NOWHERE)


def explain(packet: Packet, state: State) -> Explanation:
    """Say what happens to a packet on this node. Raises KernelError."""
    walk = _Walk(packet, state)
    return walk.walk()._replace(admission=walk.admission)


class _Walk:
    """One packet on its way; `at` is where it goes to after our DNAT."""

    def __init__(self, packet: Packet, state: State) -> None:
        self._packet, self._state = packet, state
        self._number = family(packet.to.address)
        self._steps: list[Step] = []
        self._sender = Sender.NODE
        self._at = packet.to
        self._endpoints: list[DestinationRecord] = []
        self.admission = NOT_JUDGED

    def walk(self) -> Explanation:
        """Go all the way."""
        self._classify()
        end = self._check_source() or self._admit()
        if end is None:
            self._view()
            end = self._decide()
        if end.outcome is not None:
            return self._ended(end)
        return self._short_path(self._endpoints) if self._endpoints else self._balance()

    def _ended(self, end: End) -> Explanation:
        return Explanation(
            self._packet, self._sender, tuple(self._steps), end.outcome or PacketOutcome.NOT_OURS, end.reason
        )

    def _note(self, place: str, what: str, match: ElementMatch | None = None) -> None:
        chain = f"{place}{self._number}" if place in OF_EACH_FAMILY else place
        self._steps.append(Step(chain, what, match))

    # prerouting, output_nat, inside4, inside6

    def _classify(self) -> None:
        if not self._packet.link:
            self._note("output", f"sent by this node, from {format_ip(self._packet.source)}")
            return
        match = self._pod()
        self._sender = Sender.POD if match else Sender.OUTSIDE
        who = "a local pod" if match else "no local pod: an outside client"
        self._note("prerouting", f"{format_ip(self._packet.source)} by {self._packet.link} is {who}", match)

    def _pod(self) -> ElementMatch | None:
        """Return what makes the source a local pod; a process of the node has no link it comes in by."""
        found = self._state.find(POD_CIDRS[self._number], None, self._packet.source)
        if found is None and self._packet.link:
            found = self._state.find(POD_INTERFACES, None, self._packet.link)
        return found

    # by_source

    def _admit(self) -> End | None:
        """Return the end where only some groups of local pods may connect, and the sender is in none of them."""
        source, link, to = self._packet.source, self._packet.link, self._packet.to
        is_pod = self._sender is Sender.POD
        found = self.admission = admission(source, link, to, self._state, is_pod=is_pod)
        if found.rule in (Rule.NOT_JUDGED, Rule.OPEN):
            return None
        name = format_ip(source)
        if found.rule is Rule.UNKNOWN_POD:
            reason = f"{name} is no pod of this node whose tenant is known; the Service is a tenant's"
            self._note("admit", reason)
            return End(PacketOutcome.DROPPED, reason)
        if found.rule.admits:
            what = f"{name} may connect: it is in group {found.group}"
            self._note("check_group", what, found.admitted or found.member)
            return None
        self._note("check_group", f"{name} is in group {found.group}, which may not connect", found.member)
        outcome = PacketOutcome.DROPPED if found.drops else PacketOutcome.REFUSED
        return End(outcome, f"the Service is another tenant's, and not shared with that of {name}")

    def _view(self) -> None:
        """Follow the view for the group of the source, or else the internal view."""
        match = self._group_view()
        if match is None and self._sender is not Sender.OUTSIDE and self._has_internal_views():
            if self._short_view():
                return
            match = self._find(INTERNAL_VIEWS, self._packet.to)
        if match and isinstance(match.value, FrontendKey):
            self._at = match.value
            internal = match.slot.set in INTERNAL_VIEWS.values()
            what = INTERNAL_VIEW if internal else "the view for this group"
            self._note("inside" if internal else "lead_group", f"{what}: DNAT to {self._at}", match)

    def _has_internal_views(self) -> bool:
        """Whether views of local pods and the node are asked for at this address at all."""
        return self._state.find(VIEWED[self._number], self._packet.to.address) is not None

    def _short_view(self) -> bool:
        """Follow the internal view of a frontend on the short path."""
        match = self._find(SHORT_VIEWS, self._packet.to)
        if match is not None:
            self._endpoints = short_path.endpoints(self._state, self._at, value_text(match.value))
            seen = "externalTrafficPolicy Local, seen from inside"
            self._note("inside", f"{seen}: {by_chance(self._endpoints)}", match)
        return match is not None

    def _group_view(self) -> ElementMatch | None:
        """Packets of this node itself do not pass the hook `prerouting`."""
        found = self.admission
        if found.group is None or not self._find(BY_AUDIENCE, self._packet.to):
            return None
        self._note("by_source", f"{format_ip(self._packet.source)} is in group {found.group}", found.member)
        return self._find(GROUP_VIEWS, self._packet.to, found.group)

    def _find(self, sets: ByFamily, key: FrontendKey, rest: bytes | int | None = None) -> ElementMatch | None:
        return self._state.find(sets[self._number], key, rest)

    # Routing

    def _forwarded(self) -> End | None:
        """Only what is for this node is decided about."""
        route = self._state.route(self._at.address)
        if route is not None and route.local:
            return None
        where = next_hop(route)
        self._note("routing", f"{format_ip(self._at.address)} is no address of this node: {where}")
        return End(PacketOutcome.NOT_OURS, f"{format_ip(self._at.address)} is no address of this node: {where}")

    # decide4, decide6, check_source4, check_source6

    def _check_source(self) -> End | None:
        at_all = self._state.find(RANGED_VIPS[self._number], self._packet.to.address)
        ranged = self._find(RANGED, self._packet.to) if at_all else None
        if ranged is None:
            return None
        allowed = self._find(ALLOWED, self._packet.to, self._packet.source)
        if allowed:
            self._note("check_source", f"{format_ip(self._packet.source)} is in the source ranges", allowed)
            return None
        self._note("check_source", f"{format_ip(self._packet.source)} is in none of the source ranges", ranged)
        return End(PacketOutcome.DROPPED, f"loadBalancerSourceRanges do not have {format_ip(self._packet.source)}")

    def _decide(self) -> End:
        """The DNAT of a view ends the nat chains: it leads to a server that has endpoints, or to one of them."""
        if self._endpoints:
            return TO_IPVS
        if self._at != self._packet.to:
            return self._forwarded() or TO_IPVS
        if match := self._find(FRONTENDS, self._at):
            return self._verdict(match)
        if end := self._forwarded() or self._health_check():
            return end
        match = self._find(PORT_RANGES, self._at)
        return self._verdict(match) if match else self._no_frontend()

    def _verdict(self, match: ElementMatch) -> End:
        """IPVS takes only what is for this node; the short path and refusals do not depend on that."""
        text = value_text(match.value)
        if is_short(text):
            self._endpoints = short_path.endpoints(self._state, self._at, text)
            self._note("decide", by_chance(self._endpoints), match)
            return TO_IPVS
        verdict = PacketVerdict(text) if text in list(PacketVerdict) else None
        self._note("decide", WORDS[verdict] if verdict else text, match)
        end = ENDS[verdict] if verdict else End(PacketOutcome.NOT_OURS, f"a verdict of others: {text}")
        return self._forwarded() or end if end is TO_IPVS else end

    def _health_check(self) -> End | None:
        """A server for ranges of ports takes also this one: IPVS comes before the program that listens."""
        is_tcp = self._at.protocol == Protocol.TCP
        match = self._state.find(HEALTH_CHECK_PORTS, None, self._at.port) if is_tcp else None
        if match is None:
            return None
        if self._state.server(every_port(self._at)):
            self._note("decide", "a healthCheckNodePort, at an address whose ports IPVS takes", match)
            return TO_IPVS
        self._note("decide", "a healthCheckNodePort, which the proxy itself answers", match)
        return End(PacketOutcome.NOT_OURS, "a healthCheckNodePort: the proxy itself answers, not the Service")

    def _no_frontend(self) -> End:
        match = self._state.find(VIPS[self._number], self._at.address)
        if match:
            self._note("guard", "the guard refuses ports of a VIP that no Service has", match)
            return End(
                PacketOutcome.REFUSED,
                f"{format_ip(self._at.address)} is a VIP, but no Service has this port on it",
            )
        self._note("decide", f"no frontend {self._at}, and no VIP of ours")
        return TO_IPVS

    # The short path

    def _short_path(self, found: Sequence[DestinationRecord]) -> Explanation:
        targets, places = [], sum(real.weight for real in found)
        for real in found:
            reason, source = self._masquerade(real.destination.address)
            targets.append(Target(real, real.weight / places, source, reason))
        return Explanation(
            self._packet, self._sender, tuple(self._steps), PacketOutcome.ACCEPTED,
            f"conntrack sends it to one of {len(targets)} endpoints" if len(targets) > 1
            else "conntrack sends it to the only endpoint", None, tuple(targets),
        )  # fmt: skip

    # IPVS

    def _balance(self) -> Explanation:
        server = self._server()
        if server is None:
            return self._ended(End(PacketOutcome.NOT_OURS, self._without_server()))
        self._note("IPVS", f"virtual server {server.key}, scheduler {server.server.scheduler}{affinity(server)}")
        targets = tuple(self._targets(server, self._state.destinations(server.key)))
        if not targets:
            reason = "IPVS has no endpoint that takes new connections: port unreachable"
            return self._ended(End(PacketOutcome.REFUSED, reason))._replace(server=server)
        ways = {found.real.attributes.forwarding for found in targets if found.real.attributes.is_tunnel}
        for way in sorted(ways):
            self._note("IPVS", f"in a tunnel ({way}), itself unchanged; the pod answers the client directly")
        one_of = f"one of {len(targets)} endpoints" if len(targets) > 1 else "the only endpoint"
        reason = f"IPVS sends it to {one_of}"
        return Explanation(
            self._packet, self._sender, tuple(self._steps), PacketOutcome.ACCEPTED, reason, server, targets
        )  # fmt: skip

    def _server(self) -> ServerRecord | None:
        """Return the server that IPVS finds: of the port, of FTP for its data connections, of all other ports."""
        at = self._at
        found = self._state.server(at)
        if (
            found is None
            and at.protocol == Protocol.TCP
            and (at.port == FTP_DATA_PORT or at.port >= FIRST_DATA_PORT)
        ):
            found = self._state.server(FrontendKey(at.address, at.protocol, FTP_PORT))
        return found or self._state.server(every_port(at))

    def _without_server(self) -> str:
        if self._find(FRONTENDS, self._at):
            return f"drift: the rules accept {self._at}, but IPVS has no such server"
        route = self._state.route(self._at.address)
        return f"no frontend {self._at} on this node: {next_hop(route)}"

    def _targets(self, server: ServerRecord, reals: Sequence[DestinationRecord]) -> Iterable[Target]:
        parts = shares(server.server.scheduler, reals)
        for real in reals:
            if share := parts.get(real.destination):
                reason, source = self._masquerade(real.destination.address)
                # A server for all ports, or for data connections, leaves the port as it is.
                port = real.destination.port if server.key == self._at else self._at.port
                to = real._replace(destination=Destination(real.destination.address, port))
                yield Target(to, share, source, reason)

    # postrouting

    def _masquerade(self, endpoint: bytes) -> tuple[str, bytes | None]:
        """Return why the source becomes a node address (empty: it does not), and what the endpoint sees."""
        route = self._state.route(endpoint)
        if route is None:
            self._note("routing", f"no route leads to the endpoint {format_ip(endpoint)}: what goes there is lost")
        local = route is not None and route.local
        reason = (
            "" if local and self._sender is not Sender.NODE else self._masquerade_reason(endpoint, local=local)
        )
        if not reason:
            return "", self._packet.source
        return reason, self._state.masquerade_source(route, endpoint) if route else None

    def _masquerade_reason(self, endpoint: bytes, *, local: bool) -> str:
        source = self._packet.source
        if self._state.find(HAIRPIN[self._number], source, endpoint):
            return "hairpin: the endpoint reaches itself"
        match = self._find(MASQUERADE, self._packet.to) or self._find(RANGE_MASQUERADE, self._packet.to)
        if match is not None and match.value == Masquerade.UNLESS_LOCAL_POD:
            return "" if self._pod() else "the client is no local pod"
        if match is not None:
            return "externalTrafficPolicy Cluster, or masqueradeAll"
        if not local and self._state.find(VIPS[self._number], source):
            return "the source is a VIP, which no other host can answer"
        return ""
