"""One Service, seen from this node: its name, its endpoints, its servers, and test connections to all of them."""

import socket
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

from ipvsproxy.base.address import family, format_ip, parse_ip
from ipvsproxy.base.errors import plain
from ipvsproxy.base.names import DNS_PORT
from ipvsproxy.commands import drift
from ipvsproxy.commands.service_names import similar
from ipvsproxy.commands.survey import SurveyResult
from ipvsproxy.commands.survey_dns import dns_frontend, find_dns, traced
from ipvsproxy.commands.survey_tunnels import find_tunnels
from ipvsproxy.commands.traces import Dialled, balanced_here
from ipvsproxy.diagnosis.facts import IPVS, RULES, DnsAnswer, join
from ipvsproxy.diagnosis.service import PortView, Probe, ServiceFacts, views
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kernel.read.connections import Asker, connections
from ipvsproxy.kernel.read.netns import socket_in
from ipvsproxy.kube.once import Objects
from ipvsproxy.plan.endpoints import EndpointsByPort
from ipvsproxy.plan.model import Protocol, Service
from ipvsproxy.plan.state import SHORT_PATH, Destination, Frontend, FrontendKey
from ipvsproxy.plan.topology import choose
from ipvsproxy.probe.dns import query, resolve
from ipvsproxy.probe.live import ProbeOutcome, open_socket, probe
from ipvsproxy.reconciler.wanted_state import WantedState
from ipvsproxy.ruleset.elements import PacketVerdict
from ipvsproxy.ruleset.schema import LOCAL

ENDPOINTS_ASKED, ADDRESSES_ASKED = 5, 12
HERE = "this node"
EXPECTED = {PacketVerdict.ACCEPT: "answered", PacketVerdict.REFUSE: "refused", PacketVerdict.DROP: "timeout"}


def survey_service(key: str, seen: SurveyResult, domain: str, netns: str) -> ServiceFacts | None:
    """Return the facts about a Service, None when the objects cannot be read."""
    if seen.objects is None or seen.desired is None:
        return None
    service = seen.desired.services.get(key)
    dns = find_dns(seen.desired.services.values())
    server = format_ip(dns.cluster_ips[0]) if dns and dns.cluster_ips else ""
    frontend = dns_frontend(dns, seen.desired, seen.facts.held_vips) if dns and server else None
    ask = partial(_asked, server, key, domain, frontend)
    if service is None:
        return _unproxied(key, seen.objects, dns.key if dns else "", ask)
    keys = _frontends(key, seen.desired)
    return ServiceFacts(
        key=key,
        kind="proxied",
        cluster_ips=tuple(map(format_ip, service.cluster_ips)),
        dns_service=dns.key if dns else "",
        answer=ask("AAAA" if family(service.cluster_ips[0]) == 6 else "A"),
        ports=tuple(_ports(service, seen.desired)),
        drift=None if seen.drift is None else tuple(drift.sentences(drift.about(seen.drift, keys))),
        unmet=seen.desired.unmet(key),
        maintenance=tuple(sorted(_in_maintenance(seen.desired, keys))),
        tunnels=find_tunnels(map(seen.desired.frontends.__getitem__, keys), connections()),
        conflicts=tuple(map(str, seen.desired.conflicts(key))),
        probes=tuple(
            _probes(service, seen.desired, seen.facts.held_vips, [HERE, *([netns] if netns else [])], domain)
        ),
    )


def _unproxied(key: str, objects: Objects, dns: str, ask: Callable[[str], DnsAnswer | None]) -> ServiceFacts:
    """A Service that needs no proxy, or none at all."""
    external = dict(objects.external_names())
    if key in external:
        answer = ask("CNAME")
        kind = "of type ExternalName"
        return ServiceFacts(key, kind, external_name=external[key], dns_service=dns, answer=answer)
    if objects.is_headless(key):
        return ServiceFacts(key, "headless", dns_service=dns, answer=ask("A"))
    if key in objects.items[Kind.SERVICE]:
        reason = objects.skipped.get((Kind.SERVICE, key), "the object makes no sense")
        return ServiceFacts(key, "unusable", unusable=reason)
    return ServiceFacts(key, similar=tuple(similar(key, objects.items[Kind.SERVICE])))


def _asked(server: str, key: str, domain: str, dns: Frontend | None, kind: str) -> DnsAnswer | None:
    if not server:
        return None
    namespace, _, name = key.partition("/")
    return traced(resolve(server, f"{name}.{namespace}.svc.{domain}", kind), dns)


def _frontends(key: str, desired: WantedState) -> set[FrontendKey]:
    return {frontend for frontend in desired.frontends if desired.owner(frontend) == key}


def _in_maintenance(desired: WantedState, keys: Collection[FrontendKey]) -> set[str]:
    found = desired.in_maintenance()
    return {str(destination) for key in keys for destination in found.get(key, ())}


def _ports(service: Service, desired: WantedState) -> Iterator[PortView]:
    node = desired.facts
    by_port = EndpointsByPort(desired.slices(service.key))
    for address in service.cluster_ips:
        for port in service.ports:
            endpoints = by_port.of(port, family(address))
            choice = choose(endpoints, node.name, node.zone)
            shown = views(endpoints, choice, node.name, node.zone, local=service.internal_local)
            yield PortView(
                port=f"{join(format_ip(address), port.port)}/{port.protocol.name}",
                endpoints=tuple(shown),
                exists=choice.exists,
                local=len(choice.local),
                external_local=service.external_local,
                internal_local=service.internal_local,
            )


class Question(NamedTuple):
    """From where, to what; `frontend` is None for an endpoint itself."""

    place: str
    key: FrontendKey
    frontend: Frontend | None = None


def _probes(
    service: Service, desired: WantedState, held: Collection[str], places: list[str], domain: str
) -> Iterator[Probe]:
    """Ask all questions at once: those without an answer take seconds."""
    questions = [*_questions(service, desired, places)]
    sockets = [_socket(question) for question in questions]  # in this thread: those of a pod take a fork
    with ThreadPoolExecutor(max(len(questions), 1)) as pool:
        outcomes = list(pool.map(partial(_outcome, domain), questions, sockets))
    pairs = [*zip(questions, outcomes, strict=True)]
    known = balanced_here([*_dialled_here(pairs, held)])
    for question, outcome in pairs:
        yield _probe(question, outcome, known)


def _dialled_here(asked: Iterable[tuple[Question, ProbeOutcome]], held: Collection[str]) -> Iterator[Dialled]:
    """Yield what this node should have balanced, of which the kernel knows who asked."""
    for question, found in asked:
        if found.port and question.frontend and format_ip(question.key.address) not in held:
            yield Dialled(_asker(question, found), question.key, question.frontend)


def _asker(question: Question, outcome: ProbeOutcome) -> Asker:
    return Asker(question.key.protocol, Destination(parse_ip(outcome.source), outcome.port))


def _questions(service: Service, desired: WantedState, places: list[str]) -> Iterator[Question]:
    held = _frontends(service.key, desired)
    keys = [key for key in sorted(held) if key.address in service.cluster_ips or _is_external(service, key)]
    dialled = {key: desired.frontends[of] for of in keys for key in _dialled(service, desired.frontends[of])}
    # A port with a server of its own is not that of a range, which comes first in the order of keys.
    asked = list(dialled.items())[:ADDRESSES_ASKED]
    for place in places:
        yield from (Question(place, key, frontend) for key, frontend in asked)
    endpoints = {
        FrontendKey(d.address, key.protocol, d.port or key.port): None
        for key, frontend in asked
        for d in frontend.destinations
    }
    yield from (Question(HERE, key) for key in list(endpoints)[:ENDPOINTS_ASKED])


def _is_external(service: Service, key: FrontendKey) -> bool:
    return key.address in (*service.load_balancer_ips, *service.external_ips)


def _dialled(service: Service, frontend: Frontend) -> Iterator[FrontendKey]:
    """Yield ports of a Service that a frontend serves.

    There are none for the synthetic ports of internal views (docs/internals-packets.md, both policies Local).
    """
    address, protocol, number = frontend.key.address, frontend.key.protocol, frontend.key.port
    for port in service.ports:
        is_in_range = any(ports.first <= port.port <= ports.last for ports in frontend.port_ranges)
        if port.protocol == protocol and (number == port.port or is_in_range):
            yield FrontendKey(address, protocol, port.port)


def _seen_from_inside(frontend: Frontend) -> PacketVerdict:
    """From the node and from pods, a Local policy for outside clients does not count."""
    return PacketVerdict.ACCEPT if frontend.server_for(LOCAL) else frontend.verdict


def _excluded(frontend: Frontend, source: str) -> str:
    """Return why who asks from this address gets no answer by the source ranges, empty if that is not so."""
    if not (frontend.ranges and source) or any(parse_ip(source) in cidr for cidr in frontend.ranges):
        return ""
    return f"loadBalancerSourceRanges do not have {source}"


def _socket(question: Question) -> socket.socket | OSError:
    make = partial(socket_in, "" if question.place == HERE else question.place)
    try:
        return open_socket(make, format_ip(question.key.address), Protocol(question.key.protocol).name)
    except OSError as error:
        return error


def _outcome(domain: str, question: Question, sock: socket.socket | OSError) -> ProbeOutcome:
    if isinstance(sock, OSError):
        return ProbeOutcome("unreachable", 0.0, plain(sock))
    key = question.key
    data = query(f"kubernetes.default.svc.{domain}") if key.port == DNS_PORT else b"\0"
    return probe(sock, format_ip(key.address), key.port, data)


def _probe(question: Question, found: ProbeOutcome, known: Mapping[Asker, bool]) -> Probe:
    place, key, frontend = question
    excluded = _excluded(frontend, found.source) if frontend else ""
    expected = "answered" if frontend is None else EXPECTED.get(_seen_from_inside(frontend), "answered")
    return Probe(
        place=place if place == HERE else f"namespace {place}",
        target=str(key),
        outcome=found.outcome,
        seconds=found.seconds,
        error=found.error,
        is_endpoint=frontend is None,
        expected="timeout" if excluded else expected,
        reason=excluded,
        balanced_here=known.get(_asker(question, found)) if frontend and found.port else None,
        by=RULES if frontend and frontend.path is SHORT_PATH else IPVS,
    )
