"""Which right the API server has refused, and which setting needs it, where the usual role does not have it."""

from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.kube.api import RequestFailed

FORBIDDEN = 403
NEEDED_BY_TENANTS = {Kind.NAMESPACE: "namespaces", Kind.POD: "pods"}
SETTING = "tenantLabel (--tenant-label)"


def refused_right(kind: Kind, failure: RequestFailed) -> str:
    """Return the right beyond the role system:node-proxier that was refused, empty if it was something else."""
    if failure.status != FORBIDDEN or kind not in NEEDED_BY_TENANTS:
        return ""
    return f"list and watch {NEEDED_BY_TENANTS[kind]}"


def explained(kind: Kind, failure: RequestFailed) -> str:
    """Return a failure as a text, with the right and the setting where one was refused."""
    right = refused_right(kind, failure)
    return f"{failure}; {SETTING} needs the right to {right}, see docs/tenants.md" if right else str(failure)
