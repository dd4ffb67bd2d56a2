"""A Pod and a Namespace of the API into values of `plan.model`: which address belongs to which namespace."""

from ipvsproxy.kube.decoded import Decoded, addresses, first_few
from ipvsproxy.kube.defaults import NAMESPACE
from ipvsproxy.kube.raw import PodSpec, PodStatus, RawNamespace, RawPod
from ipvsproxy.plan.model import Namespace, Pod

ENDED = ("Succeeded", "Failed")
"""Phases of pods whose addresses may be those of others by now."""


def build_namespace(raw: RawNamespace) -> Decoded:
    """Return the Namespace."""
    return Decoded(Namespace(raw.metadata.name, raw.metadata.labels or {}))


def build_pod(raw: RawPod) -> Decoded:
    """Return the pod, None for one that has no address of its own."""
    spec, status = raw.spec or PodSpec(), raw.status or PodStatus()
    if spec.host_network:
        return Decoded(None, skipped="it has the addresses of its node (hostNetwork)")
    if status.phase in ENDED:
        return Decoded(None, skipped=f"it has ended ({status.phase})")
    texts = [entry.ip or "" for entry in status.pod_ips or ()] or [status.pod_ip or ""]
    complaints: list[str] = []
    found = addresses("status.podIPs", texts, complaints)
    if not found:
        return Decoded(None, first_few(complaints), skipped="it has no address yet")
    pod = Pod(raw.metadata.namespace or NAMESPACE, raw.metadata.name, spec.node_name or "", found)
    return Decoded(pod, first_few(complaints))
