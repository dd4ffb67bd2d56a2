"""One Service through the three steps: its name, its endpoints, its state in the kernel; then test connections.

In: `ServiceFacts`. Out: findings in the order of the steps, problems first, so that the step that broke comes
before what follows from it.
"""

from collections.abc import Iterator, Sequence

import msgspec
from msgspec.structs import replace

from ipvsproxy.diagnosis import direct_return
from ipvsproxy.diagnosis.direct_return import TunnelView
from ipvsproxy.diagnosis.dns import MISSING, PASSED_BY, passed_by
from ipvsproxy.diagnosis.facts import IPVS, DnsAnswer
from ipvsproxy.diagnosis.finding import ORDER, CheckResult, Finding, fine, problem, unchecked, warning
from ipvsproxy.plan.model import Endpoint
from ipvsproxy.plan.topology import Choice, PortEndpoints

ANSWERED, SENT = "answered", "sent"
SHOWN = 20
INSTALLATION, NOT_INSTALLED = "installation", "ipvsproxy is not installed on this node"


class EndpointView(msgspec.Struct, frozen=True):
    """An endpoint and what becomes of it on this node; `reason` is why it is not used, or how."""

    endpoint: str
    node: str
    used: bool
    reason: str = ""


class PortView(msgspec.Struct, frozen=True):
    """One port of a Service in one family: where it answers, and its endpoints.

    `local` counts the endpoints that a Local policy may use here; the policies are those of the Service.
    """

    port: str
    endpoints: tuple[EndpointView, ...] = ()
    exists: bool = True
    local: int = 0
    external_local: bool = False
    internal_local: bool = False

    @property
    def used(self) -> int:
        """How many endpoints this node uses."""
        return sum(view.used for view in self.endpoints)


class Probe(msgspec.Struct, frozen=True):
    """A test connection: from where, to what, and its outcome.

    `expected` is what the plan has, `reason` why that is no answer, where it depends on who asks. `balanced_here`
    is whether this node had the connection, None where that is unknown, and `by` what of it should have.
    """

    place: str
    target: str
    outcome: str
    seconds: float = 0.0
    error: str = ""
    is_endpoint: bool = False
    expected: str = ANSWERED
    reason: str = ""
    balanced_here: bool | None = None
    by: str = IPVS


class ServiceFacts(msgspec.Struct, frozen=True):
    """A Service as this node sees it; `kind` is empty when there is no such Service.

    `unusable` is why it cannot be proxied though it should be, `complaints` what is wrong with objects about it,
    `unmet` what it asks for and does not get. `maintenance` are endpoints with weight 0 by annotation.
    """

    key: str
    kind: str = ""
    similar: tuple[str, ...] = ()
    cluster_ips: tuple[str, ...] = ()
    external_name: str = ""
    dns_service: str = ""
    answer: DnsAnswer | None = None
    ports: tuple[PortView, ...] = ()
    drift: tuple[str, ...] | None = None
    conflicts: tuple[str, ...] = ()
    probes: tuple[Probe, ...] = ()
    unusable: str = ""
    complaints: tuple[str, ...] = ()
    unmet: tuple[str, ...] = ()
    maintenance: tuple[str, ...] = ()
    tunnels: tuple[TunnelView, ...] = ()


def diagnose_service(facts: ServiceFacts, node: Sequence[Finding]) -> list[Finding]:
    """Return the findings about a Service, problems first; `node` are those about the node itself.

    What is wrong with the node comes before the steps: it may be the cause of all that follows.
    """
    about = [one for one in node if one.check in ("settings", INSTALLATION)]
    is_installed = not any(one.check == INSTALLATION for one in node)
    found = [_about_node(node), *about, *_steps(facts, is_installed=is_installed)]
    return sorted(found, key=lambda finding: ORDER.index(finding.verdict))


def _steps(facts: ServiceFacts, *, is_installed: bool) -> Iterator[Finding]:
    if facts.complaints:
        yield warning("objects", f"not all that concerns {facts.key} can be used", *facts.complaints,
                      step="complete them: what is missing is not proxied")  # fmt: skip
    if facts.unusable:
        yield problem("Service", f"{facts.key} cannot be proxied: {facts.unusable}", step="correct the Service")
        return
    if not facts.kind:
        like = f"there are: {', '.join(facts.similar)}" if facts.similar else ""
        yield problem("Service", f"there is no Service {facts.key}", like,
                      step="check namespace and name: kubectl get services -A")  # fmt: skip
        return
    yield from _name(facts, is_installed=is_installed)
    if facts.kind != "proxied":
        yield fine("Service", f"{facts.key} is {facts.kind}: it needs no proxy, only DNS")
        return
    yield from _endpoints_of_ports(facts)
    yield from _wishes(facts)
    if is_installed:
        yield from _kernel(facts)
        yield from _live(facts)
        yield from direct_return.check(facts.tunnels)
    else:
        yield unchecked("kernel", NOT_INSTALLED)
        yield unchecked("probe", f"{NOT_INSTALLED}: another program answers now")


def _name(facts: ServiceFacts, *, is_installed: bool) -> Iterator[Finding]:
    answer = facts.answer
    wanted = set(facts.cluster_ips) or {facts.external_name.rstrip(".").lower()}
    if answer is None:
        yield unchecked("DNS", "no DNS Service was found")
    elif answer.error:
        yield problem("DNS", f"{answer.name} does not resolve: {answer.error}", f"asked {answer.server}",
                      step=f"ipvsproxy doctor {facts.dns_service}")  # fmt: skip
    elif answer.balanced_here is False and is_installed:
        yield passed_by(answer)
    elif facts.kind == "headless" or wanted & {*answer.addresses, answer.canonical.rstrip(".").lower()}:
        yield fine("DNS", f"{answer.name} resolves to {', '.join(answer.addresses) or answer.canonical}")
    else:
        got = ", ".join(answer.addresses) or answer.canonical or "nothing"
        yield problem("DNS", f"{answer.name} resolves to {got}, not {', '.join(sorted(wanted))}",
                      f"asked {answer.server}",
                      step="the DNS pods serve an old state: see their logs and their API access")  # fmt: skip


# Endpoints


def views(endpoints: PortEndpoints, choice: Choice, node: str, zone: str, *, local: bool) -> list[EndpointView]:
    """Return every endpoint of a port with whether this node uses it, and why (not).

    `local`: nothing but the endpoints of a Local policy is used.
    """
    chosen = frozenset(choice.local if local else choice.cluster)
    return [
        EndpointView(
            str(destination),
            endpoint.node,
            destination in chosen,
            _how(endpoint) if destination in chosen else _why_not(endpoint, node, zone, choice, local=local),
        )
        for destination, endpoint in endpoints.items()
    ]


def _how(endpoint: Endpoint) -> str:
    return "" if endpoint.ready else "terminating, used since there is no ready one"


def _why_not(endpoint: Endpoint, node: str, zone: str, choice: Choice, *, local: bool) -> str:
    if not endpoint.ready:
        if not endpoint.terminating:
            return "not ready"
        return "terminating, and there are ready ones" if endpoint.serving else "terminating, not serving any more"
    if local and endpoint.node != node:
        return f"on node {endpoint.node or 'unknown'}, and the policy is Local"
    hints = endpoint.node_hints or endpoint.zone_hints
    if hints and choice.cluster:
        place = f"node {node}" if endpoint.node_hints else f"zone {zone or 'unknown'}"
        return f"meant for {', '.join(hints)} (topology hints), and this is {place}"
    return "not chosen"


def _endpoints_of_ports(facts: ServiceFacts) -> Iterator[Finding]:
    """Yield the findings of each port; a finding that several of them share once."""
    found: dict[Finding, list[str]] = {}
    for port in facts.ports:
        for finding in _endpoints(facts, port):
            found.setdefault(finding, []).append(port.port)
    for finding, ports in found.items():
        yield replace(finding, summary=f"{', '.join(ports)}: {finding.summary}")


def _endpoints(facts: ServiceFacts, port: PortView) -> Iterator[Finding]:
    unused = [view for view in port.endpoints if not view.used]
    lines = [f"{v.endpoint}{f' on {v.node}' if v.node else ''}: {v.reason}" for v in unused if v.reason][:SHOWN]
    if not port.endpoints:
        yield problem("endpoints", "no endpoints",
                      step="do its selector and port names match pods? kubectl get endpointslices -l"
                      f" kubernetes.io/service-name={facts.key.partition('/')[2]}")  # fmt: skip
    elif not port.exists:
        yield problem("endpoints", f"{len(port.endpoints)} endpoints, of which none is ready",
                      *lines, step="see why the pods are not ready: kubectl describe pods")  # fmt: skip
    elif port.internal_local and not port.used:
        yield warning("endpoints", "no endpoint on this node, and internalTrafficPolicy is Local: pods of this"
                      " node get no answer", *lines,
                      step="run a pod of it on every node (a DaemonSet), or use the policy Cluster")  # fmt: skip
    else:
        yield fine("endpoints", f"{port.used} of {len(port.endpoints)} endpoints used", *lines)
    if port.external_local and port.exists and not port.local:
        yield warning("endpoints", "no endpoint on this node, and externalTrafficPolicy is Local: what comes from"
                      " outside to this node is dropped",
                      step="a load balancer that asks the healthCheckNodePort sends nothing here; else use the"
                      " policy Cluster")  # fmt: skip


def _wishes(facts: ServiceFacts) -> Iterator[Finding]:
    if facts.unmet:
        yield warning("annotations", f"{facts.key} asks for something that it does not get", *facts.unmet,
                      step="correct the annotation; docs/annotations.md has what may stand in each")  # fmt: skip
    if facts.maintenance:
        yield warning("maintenance", "endpoints with weight 0 by the annotation ipvsproxy.io/weights get no new"
                      " connections", *facts.maintenance[:SHOWN],
                      step="give them a weight again when their maintenance is over")  # fmt: skip


# Kernel


def _kernel(facts: ServiceFacts) -> Iterator[Finding]:
    if facts.conflicts:
        yield problem("kernel", "another Service holds an address and port of this one", *facts.conflicts,
                      step="give one of them another address: the older Service wins")  # fmt: skip
    if facts.drift is None:
        yield unchecked("kernel", "the state of the kernel could not be read")
    elif facts.drift:
        yield problem("kernel", "the kernel is not as this Service wants it", *facts.drift[:SHOWN],
                      step="ipvsproxy doctor: is the proxy running and healthy?")  # fmt: skip
    else:
        yield fine("kernel", "virtual servers, destinations, VIPs are as wanted")


# Live


def _live(facts: ServiceFacts) -> Iterator[Finding]:
    """An endpoint that does not answer itself is the cause of a VIP that does not."""
    silent = [probe for probe in facts.probes if _is_wrong(probe)]
    for probe in sorted(silent, key=lambda probe: not probe.is_endpoint):
        if probe.is_endpoint:
            yield problem("probe", f"the endpoint {probe.target} itself: {_words(probe)}",
                          step="does its process listen on this port and address? A network policy may forbid it,"
                          " or the way between the nodes is broken")  # fmt: skip
        elif probe.outcome == probe.expected:
            yield problem("probe", f"{probe.target} from {probe.place}: {_words(probe)}",
                          MISSING[probe.by], step=PASSED_BY)  # fmt: skip
        else:
            yield problem("probe", f"{probe.target} from {probe.place}: {_words(probe)}",
                          f"expected: {probe.expected}",
                          step=f"ipvsproxy explain {probe.target} shows what happens to the packet")  # fmt: skip
    well = [probe for probe in facts.probes if not _is_wrong(probe)]
    if well:
        yield fine("probe", f"{len(well)} test connections had the expected outcome",
                   *(f"{p.target} from {p.place}: {_words(p)}" for p in well[:SHOWN]))  # fmt: skip


def _is_wrong(probe: Probe) -> bool:
    # Many UDP services answer nothing to a datagram they do not understand.
    if probe.expected != ANSWERED:
        return probe.outcome == ANSWERED
    return probe.outcome not in (ANSWERED, SENT) or (probe.outcome == ANSWERED and probe.balanced_here is False)


def _words(probe: Probe) -> str:
    if probe.outcome == SENT:
        return "sent, nothing came back (UDP)"
    passed_by = probe.outcome == ANSWERED and probe.balanced_here is False
    by = f", but not by this node's {probe.by}," if passed_by else ""
    text = f"{probe.outcome}{by} {probe.error}".rstrip() + f" after {probe.seconds:.3f} s"
    return f"{text}: {probe.reason}" if probe.reason else text


def _about_node(findings: Sequence[Finding]) -> Finding:
    wrong = [
        f"{finding.check}: {finding.summary}" for finding in findings if finding.verdict is CheckResult.PROBLEM
    ]
    if wrong:
        return problem("node", "the node itself has problems", *wrong[:SHOWN], step="ipvsproxy doctor")
    return fine("node", "the node itself has no problem")
