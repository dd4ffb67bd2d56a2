"""What the operator asked for, as one frozen value.

Built by `ipvsproxy.cli` from flags; names and defaults follow kube-proxy's flags (contract 1.2). `check`
returns every problem at once, each with the flag it is about.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from ipvsproxy.address import parse_cidr

PRIMARY = "primary"


class DetectLocalMode(StrEnum):
    """How a local pod is told from other clients (contract 1.12)."""

    CLUSTER_CIDR = "ClusterCIDR"
    NODE_CIDR = "NodeCIDR"
    BRIDGE_INTERFACE = "BridgeInterface"
    INTERFACE_NAME_PREFIX = "InterfaceNamePrefix"


class VipMode(StrEnum):
    """How VIPs are made local: addresses on kube-ipvs0, `local` host routes, or by their number."""

    AUTO = "auto"
    ADDRESS = "address"
    ROUTE = "route"


class LogFormat(StrEnum):
    """How log lines look on stderr."""

    TEXT = "text"
    JSON = "json"


@dataclass(frozen=True)
class Config:
    """Settings of one process; durations in seconds, CIDRs as text that `check` has parsed."""

    node_name: str
    manifests: Path | None = None
    kubeconfig: Path | None = None
    master: str = ""
    cluster_cidrs: tuple[str, ...] = ()
    detect_local_mode: DetectLocalMode = DetectLocalMode.CLUSTER_CIDR
    pod_bridge_interface: str = ""
    pod_interface_name_prefix: str = ""
    masquerade_all: bool = False
    nodeport_addresses: tuple[str, ...] = ()
    scheduler: str = "rr"
    sync_period: float = 30.0
    min_sync_period: float = 0.0
    exclude_cidrs: tuple[str, ...] = ()
    vip_mode: VipMode = VipMode.AUTO
    verbosity: int = 0
    log_format: LogFormat = LogFormat.TEXT

    def check(self) -> Iterator[str]:
        """Yield one sentence for each setting that cannot be used."""
        if not self.node_name:
            yield "--hostname-override: must not be blank"
        if self.manifests and (self.kubeconfig or self.master):
            yield "--manifests: cannot be combined with --kubeconfig or --master"
        if self.sync_period <= 0:
            yield "--ipvs-sync-period: must be greater than 0"
        if not 0 <= self.min_sync_period <= self.sync_period:
            yield "--ipvs-min-sync-period: must be within 0 and --ipvs-sync-period"
        for flag, texts in self._cidr_flags():
            for text in texts:
                try:
                    parse_cidr(text)
                except ValueError as error:
                    yield f"{flag}: {error}"
        yield from self._check_detector()

    def _cidr_flags(self) -> Iterator[tuple[str, tuple[str, ...]]]:
        yield "--cluster-cidr", self.cluster_cidrs
        yield "--ipvs-exclude-cidrs", self.exclude_cidrs
        if self.nodeport_addresses != (PRIMARY,):
            yield "--nodeport-addresses", self.nodeport_addresses

    def _check_detector(self) -> Iterator[str]:
        mode = self.detect_local_mode
        if mode is DetectLocalMode.BRIDGE_INTERFACE and not self.pod_bridge_interface:
            yield "--pod-bridge-interface: must not be empty with --detect-local-mode=BridgeInterface"
        if mode is DetectLocalMode.INTERFACE_NAME_PREFIX and not self.pod_interface_name_prefix:
            yield "--pod-interface-name-prefix: must not be empty with --detect-local-mode=InterfaceNamePrefix"
