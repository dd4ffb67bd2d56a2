"""Settings into the `Config` that the machine runs with. They must have been checked."""

from pathlib import Path
from typing import Any

from ipvsproxy.base.address import parse_cidr, parse_ip
from ipvsproxy.config.check import KUBERNETES_VERSION, SERVICE_METRICS, gate, other_mode, reads
from ipvsproxy.config.document import OURS, tree
from ipvsproxy.config.kinds import NANOSECONDS
from ipvsproxy.config.model import (
    ALL_SERVICES,
    Config,
    ConntrackSettings,
    DetectLocalMode,
    IpvsTimeouts,
    Listen,
    LogFormat,
    VipMode,
)
from ipvsproxy.config.settle import HEALTHZ, METRICS, SHORTEST_SYNC, Settings
from ipvsproxy.config.table import SETTINGS


def config(settings: Settings, host_name: str) -> Config:
    """Return what the settings mean on a host with this name."""
    values = settings.values
    version = values["--version"]
    return Config(
        node_name=(values["hostnameOverride"] or host_name).strip().lower(),
        manifests=_path(values["manifests"]),
        kubeconfig=_path(values["clientConnection.kubeconfig"]),
        master=values["--master"],
        scheduler=values["ipvs.scheduler"] or "rr",
        sync_period=_seconds(max(values["ipvs.syncPeriod"], SHORTEST_SYNC)),
        min_sync_period=_seconds(values["ipvs.minSyncPeriod"]),
        exclude_cidrs=tuple(values["ipvs.excludeCIDRs"]),
        vip_mode=VipMode(values["vipMode"]),
        drain_timeout=_seconds(values["drainTimeout"]),
        service_limit=values["serviceLimit"],
        namespace_limit=values["namespaceLimit"],
        node_limit=values["nodeLimit"],
        service_metrics=_service_metrics(values["serviceMetrics"]),
        kubernetes_version=version if version.startswith("v") else KUBERNETES_VERSION,
        verbosity=values["logging.verbosity"],
        vmodule=tuple((item["filePattern"], item["verbosity"]) for item in values["logging.vmodule"]),
        log_format=LogFormat(values["logging.format"]),
        other_mode=other_mode(settings),
        document=tree({**values, "mode": "ipvs"}),
        own_document=tree(values, OURS),
        flags=tuple(_flags(settings)),
        files=tuple(settings.files),
        **_traffic(values),
        **_host(values),
        **_servers(values),
    )


def _service_metrics(text: str) -> int:
    return {"off": 0, "all": ALL_SERVICES}[text] if text in SERVICE_METRICS else int(text)


def _traffic(values: dict[str, Any]) -> dict[str, Any]:
    # masqueradeAll and the bit come from the iptables section in ipvs mode too (contract 1.5).
    return {
        # Judged in mode ClusterCIDR alone (contract 1.6): in others there may be anything, also one empty text.
        "cluster_cidrs": tuple(text for text in values["clusterCIDR"] if reads(parse_cidr, text)),
        "detect_local_mode": DetectLocalMode(values["detectLocalMode"]),
        "pod_bridge_interface": values["detectLocal.bridgeInterface"],
        "pod_interface_name_prefix": values["detectLocal.interfaceNamePrefix"],
        "masquerade_all": values["iptables.masqueradeAll"],
        "masquerade_bit": values["iptables.masqueradeBit"],
        "nodeport_addresses": tuple(values["nodePortAddresses"]),
        "external_ip_ranges": tuple(values["externalIPRanges"]),
        "suppress_vip_arp": values["suppressVIPARP"],
        "denied_ip_ranges": tuple(values["deniedIPRanges"]),
        "node_port_range": values["nodePortRange"],
        "trusted_ip_ranges": tuple(values["trustedIPRanges"]),
        "allow_external_ips": gate(values, "AllowServiceExternalIPs"),
    }


def _host(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "strict_arp": values["ipvs.strictARP"],
        "ipvs_timeouts": IpvsTimeouts(
            tcp=_seconds(values["ipvs.tcpTimeout"]),
            tcp_fin=_seconds(values["ipvs.tcpFinTimeout"]),
            udp=_seconds(values["ipvs.udpTimeout"]),
        ),
        "conntrack": ConntrackSettings(
            max_per_core=values["conntrack.maxPerCore"],
            min=values["conntrack.min"],
            tcp_established=_seconds(values["conntrack.tcpEstablishedTimeout"]),
            tcp_close_wait=_seconds(values["conntrack.tcpCloseWaitTimeout"]),
            tcp_be_liberal=values["conntrack.tcpBeLiberal"],
            udp=_seconds(values["conntrack.udpTimeout"]),
            udp_stream=_seconds(values["conntrack.udpStreamTimeout"]),
        ),
        "oom_score_adj": values["oomScoreAdj"],
    }


def _servers(values: dict[str, Any]) -> dict[str, Any]:
    return {
        "bind_address": parse_ip(values["bindAddress"]),
        "healthz_bind_address": listen(values[HEALTHZ]),
        "metrics_bind_address": listen(values[METRICS]),
        "bind_address_hard_fail": values["bindAddressHardFail"],
        "profiling": values["enableProfiling"],
        "serve_flagz": gate(values, "ComponentFlagz"),
        "serve_statusz": gate(values, "ComponentStatusz"),
    }


def _flags(settings: Settings) -> list[tuple[str, str]]:
    rows = sorted((row for row in SETTINGS if row.flag), key=lambda row: row.flag)
    return [(row.flag, row.kind.show(settings.values[row.key])) for row in rows]


def _path(text: str) -> Path | None:
    return Path(text) if text else None


def _seconds(nanoseconds: int) -> float:
    return nanoseconds / NANOSECONDS


def listen(text: str) -> Listen | None:
    """Return where a server listens, None for an empty text: nowhere."""
    host, _, port = text.rpartition(":")
    return Listen(parse_ip(host.strip("[]")), int(port)) if text else None
