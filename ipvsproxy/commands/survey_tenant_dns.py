"""Queries to the DNS Services of tenants, from this node, into `diagnosis.facts`.

Each is asked for a name of its own tenant, and for one of another tenant. The node may connect to all of them.
"""

from collections.abc import Iterable, Iterator

from ipvsproxy.base.address import format_ip
from ipvsproxy.diagnosis.facts import DnsAnswer, TenantDns
from ipvsproxy.plan.model import Service
from ipvsproxy.plan.tenants import SHARED, Tenants
from ipvsproxy.probe.dns import resolve

ASKED = 20
"""Tenants whose DNS is asked; one that does not answer takes four seconds for each name."""


def ask_tenant_dns(tenants: Tenants, services: Iterable[Service], domain: str) -> tuple[TenantDns, ...]:
    """Ask the DNS of each tenant that has one, of ASKED tenants at most."""
    by_tenant: dict[str, list[Service]] = {}
    for service in sorted(services, key=lambda service: (service.created, service.key)):
        tenant = tenants.tenant(service.namespace)
        if tenant not in (None, SHARED) and service.cluster_ips:
            by_tenant.setdefault(tenant or "", []).append(service)
    return tuple(_asked(by_tenant, domain))


def _asked(by_tenant: dict[str, list[Service]], domain: str) -> Iterator[TenantDns]:
    servers = {name: found for name, own in by_tenant.items() if (found := next(filter(_is_dns, own), None))}
    for tenant, server in sorted(servers.items())[:ASKED]:
        own = next((s for s in by_tenant[tenant] if s.namespace != server.namespace), server)
        other = next((name for name in sorted(by_tenant) if name != tenant), "")
        foreign = by_tenant[other][0] if other else None
        answer = _ask(server, own, domain)
        yield TenantDns(
            tenant,
            server.key,
            answer,
            _addresses(own),
            other,
            _ask(server, foreign, domain) if foreign is not None and answer.asked_from else None,
            _addresses(foreign) if foreign else (),
        )


def _is_dns(service: Service) -> bool:
    return service.tenant_dns


def _ask(server: Service, service: Service, domain: str) -> DnsAnswer:
    kind = "AAAA" if len(service.cluster_ips[0]) > 4 else "A"
    name = f"{service.name}.{service.namespace}.svc.{domain}"
    return resolve(format_ip(server.cluster_ips[0]), name, kind)


def _addresses(service: Service) -> tuple[str, ...]:
    return tuple(map(format_ip, service.cluster_ips))
