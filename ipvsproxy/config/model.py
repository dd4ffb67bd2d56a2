"""What the operator asked for, as one frozen value: the only thing the machine knows of flags and files.

Built by `ipvsproxy.config.assemble`; names follow KubeProxyConfiguration, defaults are those of the fields
(contract 1.4). Everything in it has been checked, so nobody parses text again.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from ipvsproxy.base.address import format_endpoint, format_ip

PRIMARY = "primary"
ALL_SERVICES = -1


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


@dataclass(frozen=True)
class ConntrackSettings:
    """Settings of the kernel's connection tracking; seconds, 0 leaves the kernel's value alone."""

    max_per_core: int = 32768
    min: int = 131072
    tcp_established: float = 86400.0
    tcp_close_wait: float = 3600.0
    tcp_be_liberal: bool = False
    udp: float = 0.0
    udp_stream: float = 0.0


@dataclass(frozen=True)
class IpvsTimeouts:
    """Idle timeouts of IPVS in seconds, 0 leaves the kernel's value alone."""

    tcp: float = 0.0
    tcp_fin: float = 0.0
    udp: float = 0.0


@dataclass(frozen=True)
class Config:
    """Settings of one process; durations in seconds, CIDRs as text that has been checked.

    A server without an address (`healthz_bind_address`, `metrics_bind_address`) is not wanted. `document` is the
    effective KubeProxyConfiguration as a tree with `kind` and `apiVersion`, `own_document` our own settings as an
    IPVSProxyConfiguration, both for /configz; `flags` are all flags with their values as text, for /flagz;
    `files` are the configuration files with the bytes that were read.
    `other_mode` is what to say where the settings name a mode that is not ours and nobody has asked for its
    replacement; empty otherwise.
    `vmodule` are patterns of file names with the verbosity there.
    `service_metrics` is for how many Services there are counters of their own, `ALL_SERVICES` for all.
    `service_limit`, `namespace_limit` and `node_limit` are sizes up to which Services are served, as `plan.tally`
    counts them, 0: no limit.
    `families` are the IP families in which Services are served: those that the host supports.
    """

    node_name: str

    manifests: Path | None = None
    kubeconfig: Path | None = None
    master: str = ""

    cluster_cidrs: tuple[str, ...] = ()
    detect_local_mode: DetectLocalMode = DetectLocalMode.CLUSTER_CIDR
    pod_bridge_interface: str = ""
    pod_interface_name_prefix: str = ""
    masquerade_all: bool = False
    masquerade_bit: int = 14
    nodeport_addresses: tuple[str, ...] = ()
    allow_external_ips: bool = True
    external_ip_ranges: tuple[str, ...] = ()
    denied_ip_ranges: tuple[str, ...] = ()
    node_port_range: str = "30000-32767"
    trusted_ip_ranges: tuple[str, ...] = ()
    suppress_vip_arp: bool = True

    scheduler: str = "rr"
    sync_period: float = 30.0
    min_sync_period: float = 0.0
    exclude_cidrs: tuple[str, ...] = ()
    vip_mode: VipMode = VipMode.AUTO
    drain_timeout: float = 0.0
    service_metrics: int = 0
    service_limit: int = 500_000
    namespace_limit: int = 4_000_000
    node_limit: int = 8_000_000

    strict_arp: bool = False
    ipvs_timeouts: IpvsTimeouts = IpvsTimeouts()
    conntrack: ConntrackSettings = ConntrackSettings()
    oom_score_adj: int = -999

    families: frozenset[int] = frozenset((4, 6))
    bind_address: bytes = bytes(4)
    healthz_bind_address: Listen | None = Listen(bytes(4), 10256)
    metrics_bind_address: Listen | None = Listen(b"\x7f\0\0\1", 10249)
    bind_address_hard_fail: bool = False
    profiling: bool = False
    serve_flagz: bool = True
    serve_statusz: bool = True
    kubernetes_version: str = "v1.36.2"

    verbosity: int = 0
    vmodule: tuple[tuple[str, int], ...] = ()
    log_format: LogFormat = LogFormat.TEXT

    other_mode: str = ""
    document: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    own_document: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    flags: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)
    files: tuple[tuple[Path, bytes], ...] = field(default=(), compare=False, repr=False)

    @property
    def masquerade_mark(self) -> int:
        """The packet mark with only `masquerade_bit` set."""
        return 1 << self.masquerade_bit
