"""What the operator asked for, as one frozen value: the only thing the machine knows of flags and files.

Built by `ipvsproxy.config.assemble`; names follow KubeProxyConfiguration. Most attributes are those of a row of
`config.table`, which has their defaults (contract 1.4). Everything in it has been checked, so no other module
parses text again.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ipvsproxy.base.address import family, is_loopback, parse_cidr, parse_ip
from ipvsproxy.config.table import BY_ATTRIBUTE, BY_FLAG, GATES_WITH_EFFECT
from ipvsproxy.config.values import (
    PRIMARY,
    DataPath,
    DetectLocalMode,
    Listen,
    LogFormat,
    TenantPods,
    TenantRefusal,
    VipMode,
)

T = TypeVar("T")
KUBERNETES_VERSION = "v1.36.2"
"""The release whose kube-proxy this program behaves like."""
HEALTHZ = Listen(bytes(4), BY_FLAG["healthz-port"].default)
METRICS = Listen(parse_ip("127.0.0.1"), BY_FLAG["metrics-port"].default)
ROW: Any = object()
"""The default of an attribute is that of its row."""


def with_defaults(prefix: str = "") -> Callable[[type[T]], type[T]]:
    """Give each attribute of a class whose default is `ROW` that of its row; a KeyError names one without a row.

    `prefix` is what the table puts before the names of the attributes.
    """

    def fill(cls: type[T]) -> type[T]:
        for name in [name for name, value in vars(cls).items() if value is ROW]:
            row = BY_ATTRIBUTE[prefix + name]
            setattr(cls, name, row.convert(row.default))
        return cls

    return fill


@dataclass(frozen=True)
@with_defaults("conntrack.")
class ConntrackSettings:
    """Settings of the kernel's connection tracking; seconds, 0 leaves the kernel's value alone."""

    max_per_core: int = ROW
    min: int = ROW
    tcp_established: float = ROW
    tcp_close_wait: float = ROW
    tcp_be_liberal: bool = ROW
    udp: float = ROW
    udp_stream: float = ROW


@dataclass(frozen=True)
@with_defaults("ipvs_timeouts.")
class IpvsTimeouts:
    """Idle timeouts of IPVS in seconds, 0 leaves the kernel's value alone."""

    tcp: float = ROW
    tcp_fin: float = ROW
    udp: float = ROW


@dataclass(frozen=True)
@with_defaults()
class Config:
    """Settings of one process; durations in seconds, CIDRs as text that has been checked.

    A server without an address (`healthz_bind_address`, `metrics_bind_address`) is not wanted. `document` is the
    effective KubeProxyConfiguration as a tree with `kind` and `apiVersion`, `own_document` our own settings as an
    IPVSProxyConfiguration, both for /configz; `flags` are all flags with their values as text, for /flagz;
    `files` are the configuration files with the bytes that were read.
    `other_mode` is what to report where the settings name a mode that is not ours and no setting asks for its
    replacement; empty otherwise.
    `vmodule` are patterns of file names with the verbosity there.
    `service_defaults` are values of annotations by name, for Services that do not have these.
    `service_metrics` is for how many Services there are counters of their own, `ALL_SERVICES` for all.
    `service_limit`, `namespace_limit` and `node_limit` are sizes up to which Services are served, as `plan.tally`
    counts them, 0: no limit.
    `families` are the IP families in which Services are served: those that the host supports.
    """

    node_name: str

    manifests: Path | None = ROW
    kubeconfig: Path | None = ROW
    master: str = ROW

    cluster_cidrs: tuple[str, ...] = ROW
    detect_local_mode: DetectLocalMode = ROW
    pod_bridge_interface: str = ROW
    pod_interface_name_prefix: str = ROW
    masquerade_all: bool = ROW
    masquerade_bit: int = ROW
    nodeport_addresses: tuple[str, ...] = ROW
    allow_external_ips: bool = GATES_WITH_EFFECT["AllowServiceExternalIPs"]
    external_ip_ranges: tuple[str, ...] = ROW
    denied_ip_ranges: tuple[str, ...] = ROW
    node_port_range: str = ROW
    trusted_ip_ranges: tuple[str, ...] = ROW
    suppress_vip_arp: bool = ROW
    tenant_label: str = ROW
    tenant_refusal: TenantRefusal = ROW
    tenant_pods: TenantPods = ROW
    cluster_dns: str = ROW
    tenant_dns_fallback: bool = ROW

    scheduler: str = ROW
    sync_period: float = ROW
    min_sync_period: float = ROW
    exclude_cidrs: tuple[str, ...] = ROW
    vip_mode: VipMode = ROW
    data_path: DataPath = ROW
    drain_timeout: float = ROW
    service_defaults: tuple[tuple[str, str], ...] = ROW
    service_metrics: int = ROW
    service_limit: int = ROW
    namespace_limit: int = ROW
    node_limit: int = ROW

    strict_arp: bool = ROW
    sloppy_tcp: bool = ROW
    ipvs_timeouts: IpvsTimeouts = IpvsTimeouts()
    conntrack: ConntrackSettings = ConntrackSettings()
    oom_score_adj: int = ROW

    families: frozenset[int] = frozenset((4, 6))
    bind_address: bytes = ROW
    healthz_bind_address: Listen | None = HEALTHZ
    metrics_bind_address: Listen | None = METRICS
    bind_address_hard_fail: bool = ROW
    profiling: bool = ROW
    serve_flagz: bool = GATES_WITH_EFFECT["ComponentFlagz"]
    serve_statusz: bool = GATES_WITH_EFFECT["ComponentStatusz"]
    kubernetes_version: str = KUBERNETES_VERSION

    verbosity: int = ROW
    vmodule: tuple[tuple[str, int], ...] = ROW
    log_format: LogFormat = ROW

    other_mode: str = ""
    document: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    own_document: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)
    flags: tuple[tuple[str, str], ...] = field(default=(), compare=False, repr=False)
    files: tuple[tuple[Path, bytes], ...] = field(default=(), compare=False, repr=False)

    @property
    def localhost_families(self) -> frozenset[int]:
        """The families in which NodePorts answer on the loopback address: those with a range of such addresses."""
        ranges = (parse_cidr(text) for text in self.nodeport_addresses if text != PRIMARY)
        return frozenset(family(cidr.network) for cidr in ranges if is_loopback(cidr.network)) & self.families

    @property
    def masquerade_mark(self) -> int:
        """The packet mark with only `masquerade_bit` set."""
        return 1 << self.masquerade_bit
