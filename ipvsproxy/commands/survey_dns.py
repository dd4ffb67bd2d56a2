"""Queries to the cluster's DNS through its Service, into `diagnosis.facts`."""

from collections.abc import Collection, Iterable

from msgspec.structs import replace

from ipvsproxy.base.address import format_ip, parse_ip
from ipvsproxy.base.names import DNS_PORT
from ipvsproxy.commands.traces import Dialled, balanced_here
from ipvsproxy.diagnosis.facts import IPVS, RULES, Dns, DnsAnswer, ExternalName
from ipvsproxy.kernel.read.connections import Asker
from ipvsproxy.kube.once import Objects
from ipvsproxy.plan.model import Protocol, Service
from ipvsproxy.plan.state import SHORT_PATH, Destination, Frontend, FrontendKey
from ipvsproxy.probe.dns import resolve
from ipvsproxy.reconciler.node_state import API_SERVER
from ipvsproxy.reconciler.wanted_state import WantedState

KUBERNETES = "kubernetes.default.svc"
DNS_NAMESPACE, DNS_NAMES = "kube-system", ("kube-dns", "coredns")
EXTERNAL_NAMES_ASKED = 20


def find_dns(services: Iterable[Service]) -> Service | None:
    """Return the Service of the cluster's DNS: by its usual names, or the only one with the UDP port 53."""
    serving = [s for s in services if any(p.port == DNS_PORT and p.protocol is Protocol.UDP for p in s.ports)]
    usual = [s for s in serving if s.namespace == DNS_NAMESPACE]
    return min(usual or serving, key=lambda s: (s.name not in DNS_NAMES, s.key), default=None)


def ask_dns(desired: WantedState, objects: Objects, domain: str, held: Collection[str]) -> Dns | None:
    """Ask the DNS Service for `kubernetes.default` and for ExternalName Services; None without such a Service."""
    services = desired.services
    service = find_dns(services.values())
    if service is None or not service.cluster_ips:
        return None
    server = format_ip(service.cluster_ips[0])
    kubernetes = services.get(API_SERVER)
    expected = tuple(map(format_ip, kubernetes.cluster_ips)) if kubernetes else ()
    kind = "AAAA" if expected and ":" in expected[0] else "A"
    frontend = dns_frontend(service, desired, held)
    answer = traced(resolve(server, f"{KUBERNETES}.{domain}", kind), frontend)
    names = list(objects.external_names())[:EXTERNAL_NAMES_ASKED] if not answer.error else []
    external = tuple(ExternalName(key, wanted, _ask_external(server, key, domain)) for key, wanted in names)
    return Dns(service.key, expected, answer, external)


def dns_frontend(dns: Service, desired: WantedState, held: Collection[str]) -> Frontend | None:
    """Return the frontend of the cluster's DNS, None where it is not known who answers.

    `held` are VIPs that are addresses of other links as well, such as those of a DNS cache on the node.
    """
    if format_ip(dns.cluster_ips[0]) in held:
        return None
    return desired.frontends.get(FrontendKey(dns.cluster_ips[0], Protocol.UDP, DNS_PORT))


def traced(answer: DnsAnswer, frontend: Frontend | None) -> DnsAnswer:
    """Return an answer of the cluster's DNS with whether this node balanced the question."""
    address, _, port = answer.asked_from.rpartition(":")
    if answer.error or not address or frontend is None:
        return answer
    asker = Asker(Protocol.UDP, Destination(parse_ip(address.strip("[]")), int(port)))
    known = balanced_here([Dialled(asker, frontend.key, frontend)])
    by = RULES if frontend.path is SHORT_PATH else IPVS
    return replace(answer, balanced_here=known.get(asker), by=by)


def _ask_external(server: str, service: str, domain: str) -> DnsAnswer:
    namespace, _, name = service.partition("/")
    return resolve(server, f"{name}.{namespace}.svc.{domain}", "CNAME")
