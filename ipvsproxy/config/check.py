"""What is wrong with settings: every problem at once, each with the flag or field it is about.

Rules: contract 1.6. A mode that is not ours is no problem here; `other_mode` states what it means for those who
would run (contract 1.7).
"""

import re
from collections.abc import Iterator
from typing import Any

from ipvsproxy.base.address import family, parse_cidr, parse_ip
from ipvsproxy.config.annotations import default_problems
from ipvsproxy.config.kinds import format_duration
from ipvsproxy.config.meaning import SERVICE_METRICS, reads
from ipvsproxy.config.model import KUBERNETES_VERSION
from ipvsproxy.config.settle import PORTS, Settings
from ipvsproxy.config.table import GATES_WITH_EFFECT, KUBE_PROXY_FIELDS, OUR_FIELDS
from ipvsproxy.config.values import (
    ADDRESS_WORDS,
    PRIMARY,
    DataPath,
    DetectLocalMode,
    LogFormat,
    TenantPods,
    TenantRefusal,
    VipMode,
)

PREVIOUS_MINORS = ("1.35", "1.36")
"""What kube-proxy 1.36 and 1.37 take for the previous minor version."""
VERSION = re.compile(r"v\d+\.\d+\.\d+([-+][0-9A-Za-z.+-]+)?")
INTERFACE = re.compile(r"[A-Za-z0-9_.-]{1,15}")
"""What a ruleset can name. Linux takes nearly anything for a name; quotes and the like are not worth the risk."""
SCHEDULER = re.compile(r"[a-z0-9_]{0,15}")
"""The kernel's limit, and what names of modules are made of."""
NAMESPACED = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?/[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
LABEL = re.compile(r"([a-z0-9]([-a-z0-9.]{0,251}[a-z0-9])?/)?[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
MODES = ("iptables", "ipvs", "nftables")
LOCKED_GATES = {"PreferSameTrafficDistribution": True, "MultiCIDRServiceAllocator": True}
"""Gates of features that cannot be switched off any more."""
STAGES = {"ComponentFlagz": "AllBeta", "ComponentStatusz": "AllBeta", "LoggingAlphaOptions": "AllAlpha"}
NUMBER = re.compile("[1-9][0-9]{0,5}")
PORT = re.compile("[0-9]{1,9}")
PORT_RANGE = re.compile("([0-9]{1,5})-([0-9]{1,5})")
ALPHA_LOGGING = ("splitStream", "infoBufferSize")

NOT_NEGATIVE = (
    *("conntrack.maxPerCore", "conntrack.min", "conntrack.tcpEstablishedTimeout", "conntrack.tcpCloseWaitTimeout"),
    *("conntrack.udpTimeout", "conntrack.udpStreamTimeout", "clientConnection.burst"),
    *("ipvs.tcpTimeout", "ipvs.tcpFinTimeout", "ipvs.udpTimeout", "ipvs.minSyncPeriod", "drainTimeout"),
)
ABOVE_ZERO = ("configSyncPeriod", "ipvs.syncPeriod", "logging.flushFrequency")
RANGES = {"iptables.masqueradeBit": (0, 31), "nftables.masqueradeBit": (0, 31), "oomScoreAdj": (-1000, 1000)}
CHOICES = {
    "mode": MODES,
    "detectLocalMode": tuple(DetectLocalMode),
    "logging.format": tuple(LogFormat),
    "vipMode": tuple(VipMode),
    "dataPath": tuple(DataPath),
    "tenantRefusal": tuple(TenantRefusal),
    "tenantPods": tuple(TenantPods),
    "showHiddenMetricsForVersion": ("", *PREVIOUS_MINORS),
}


def problems(settings: Settings) -> Iterator[str]:
    """Yield one sentence for each setting that cannot be used."""
    for key, value, reason in _all(settings.values):
        row = KUBE_PROXY_FIELDS.get(key) or OUR_FIELDS.get(key)
        yield f"{settings.name(key)}: invalid value {row.kind.show(value) if row else value!r}: {reason}"
    if settings.values["hostnameOverride"] and not settings.values["hostnameOverride"].strip():
        yield f"{settings.name('hostnameOverride')}: must not be blank"
    if settings.values["manifests"]:
        for key in ("clientConnection.kubeconfig", "--master"):
            if settings.values[key]:
                yield f"{settings.name('manifests')}: cannot be combined with {settings.name(key)}"
    if settings.values["--write-config-to"] and settings.values["--cleanup"]:
        yield "--write-config-to: cannot be combined with --cleanup"
    for key in ("--cleanup-kube-proxy", "--cleanup-wait", "--cleanup-handover"):
        if settings.values[key] and not settings.values["--cleanup"]:
            yield f"{key}: means nothing without --cleanup"


def other_mode(settings: Settings) -> str:
    """Return what to do about a mode that is not ours, empty where there is none or its replacement is wanted.

    kubeadm writes `mode: iptables` from 1.37 on where no mode was chosen. So such a file may well be meant for us,
    and a node must not be left without a proxy; but who runs kube-proxy in that mode on the node must keep it.
    """
    mode = settings.values["mode"]
    if mode == "ipvs" or settings.values["replaceProxyMode"]:
        return ""
    return (
        f"{settings.name('mode')} is {mode}, and this program serves in mode ipvs only. If it is meant to replace"
        f" the mode {mode}, confirm it: set the environment variable IPVSPROXY_REPLACE_PROXY_MODE=true, the flag"
        " --replace-proxy-mode, or the mode to ipvs"
    )


def unknown_gates(settings: Settings) -> list[str]:
    """Return the feature gates that were given and that have no effect here."""
    known = GATES_WITH_EFFECT.keys() | LOCKED_GATES.keys() | {*STAGES.values()}
    return sorted(settings.values["featureGates"].keys() - known)


def lost_in_file(settings: Settings) -> Iterator[str]:
    """Yield one sentence for each setting that a written configuration file cannot hold (contract 1.4, 1.16)."""
    for key in PORTS:
        if not settings.values[key]:
            yield f"{settings.name(key)}: no server was asked for, but an empty field means the default address"


def gate(values: dict[str, Any], name: str) -> bool:
    """Return whether a feature gate of `GATES_WITH_EFFECT` is on: by its own name, or as one of its stage."""
    given = values["featureGates"]
    return bool(given.get(name, given.get(STAGES.get(name, ""), GATES_WITH_EFFECT[name])))


Problem = tuple[str, Any, str]


def _all(values: dict[str, Any]) -> Iterator[Problem]:
    yield from _numbers(values)
    for key, choices in CHOICES.items():
        if values[key] not in choices:
            yield key, values[key], f"must be one of {', '.join(repr(str(c)) for c in choices)}"
    yield from _addresses(values)
    yield from _ranges(values)
    yield from _detector(values)
    for name, wanted in LOCKED_GATES.items():
        if values["featureGates"].get(name, wanted) is not wanted:
            yield "featureGates", values["featureGates"], f"{name} is locked to {str(wanted).lower()}"
    yield from _logging(values)
    yield from _tenants(values)
    yield from _service_defaults(values)
    if not SCHEDULER.fullmatch(values["ipvs.scheduler"]):
        yield "ipvs.scheduler", values["ipvs.scheduler"], "must be the name of an IPVS scheduler, such as rr or mh"
    shown = values["serviceMetrics"]
    if shown not in SERVICE_METRICS and not NUMBER.fullmatch(shown):
        yield "serviceMetrics", shown, "must be off, all or a number of Services above 0"
    if values["nodePortRange"] and not _is_port_range(values["nodePortRange"]):
        yield "nodePortRange", values["nodePortRange"], "must be a range of ports such as 30000-32767, or empty"
    version = values["--version"]
    if version not in ("true", "false", "raw") and not VERSION.fullmatch(version):
        yield "--version", version, f"must be true, false, raw or a version such as {KUBERNETES_VERSION}"


def _is_port_range(text: str) -> bool:
    match = PORT_RANGE.fullmatch(text)
    return match is not None and 0 < int(match[1]) <= int(match[2]) < 1 << 16


def _numbers(values: dict[str, Any]) -> Iterator[Problem]:
    for key in NOT_NEGATIVE:
        if values[key] < 0:
            yield key, values[key], "must be greater than or equal to 0"
    for key in ABOVE_ZERO:
        if values[key] <= 0:
            yield key, values[key], "must be greater than 0"
    for key, (low, high) in RANGES.items():
        if not low <= values[key] <= high:
            yield key, values[key], f"must be within the range [{low}, {high}]"
    if values["ipvs.minSyncPeriod"] > values["ipvs.syncPeriod"] > 0:
        longest = format_duration(values["ipvs.syncPeriod"])
        yield "ipvs.minSyncPeriod", values["ipvs.minSyncPeriod"], f"must not be greater than syncPeriod, {longest}"


def _addresses(values: dict[str, Any]) -> Iterator[Problem]:
    if not reads(parse_ip, values["bindAddress"]):
        yield "bindAddress", values["bindAddress"], "not a valid textual representation of an IP address"
    for key in PORTS:
        reason = _listen_problem(values[key]) if values[key] else ""
        if reason:
            yield key, values[key], reason


def _listen_problem(text: str) -> str:
    host, colon, port = text.rpartition(":")
    if not colon or ("[" in host) != (":" in host):
        return "must be IP:port"
    if not reads(parse_ip, host.removeprefix("[").removesuffix("]")):
        return f"{host!r} is not a valid IP address"
    if not PORT.fullmatch(port) or not 1 <= int(port) <= 65535:
        return f"{port!r} is not a valid port"
    return ""


def _ranges(values: dict[str, Any]) -> Iterator[Problem]:
    for key in ("ipvs.excludeCIDRs", "externalIPRanges", "deniedIPRanges", "trustedIPRanges"):
        for index, text in enumerate(values[key]):
            if not reads(parse_cidr, text):
                yield key, text, f"entry {index} must be a valid CIDR"
    addresses = values["nodePortAddresses"]
    if PRIMARY in addresses and all(text in (PRIMARY, *ADDRESS_WORDS) for text in addresses):
        return
    for index, text in enumerate(addresses):
        if text == PRIMARY:
            yield "nodePortAddresses", addresses, "cannot use both 'primary' and CIDRs"
        elif text not in ADDRESS_WORDS and not reads(parse_cidr, text):
            yield "nodePortAddresses", text, f"entry {index} must be a valid CIDR"


def _detector(values: dict[str, Any]) -> Iterator[Problem]:
    needed = {
        DetectLocalMode.BRIDGE_INTERFACE: "detectLocal.bridgeInterface",
        DetectLocalMode.INTERFACE_NAME_PREFIX: "detectLocal.interfaceNamePrefix",
    }
    mode = values["detectLocalMode"]
    if mode in needed and not values[needed[mode]]:
        yield needed[mode], "", f"must not be empty with detectLocalMode {mode}"
    for key in needed.values():
        if values[key] and not INTERFACE.fullmatch(values[key]):
            yield (
                key,
                values[key],
                "must be up to 15 letters, digits, or characters of _.-",
            )
    if mode != DetectLocalMode.CLUSTER_CIDR:
        return
    cidrs = values["clusterCIDR"]
    wrong = [text for text in cidrs if not reads(parse_cidr, text)]
    if wrong:
        yield "clusterCIDR", cidrs, f"{wrong[0]!r} is not a valid CIDR"
    elif len(cidrs) > 2 or len({family(parse_cidr(text).network) for text in cidrs}) < len(cidrs):
        yield "clusterCIDR", cidrs, "must be one CIDR, or one of each IP family"


def _service_defaults(values: dict[str, Any]) -> Iterator[Problem]:
    for name, reason in default_problems(values["serviceDefaults"]):
        yield "serviceDefaults", {name: values["serviceDefaults"][name]}, reason


def _tenants(values: dict[str, Any]) -> Iterator[Problem]:
    label, dns = values["tenantLabel"], values["clusterDNS"]
    if dns and not NAMESPACED.fullmatch(dns):
        yield "clusterDNS", dns, "must be namespace/name of a Service, or empty"
    if label and not LABEL.fullmatch(label):
        yield "tenantLabel", label, "is not the name of a label, such as ipvsproxy.io/tenant"
    elif label and values["detectLocalMode"] == DetectLocalMode.CLUSTER_CIDR and not values["clusterCIDR"]:
        yield (
            "tenantLabel",
            label,
            "local pods cannot be recognised: clusterCIDR or detectLocalMode is needed",
        )


def _logging(values: dict[str, Any]) -> Iterator[Problem]:
    if values["logging.vmodule"] and values["logging.format"] != LogFormat.TEXT:
        yield "logging.vmodule", values["logging.vmodule"], "only with the text logging format"
    if gate(values, "LoggingAlphaOptions"):
        return
    for form in LogFormat:
        for option in ALPHA_LOGGING:
            key = f"logging.options.{form}.{option}"
            if values[key] not in (False, "0"):
                yield key, values[key], "needs the feature gate LoggingAlphaOptions"
