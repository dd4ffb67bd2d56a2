"""A Node of the API into a `plan.model.Node`: contract sections 1.11 and 5.1."""

from ipvsproxy.base.address import Cidr, parse_cidr
from ipvsproxy.kube.decoded import Decoded, InvalidObject, addresses, first_few
from ipvsproxy.kube.raw import NodeSpec, RawNode
from ipvsproxy.plan.model import Node

ZONE_LABEL = "topology.kubernetes.io/zone"
DELETION_TAINT = "ToBeDeletedByClusterAutoscaler"


def build_node(raw: RawNode) -> Decoded:
    """Return the Node. Raises InvalidObject."""
    complaints: list[str] = []
    reported = (raw.status.addresses or ()) if raw.status else ()
    texts = [a.address for kind in ("InternalIP", "ExternalIP") for a in reported if a.type == kind]
    spec = raw.spec or NodeSpec()
    cidrs = spec.pod_cidrs or ((spec.pod_cidr,) if spec.pod_cidr else ())
    node = Node(
        name=raw.metadata.name,
        addresses=addresses("status.addresses", texts, complaints),
        pod_cidrs=tuple(_strict_cidr("spec.podCIDRs", text) for text in cidrs),
        zone=(raw.metadata.labels or {}).get(ZONE_LABEL, ""),
        eligible=not raw.metadata.deletion_timestamp
        and all(taint.key != DELETION_TAINT for taint in spec.taints or ()),
    )
    return Decoded(node, first_few(complaints))


def _strict_cidr(field: str, text: str) -> Cidr:
    try:
        return parse_cidr(text)
    except ValueError as error:
        raise InvalidObject(field, str(error)) from None
