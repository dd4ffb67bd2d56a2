"""The command line: subcommands and flags into a `Config`, errors into one line and an exit status.

Flags are those of kube-proxy (contract 1.1, 1.2): `_` counts as `-`, durations are Go durations, lists are
comma separated and may be repeated. Called with a flag first, it means `run`. Exit status: 0 fine, 1 failed,
2 used wrongly.
"""

import argparse
import re
import socket
import sys
from collections.abc import Sequence
from pathlib import Path

from ipvsproxy.config import Config, DetectLocalMode, LogFormat, VipMode

COMMANDS = ("run", "cleanup", "version")
DURATION_UNITS = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0, "m": 60.0, "h": 3600.0}
DURATION_PART = re.compile(r"(\d+\.?\d*|\.\d+)(ns|us|µs|ms|s|m|h)")


def main(arguments: Sequence[str]) -> int:
    """Run one command and return the exit status."""
    options = parser().parse_args(normalized(arguments))
    if options.command == "version":
        return _version()
    config = configuration(options)
    problems = list(config.check())
    for problem in problems:
        print(f"ipvsproxy: {problem}", file=sys.stderr)
    if problems:
        return 2
    return _act(options.command, config)


def _version() -> int:
    from importlib.metadata import version

    print(f"ipvsproxy v{version('ipvsproxy')}")
    return 0


def _act(command: str, config: Config) -> int:
    # Imported late: --help and wrong flags need neither pyroute2 nor structlog.
    from ipvsproxy import app, log
    from ipvsproxy.loop import Fatal

    log.configure(config.verbosity, config.log_format)
    try:
        if command == "cleanup":
            app.cleanup(config)
        else:
            app.run(config)
    except Fatal as error:
        print(f"ipvsproxy: {error}", file=sys.stderr)
        return 1
    return 0


def normalized(arguments: Sequence[str]) -> list[str]:
    """Put `run` before a leading flag, and write flag names with `-`."""
    out = list(arguments)
    if out and out[0].startswith("-") and out[0] not in ("-h", "--help"):
        out.insert(0, "run")
    for index, text in enumerate(out):
        name, equals, value = text.partition("=")
        if name.startswith("--"):
            out[index] = name.replace("_", "-") + equals + value
    return out


def parser() -> argparse.ArgumentParser:
    """Return the parser of all commands."""
    top = argparse.ArgumentParser(prog="ipvsproxy", description="Kubernetes Services through IPVS and nftables.")
    commands = top.add_subparsers(dest="command", required=True, metavar="COMMAND")
    run = commands.add_parser("run", help="program this node and keep it right", allow_abbrev=False)
    _source_flags(run)
    _traffic_flags(run)
    _log_flags(run)
    clean = commands.add_parser("cleanup", help="take everything of ours out of the kernel", allow_abbrev=False)
    _exclude_flag(clean)
    _log_flags(clean)
    commands.add_parser("version", help="print the version")
    return top


def _source_flags(run: argparse.ArgumentParser) -> None:
    add = run.add_argument_group("where Services come from").add_argument
    add("--manifests", type=Path, metavar="DIR", help="a folder of YAML or JSON files, watched; needs no cluster")
    add("--kubeconfig", type=Path, metavar="FILE", help="default: the in-cluster configuration")
    add("--master", default="", metavar="URL", help="replaces the server of the kubeconfig")
    add("--hostname-override", metavar="NAME", help="the name of this node's Node object; default: the host name")


def _traffic_flags(run: argparse.ArgumentParser) -> None:
    add = run.add_argument_group("traffic").add_argument
    add(
        "--cluster-cidr", action="append", type=comma_list, metavar="CIDR[,CIDR]", help="where pods have addresses"
    )
    add("--detect-local-mode", type=DetectLocalMode, default=DetectLocalMode.CLUSTER_CIDR, metavar="MODE",
        help="how a local pod is told from others: " + ", ".join(DetectLocalMode))  # fmt: skip
    add("--pod-bridge-interface", default="", metavar="NAME", help="for BridgeInterface")
    add("--pod-interface-name-prefix", default="", metavar="PREFIX", help="for InterfaceNamePrefix")
    add("--masquerade-all", type=boolean, nargs="?", const=True, default=False, metavar="BOOL",
        help="masquerade everything that goes to a ClusterIP")  # fmt: skip
    add("--nodeport-addresses", action="append", type=comma_list, metavar="CIDR,...",
        help="node addresses that serve NodePorts, or the word primary; default: all")  # fmt: skip
    add("--ipvs-scheduler", default="", metavar="NAME", help="default: rr")
    add("--ipvs-sync-period", type=duration, default=30.0, metavar="DURATION", help="between verifications")
    add("--ipvs-min-sync-period", type=duration, default=0.0, metavar="DURATION", help="least pause between syncs")
    add("--vip-mode", type=VipMode, default=VipMode.AUTO, metavar="MODE",
        help="VIPs as addresses on kube-ipvs0 or as local routes: " + ", ".join(VipMode))  # fmt: skip
    _exclude_flag(run)


def _exclude_flag(command: argparse.ArgumentParser) -> None:
    command.add_argument("--ipvs-exclude-cidrs", action="append", type=comma_list, metavar="CIDR,...",
        help="virtual servers of others, never removed")  # fmt: skip


def _log_flags(command: argparse.ArgumentParser) -> None:
    add = command.add_argument_group("logs").add_argument
    add("-v", "--v", type=int, default=0, dest="verbosity", metavar="N", help="verbosity, 0 to 9")
    add("--logging-format", type=LogFormat, default=LogFormat.TEXT, metavar="FORMAT", help="text or json")


def configuration(options: argparse.Namespace) -> Config:
    """Return the settings that parsed flags mean."""
    given = {name: value for name, value in vars(options).items() if value is not None}
    name = given.get("hostname_override", socket.gethostname())
    return Config(
        node_name=name.strip().lower(),
        manifests=given.get("manifests"),
        kubeconfig=given.get("kubeconfig"),
        master=given.get("master", ""),
        cluster_cidrs=_joined(given.get("cluster_cidr")),
        detect_local_mode=given.get("detect_local_mode", DetectLocalMode.CLUSTER_CIDR),
        pod_bridge_interface=given.get("pod_bridge_interface", ""),
        pod_interface_name_prefix=given.get("pod_interface_name_prefix", ""),
        masquerade_all=given.get("masquerade_all", False),
        nodeport_addresses=_joined(given.get("nodeport_addresses")),
        scheduler=given.get("ipvs_scheduler") or "rr",
        sync_period=given.get("ipvs_sync_period", 30.0),
        min_sync_period=given.get("ipvs_min_sync_period", 0.0),
        exclude_cidrs=_joined(given.get("ipvs_exclude_cidrs")),
        vip_mode=given.get("vip_mode", VipMode.AUTO),
        verbosity=given.get("verbosity", 0),
        log_format=given.get("logging_format", LogFormat.TEXT),
    )


def _joined(lists: Sequence[Sequence[str]] | None) -> tuple[str, ...]:
    return tuple(text for part in lists or () for text in part)


def comma_list(text: str) -> list[str]:
    """Split at commas; an empty text is an empty list."""
    return [part.strip() for part in text.split(",")] if text.strip() else []


def boolean(text: str) -> bool:
    """Read a Go boolean. Raises ArgumentTypeError."""
    if text.lower() in ("true", "t", "1"):
        return True
    if text.lower() in ("false", "f", "0"):
        return False
    raise argparse.ArgumentTypeError(f"{text!r} is not a boolean")


def duration(text: str) -> float:
    """Read a Go duration such as 1h2m3.5s into seconds. Raises ArgumentTypeError."""
    sign, body = (-1, text[1:]) if text.startswith("-") else (1, text.removeprefix("+"))
    if body == "0":
        return 0.0
    if not body or DURATION_PART.sub("", body):
        raise argparse.ArgumentTypeError(f"{text!r} is not a duration such as 30s or 1m30s")
    return sign * sum(float(number) * DURATION_UNITS[unit] for number, unit in DURATION_PART.findall(body))
