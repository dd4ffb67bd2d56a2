"""Checks of tenants: whether the proxy follows what they come from, and whether each has its own DNS."""

from collections.abc import Iterator

from ipvsproxy.diagnosis.facts import Facts, TenantDns
from ipvsproxy.diagnosis.finding import Finding, counted, fine, problem, unchecked, warning
from ipvsproxy.diagnosis.programmed import other_settings

STEP = (
    "see its log for what could not be watched; tenants need the right to list and watch namespaces and pods"
    " (docs/tenants.md)"
)


def check_tenants(facts: Facts) -> Iterator[Finding]:
    """The kernel has the tenants that Namespaces and the pods of this node ask for."""
    found = facts.tenants
    if found is None:
        if why := facts.unread.get("tenants"):
            yield unchecked("tenants", why)
        return
    known = f"{counted(found.tenants, 'tenant')} in {counted(found.namespaces, 'namespace')}"
    here = f"{counted(found.pods, 'address', 'addresses')} of pods of this node in their groups"
    if not found.tenants:
        yield warning("tenants", f"no namespace has the label {found.label}: all Services are for all pods",
                      step="label the namespaces of tenants, or correct tenantLabel")  # fmt: skip
    elif found.stale_pods is None or found.stale_services is None or other_settings(facts):
        yield unchecked("tenants", f"{known}: whether the kernel has them is not known")
    elif found.stale_pods or found.stale_services:
        pods = (
            f"{counted(found.stale_pods, 'address', 'addresses')} of pods: the group is not that of their tenant"
        )
        services = f"{counted(found.stale_services, 'frontend')}: not the tenants that may connect"
        evidence = [pods] * bool(found.stale_pods) + [services] * bool(found.stale_services)
        summary = "the proxy does not follow the tenants of pods and namespaces"
        yield problem("tenants", summary, *evidence, step=STEP)
    else:
        yield fine("tenants", known, here)


def check_tenant_dns(facts: Facts) -> Iterator[Finding]:
    """The DNS Service of each tenant answers, and resolves the names of its own tenant only."""
    findings = [finding for one in facts.tenant_dns for finding in _dns(one)]
    yield from findings
    if facts.tenant_dns and not findings:
        number = counted(len(facts.tenant_dns), "DNS Service")
        yield fine("tenants", f"{number} of tenants: each answers, and resolves names of its own tenant only")


def _dns(one: TenantDns) -> Iterator[Finding]:
    title, asked = f"the DNS of tenant {one.tenant} ({one.service})", f"asked {one.own.server}"
    if not one.own.asked_from:
        yield problem("tenants", f"{title} does not answer: {one.own.error}", f"{asked} for {one.own.name}",
                      step=f"ipvsproxy doctor {one.service}; are its pods ready?")  # fmt: skip
    elif one.own.error or not set(one.own.addresses) & set(one.expected):
        found = one.own.error or ", ".join(one.own.addresses) or "no address"
        yield warning("tenants", f"{title} does not resolve {one.own.name}: {found}", asked,
                      step="name the namespaces of the tenant in its configuration (docs/tenants.md)")  # fmt: skip
    if one.foreign is not None and set(one.foreign.addresses) & set(one.hidden):
        yield problem("tenants", f"{title} resolves {one.foreign.name}, a Service of tenant {one.other}", asked,
                      step="limit it to the namespaces of its tenant, and see where it forwards to"
                      " (docs/tenants.md)")  # fmt: skip
