"""What single settings mean: names to choose from, and where a server listens."""

from dataclasses import dataclass
from enum import StrEnum

from ipvsproxy.base.address import format_endpoint, format_ip

PRIMARY, LOCALHOST, ALL = "primary", "localhost", "all"
"""Words of `nodePortAddresses` (KEP-6032)."""
ADDRESS_WORDS = {LOCALHOST: ("127.0.0.0/8", "::1/128"), ALL: ("0.0.0.0/0", "::/0")}
"""What two of them mean; the third one depends on the node."""
ALL_SERVICES = -1


class DetectLocalMode(StrEnum):
    """How local pods are recognised (contract 1.12)."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


class VipMode(StrEnum):
    """How VIPs are made local: addresses on kube-ipvs0, `local` host routes, or by their number."""

    AUTO = "auto"
    ADDRESS = "address"
    ROUTE = "route"


class DataPath(StrEnum):
    """Which way packets to Services go: through IPVS, or by the short path where a Service wants nothing else."""

    IPVS = "ipvs"
    AUTO = "auto"


class TenantRefusal(StrEnum):
    """What happens to a new connection of a pod to a Service of another tenant."""

    REFUSE = "refuse"
    DROP = "drop"


class TenantPods(StrEnum):
    """Of which pods it is known which tenant they belong to."""

    NODE = "node"
    ALL = "all"


class LogFormat(StrEnum):
    """How log lines look on stderr."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True)
class Listen:
    """Where a server listens; an unspecified address means both families."""

    address: bytes
    port: int

    @property
    def host(self) -> str:
        """The address as text, without brackets."""
        return format_ip(self.address)

    def __str__(self) -> str:
        return format_endpoint(self.address, self.port)
