"""Every setting as one row: its flag, its field, its kind, its default and what becomes of it here.

All else is derived from these rows: reading flags and files, `--help`, `--write-config-to`, /configz, and the
test that keeps docs/compatibility.md true; and `config.model.Config`: which attribute a setting becomes, and its
default there. Source: contract 1.2 and 1.4. `config.check` has what may be wrong with a value.
"""

from collections.abc import Callable
from enum import Enum
from itertools import chain
from typing import Any, NamedTuple

from ipvsproxy.base.address import parse_ip
from ipvsproxy.base.names import MASQUERADE_BIT
from ipvsproxy.config import meaning
from ipvsproxy.config.kinds import (
    BOOL,
    CIDRS,
    DURATION,
    FLOAT,
    FLUSH,
    GATES,
    INT,
    LIST,
    NANOSECONDS,
    QUANTITIES,
    STRING,
    TEXTS,
    UINT,
    VERSION,
    VMODULE,
    ValueKind,
)
from ipvsproxy.config.meaning import seconds
from ipvsproxy.config.values import DataPath, LogFormat, TenantPods, TenantRefusal, VipMode

SECOND = NANOSECONDS
MINUTE, HOUR = 60 * SECOND, 3600 * SECOND


class Status(Enum):
    """What becomes of a setting here, as docs/compatibility.md has it."""

    SAME = "same"
    BETTER = "better"
    ACCEPTED = "accepted"
    NEW = "new"


SAME, BETTER, ACCEPTED, NEW = Status


def _same(value: Any) -> Any:
    return value


class Alias(NamedTuple):
    """What a setting was called in an earlier version; its environment variable follows from the flag."""

    flag: str
    field: str


class Row(NamedTuple):
    """One setting.

    `flag` is its name without dashes, `field` its place in KubeProxyConfiguration (in IPVSProxyConfiguration for
    our own), each empty if there is none. A zero in a file means the default, unless it is `nullable`: then only
    null does. `flag_default` replaces the default where no configuration file is used. `always` marks flags
    that count beside `--config`. `attribute` is where the value goes in `Config` ("conntrack.min" is an attribute
    of its attribute `conntrack`), empty if the program has no use for it; `convert` makes that out of the value.
    `decides` marks settings on which depends what the kernel of a node should have. `aliases` still work, with a
    note that names the new name.
    """

    flag: str
    field: str
    kind: ValueKind
    default: Any
    status: Status
    help: str
    nullable: bool = False
    flag_default: Any = None
    always: bool = False
    attribute: str = ""
    convert: Callable[[Any], Any] = _same
    decides: bool = False
    aliases: tuple[Alias, ...] = ()

    @property
    def key(self) -> str:
        """The name by which programs know it: the field, or the flag of one without a field."""
        return self.field or f"--{self.flag}"


PROCESS = (
    Row("config", "", STRING, "", BETTER, "a KubeProxyConfiguration; most flags are ignored when this is set",
        always=True),
    Row("write-config-to", "", STRING, "", BETTER, "write the effective configuration to this file and exit",
        always=True),
    Row("cleanup", "", BOOL, False, BETTER, "remove everything from the kernel and exit", always=True),
    Row("cleanup-kube-proxy", "", BOOL, False, NEW,
        "with --cleanup: also remove what a kube-proxy has written, even if one runs or may run", always=True),
    Row("cleanup-wait", "", BOOL, False, NEW,
        "with --cleanup: wait until the ipvsproxy on this node has exited instead of refusing", always=True),
    Row("cleanup-handover", "", BOOL, False, NEW,
        "with --cleanup: also wait until a kube-proxy has programmed this node", always=True),
    Row("init-only", "", BOOL, False, BETTER, "change kernel settings, load modules and exit", always=True),
    Row("version", "", VERSION, "false", SAME, "print the version (raw: all of it) and exit", always=True),
    Row("feature-gates", "featureGates", GATES, {}, BETTER, "feature gates of Kubernetes"),
)  # fmt: skip
API = (
    Row("kubeconfig", "clientConnection.kubeconfig", STRING, "", SAME, "default: the in-cluster configuration",
        attribute="kubeconfig", convert=meaning.path),
    Row("master", "", STRING, "", SAME, "URL that replaces the server of the kubeconfig", always=True,
        attribute="master"),
    Row("kube-api-content-type", "clientConnection.contentType", STRING, "application/vnd.kubernetes.protobuf",
        ACCEPTED, "JSON is always sent and requested"),
    Row("", "clientConnection.acceptContentTypes", STRING, "", ACCEPTED, ""),
    Row("kube-api-qps", "clientConnection.qps", FLOAT, 5.0, ACCEPTED, "requests to the API a second"),
    Row("kube-api-burst", "clientConnection.burst", INT, 10, ACCEPTED, "requests to the API at once"),
    Row("config-sync-period", "configSyncPeriod", DURATION, 15 * MINUTE, ACCEPTED, "time between resyncs"),
    Row("hostname-override", "hostnameOverride", STRING, "", SAME,
        "the name of this node's Node object; default: the host name", always=True),
)  # fmt: skip
SERVERS = (
    Row("bind-address", "bindAddress", STRING, "0.0.0.0", SAME, "a hint for this node's IP",  # noqa: S104
        attribute="bind_address", convert=parse_ip),
    Row("healthz-bind-address", "healthzBindAddress", STRING, "", BETTER,
        "IP[:port] of /healthz and /livez; default 0.0.0.0:10256, empty: none",
        attribute="healthz_bind_address", convert=meaning.listen),
    Row("metrics-bind-address", "metricsBindAddress", STRING, "", BETTER,
        "IP[:port] of /metrics; default 127.0.0.1:10249, empty: none",
        attribute="metrics_bind_address", convert=meaning.listen),
    Row("bind-address-hard-fail", "bindAddressHardFail", BOOL, False, SAME, "exit if a listener cannot be opened",
        attribute="bind_address_hard_fail"),
    Row("healthz-port", "", INT, 10256, SAME, "deprecated: the port of --healthz-bind-address, 0: no server"),
    Row("metrics-port", "", INT, 10249, BETTER, "deprecated: the port of --metrics-bind-address, 0: no server"),
    Row("profiling", "enableProfiling", BOOL, False, SAME, "serve /debug beside /metrics",
        attribute="profiling"),
    Row("show-hidden-metrics-for-version", "showHiddenMetricsForVersion", STRING, "", ACCEPTED,
        "the previous minor version; no metric is hidden"),
)  # fmt: skip
TRAFFIC = (
    Row("proxy-mode", "mode", STRING, "", BETTER, "ipvs or empty; others: see --replace-proxy-mode"),
    Row("cluster-cidr", "clusterCIDR", CIDRS, [], SAME, "address ranges of pods",
        attribute="cluster_cidrs", convert=meaning.cidrs, decides=True),
    Row("detect-local-mode", "detectLocalMode", STRING, "", SAME,
        "how local pods are recognised: ClusterCIDR, NodeCIDR, BridgeInterface, InterfaceNamePrefix",
        attribute="detect_local_mode", convert=meaning.detect_local_mode, decides=True),
    Row("pod-bridge-interface", "detectLocal.bridgeInterface", STRING, "", SAME, "pod bridge, for BridgeInterface",
        attribute="pod_bridge_interface", decides=True),
    Row("pod-interface-name-prefix", "detectLocal.interfaceNamePrefix", STRING, "", SAME,
        "prefix of pod links, for InterfaceNamePrefix", attribute="pod_interface_name_prefix", decides=True),
    Row("nodeport-addresses", "nodePortAddresses", LIST, [], BETTER,
        "ranges of node addresses that serve NodePorts, or the words primary, all, localhost; default: all",
        attribute="nodeport_addresses", convert=meaning.nodeport_addresses, decides=True),
    Row("masquerade-all", "iptables.masqueradeAll", BOOL, False, SAME,
        "masquerade all traffic to ClusterIPs", attribute="masquerade_all", decides=True),
    Row("iptables-masquerade-bit", "iptables.masqueradeBit", INT, MASQUERADE_BIT, SAME,
        "bit of the packet mark that lets replies pass the FORWARD chain of iptables-nft", nullable=True,
        attribute="masquerade_bit", decides=True),
    Row("ipvs-scheduler", "ipvs.scheduler", STRING, "", BETTER, "scheduler of all Services; default: rr",
        attribute="scheduler", convert=meaning.scheduler, decides=True),
    Row("ipvs-sync-period", "ipvs.syncPeriod", DURATION, 30 * SECOND, BETTER, "time between verifications",
        attribute="sync_period", convert=meaning.sync_period),
    Row("ipvs-min-sync-period", "ipvs.minSyncPeriod", DURATION, 0, SAME, "minimum pause between syncs",
        flag_default=SECOND, attribute="min_sync_period", convert=seconds),
    Row("ipvs-exclude-cidrs", "ipvs.excludeCIDRs", LIST, [], BETTER,
        "virtual servers in these ranges are never removed",
        attribute="exclude_cidrs", convert=tuple, decides=True),
)  # fmt: skip
HOST = (
    Row("ipvs-strict-arp", "ipvs.strictARP", BOOL, False, SAME, "set arp_ignore to 1 and arp_announce to 2",
        attribute="strict_arp", decides=True),
    Row("ipvs-tcp-timeout", "ipvs.tcpTimeout", DURATION, 0, BETTER,
        "idle timeout; 0: 7800 s if the kernel has 900",
        attribute="ipvs_timeouts.tcp", convert=seconds),
    Row("ipvs-tcpfin-timeout", "ipvs.tcpFinTimeout", DURATION, 0, SAME, "timeout after a FIN; 0: unchanged",
        attribute="ipvs_timeouts.tcp_fin", convert=seconds),
    Row("ipvs-udp-timeout", "ipvs.udpTimeout", DURATION, 0, SAME, "timeout after the last packet; 0: unchanged",
        attribute="ipvs_timeouts.udp", convert=seconds),
    Row("conntrack-max-per-core", "conntrack.maxPerCore", INT, 32768, BETTER,
        "tracked connections for each CPU; 0: leave the limit unchanged", nullable=True,
        attribute="conntrack.max_per_core"),
    Row("conntrack-min", "conntrack.min", INT, 131072, SAME, "minimum limit of tracked connections", nullable=True,
        attribute="conntrack.min"),
    Row("conntrack-tcp-timeout-established", "conntrack.tcpEstablishedTimeout", DURATION, 24 * HOUR, SAME,
        "timeout of idle connections; 0: unchanged", nullable=True,
        attribute="conntrack.tcp_established", convert=seconds),
    Row("conntrack-tcp-timeout-close-wait", "conntrack.tcpCloseWaitTimeout", DURATION, HOUR, SAME,
        "timeout in CLOSE_WAIT; 0: unchanged", nullable=True, attribute="conntrack.tcp_close_wait",
        convert=seconds),
    Row("conntrack-tcp-be-liberal", "conntrack.tcpBeLiberal", BOOL, False, SAME, "track packets out of window",
        attribute="conntrack.tcp_be_liberal"),
    Row("conntrack-udp-timeout", "conntrack.udpTimeout", DURATION, 0, SAME,
        "timeout of unreplied entries; 0: unchanged",
        attribute="conntrack.udp", convert=seconds),
    Row("conntrack-udp-timeout-stream", "conntrack.udpStreamTimeout", DURATION, 0, SAME,
        "timeout of replied entries; 0: unchanged",
        attribute="conntrack.udp_stream", convert=seconds),
    Row("oom-score-adj", "oomScoreAdj", INT, -999, SAME, "OOM score, -1000 to 1000", nullable=True,
        attribute="oom_score_adj"),
)  # fmt: skip
LOGS = (
    Row("v", "logging.verbosity", UINT, 0, SAME, "verbosity, 0 to 9 (also -v)", always=True,
        attribute="verbosity"),
    Row("vmodule", "logging.vmodule", VMODULE, [], SAME, "verbosity of single files: loop=4,kube*=4", always=True,
        attribute="vmodule", convert=meaning.vmodule),
    Row("logging-format", "logging.format", STRING, "text", SAME, "text or json", always=True,
        attribute="log_format", convert=LogFormat),
    Row("log-flush-frequency", "logging.flushFrequency", FLUSH, 5 * SECOND, ACCEPTED, "lines are never buffered",
        always=True),
    Row("log-text-split-stream", "logging.options.text.splitStream", BOOL, False, ACCEPTED, "", always=True),
    Row("log-text-info-buffer-size", "logging.options.text.infoBufferSize", QUANTITIES, "0", ACCEPTED, "",
        always=True),
    Row("log-json-split-stream", "logging.options.json.splitStream", BOOL, False, ACCEPTED, "", always=True),
    Row("log-json-info-buffer-size", "logging.options.json.infoBufferSize", QUANTITIES, "0", ACCEPTED, "",
        always=True),
)  # fmt: skip
OTHER_MODES = (
    Row("iptables-localhost-nodeports", "iptables.localhostNodePorts", BOOL, True, ACCEPTED, "",
        nullable=True),
    Row("iptables-sync-period", "iptables.syncPeriod", DURATION, 30 * SECOND, ACCEPTED, ""),
    Row("iptables-min-sync-period", "iptables.minSyncPeriod", DURATION, SECOND, ACCEPTED, ""),
    Row("", "nftables.masqueradeBit", INT, MASQUERADE_BIT, ACCEPTED, "", nullable=True),
    Row("", "nftables.masqueradeAll", BOOL, False, ACCEPTED, ""),
    Row("", "nftables.syncPeriod", DURATION, 30 * SECOND, ACCEPTED, ""),
    Row("", "nftables.minSyncPeriod", DURATION, SECOND, ACCEPTED, ""),
    Row("", "winkernel.networkName", STRING, "", ACCEPTED, ""),
    Row("", "winkernel.sourceVip", STRING, "", ACCEPTED, ""),
    Row("", "winkernel.enableDSR", BOOL, False, ACCEPTED, ""),
    Row("", "winkernel.rootHnsEndpointName", STRING, "", ACCEPTED, ""),
    Row("", "winkernel.forwardHealthCheckVip", BOOL, False, ACCEPTED, ""),
    Row("", "portRange", STRING, "", ACCEPTED, ""),
    Row("", "windowsRunAsService", BOOL, False, ACCEPTED, ""),
    Row("boot-id-file", "", STRING, "", ACCEPTED, ""),
    Row("machine-id-file", "", STRING, "", ACCEPTED, ""),
)  # fmt: skip
OURS = (
    Row("extra-config", "", STRING, "", NEW, "an IPVSProxyConfiguration with the settings below", always=True),
    Row("manifests", "manifests", STRING, "", NEW, "a watched directory of YAML or JSON; needs no cluster",
        always=True, attribute="manifests", convert=meaning.path),
    Row("replace-proxy-mode", "replaceProxyMode", BOOL, False, NEW,
        "serve, in mode ipvs, also where the configured mode is iptables or nftables", always=True),
    Row("vip-mode", "vipMode", STRING, "auto", NEW,
        "VIPs as addresses on kube-ipvs0 or as local routes: auto, address, route", always=True,
        attribute="vip_mode", convert=VipMode, decides=True),
    Row("data-path", "dataPath", STRING, "ipvs", NEW,
        "the way of packets to Services: ipvs, or auto for conntrack's DNAT alone where a Service wants nothing"
        " that only IPVS has. For one Service: ipvsproxy.io/data-path", always=True,
        attribute="data_path", convert=DataPath, decides=True),
    Row("drain-timeout", "drainTimeout", DURATION, 0, NEW,
        "how long removed endpoints keep their connections; 0: until they end. For one Service:"
        " ipvsproxy.io/drain-timeout", always=True, attribute="drain_timeout", convert=seconds),
    Row("service-defaults", "serviceDefaults", TEXTS, {}, NEW,
        "annotations of Services that have not got them, without ipvsproxy.io/: scheduler=mh;max-connections=100",
        always=True, attribute="service_defaults", convert=meaning.pairs, decides=True),
    Row("external-ip-ranges", "externalIPRanges", LIST, [], NEW,
        "ranges that external IPs of Services must be in; default: all", always=True,
        attribute="external_ip_ranges", convert=tuple, decides=True),
    Row("denied-ip-ranges", "deniedIPRanges", LIST, [], NEW,
        "ranges in which no Service gets external or load balancer IPs", always=True,
        attribute="denied_ip_ranges", convert=tuple, decides=True),
    Row("node-port-range", "nodePortRange", STRING, "30000-32767", NEW,
        "ports of the API server's --service-node-port-range, which the kernel then does not use as source ports;"
        " empty: it may", always=True, nullable=True, attribute="node_port_range"),
    Row("trusted-ip-ranges", "trustedIPRanges", LIST, [], NEW,
        "ranges in which Services get addresses of nodes, pods and metadata services as well", always=True,
        attribute="trusted_ip_ranges", convert=tuple, decides=True),
    Row("service-metrics", "serviceMetrics", STRING, "off", NEW,
        "counters of single Services and endpoints: off, all, or a number: those with most traffic", always=True,
        attribute="service_metrics", convert=meaning.service_metrics),
    Row("service-limit", "serviceLimit", UINT, 500_000, NEW,
        "size up to which one Service is served; a virtual server counts 50, each of its source ranges 10, each"
        " of its destinations 1; 0: no limit", always=True, nullable=True, attribute="service_limit"),
    Row("namespace-limit", "namespaceLimit", UINT, 4_000_000, NEW,
        "the same for all Services of a namespace", always=True, nullable=True, attribute="namespace_limit"),
    Row("node-limit", "nodeLimit", UINT, 8_000_000, NEW,
        "the same for all Services; above it namespaces share it evenly", always=True, nullable=True,
        attribute="node_limit"),
    Row("tenant-label", "tenantLabel", STRING, "", NEW,
        "label of Namespaces that names their tenant, such as ipvsproxy.io/tenant; empty: there are no tenants",
        always=True, attribute="tenant_label", decides=True),
    Row("tenant-refusal", "tenantRefusal", STRING, "refuse", NEW,
        "what happens to a connection of a pod to a Service of another tenant: refuse, drop", always=True,
        attribute="tenant_refusal", convert=TenantRefusal, decides=True),
    Row("tenant-pods", "tenantPods", STRING, "node", NEW,
        "of which pods the tenant is known, so that no other tenant's EndpointSlice has them: node, all",
        always=True, attribute="tenant_pods", convert=TenantPods, decides=True),
    Row("cluster-dns", "clusterDNS", STRING, "kube-system/kube-dns", NEW,
        "namespace/name of the cluster's DNS Service, in place of which Services with the annotation"
        " ipvsproxy.io/tenant-dns answer pods of their tenants", always=True, nullable=True,
        attribute="cluster_dns", decides=True),
    Row("tenant-dns-fallback", "tenantDNSFallback", BOOL, False, NEW,
        "while the DNS of a tenant has no endpoint, the cluster's DNS answers its pods", always=True,
        attribute="tenant_dns_fallback", decides=True),
    Row("ipvs-sloppy-tcp", "ipvsSloppyTCP", BOOL, False, NEW,
        "IPVS takes up TCP connections in the middle, which another node had until now", always=True,
        attribute="sloppy_tcp", decides=True),
    Row("suppress-vip-arp", "suppressVIPARP", BOOL, True, NEW,
        "answer no ARP requests for VIPs that this program has bound", always=True, nullable=True,
        attribute="suppress_vip_arp", decides=True, aliases=(Alias("quiet-arp", "quietARP"),)),
)  # fmt: skip
"""Also as environment variables, IPVSPROXY_ and the flag in capitals."""
GATES_WITH_EFFECT = {
    "AllowServiceExternalIPs": True,
    "ComponentFlagz": True,
    "ComponentStatusz": True,
    "LoggingAlphaOptions": False,
}
"""Feature gates that change something here, and their defaults. All other names are accepted (contract 1.8)."""

GROUPS = {
    "actions": PROCESS,
    "the Kubernetes API": API,
    "servers": SERVERS,
    "traffic": TRAFFIC,
    "this host": HOST,
    "logs": LOGS,
    "other modes and systems": OTHER_MODES,
    "ipvsproxy's own": OURS,
}
SETTINGS = tuple(chain.from_iterable(GROUPS.values()))
BY_FLAG = {row.flag: row for row in SETTINGS if row.flag}
KUBE_PROXY_FIELDS = {row.field: row for row in SETTINGS if row.field and row not in OURS}
OUR_FIELDS = {row.field: row for row in OURS if row.field}
FLAG_ALIASES = {alias.flag: row for row in SETTINGS for alias in row.aliases}
FIELD_ALIASES = {alias.field: row for row in SETTINGS for alias in row.aliases}
BY_ATTRIBUTE = {row.attribute: row for row in SETTINGS if row.attribute}
