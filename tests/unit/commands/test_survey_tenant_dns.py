"""Which names the DNS of each tenant is asked for."""

from msgspec.structs import replace

from ipvsproxy.commands import survey_tenant_dns
from ipvsproxy.commands.survey_tenant_dns import ask_tenant_dns
from ipvsproxy.diagnosis.facts import DnsAnswer, TenantDns
from ipvsproxy.plan.model import Namespace
from ipvsproxy.plan.tenants import Tenants
from tests.support.build import service

LABEL, FROM = "tenant", "192.0.2.1:40000"


def cluster(silent=()):
    """Tenants blue with two namespaces and a DNS, green with one of both, red without a DNS; what was asked."""
    tenants, services, asked = Tenants(LABEL, "node1"), [], []
    spaces = {"blue-dns": "blue", "blue-web": "blue", "green": "green", "red": "red", "plain": ""}
    for number, (space, tenant) in enumerate(spaces.items(), 20):
        tenants.set_namespace(space, Namespace(space, {LABEL: tenant} if tenant else {}))
        is_dns = space in ("blue-dns", "green")
        made = service("dns" if is_dns else "web", [f"10.96.0.{number}"])
        services.append(replace(made, namespace=space, tenant_dns=is_dns))
    services.append(replace(service("none"), namespace="blue-web", cluster_ips=()))

    def resolve(server, name, kind):
        asked.append((server, name, kind))
        if server in silent:
            return DnsAnswer(server, name, error="no answer within 4 s")
        return DnsAnswer(server, name, ("10.96.0.21",), asked_from=FROM)

    return tenants, services, asked, resolve


def test_each_is_asked_for_a_name_of_its_own_and_one_of_another_tenant(monkeypatch):
    tenants, services, asked, resolve = cluster()
    monkeypatch.setattr(survey_tenant_dns, "resolve", resolve)
    blue, green = ask_tenant_dns(tenants, services, "cluster.local")
    assert asked == [
        ("10.96.0.20", "web.blue-web.svc.cluster.local", "A"),
        ("10.96.0.20", "dns.green.svc.cluster.local", "A"),
        ("10.96.0.22", "dns.green.svc.cluster.local", "A"),
        ("10.96.0.22", "dns.blue-dns.svc.cluster.local", "A"),
    ]
    own = DnsAnswer("10.96.0.20", "web.blue-web.svc.cluster.local", ("10.96.0.21",), asked_from=FROM)
    foreign = DnsAnswer("10.96.0.20", "dns.green.svc.cluster.local", ("10.96.0.21",), asked_from=FROM)
    assert blue == TenantDns("blue", "blue-dns/dns", own, ("10.96.0.21",), "green", foreign, ("10.96.0.22",))
    assert (green.tenant, green.other) == ("green", "blue")


def test_one_that_does_not_answer_is_asked_once(monkeypatch):
    tenants, services, asked, resolve = cluster(silent=["10.96.0.20"])
    monkeypatch.setattr(survey_tenant_dns, "resolve", resolve)
    blue, _ = ask_tenant_dns(tenants, services, "cluster.local")
    assert (blue.foreign, len(asked)) == (None, 3)


def test_without_tenants_nothing_is_asked():
    assert ask_tenant_dns(Tenants("", "node1"), [replace(service(), tenant_dns=True)], "cluster.local") == ()
