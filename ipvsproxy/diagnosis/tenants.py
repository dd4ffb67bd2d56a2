"""Checks of tenants: whether the proxy follows the Namespaces and the pods that they come from."""

from collections.abc import Iterator

from ipvsproxy.diagnosis.facts import Facts
from ipvsproxy.diagnosis.finding import Finding, counted, fine, problem, unchecked, warning
from ipvsproxy.diagnosis.state import other_settings

STEP = (
    "see its log for what could not be watched; tenants need the right to list and watch namespaces and pods"
    " (docs/tenants.md)"
)


def check_tenants(facts: Facts) -> Iterator[Finding]:
    """The kernel has the tenants that Namespaces and the pods of this node say."""
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
