"""Settings that fit badly to the IP families of this host (contract 1.11, last point)."""

from collections.abc import Iterable

from ipvsproxy.base.address import family, parse_cidr
from ipvsproxy.config.model import Config
from ipvsproxy.config.values import PRIMARY, DetectLocalMode


def family_advice(config: Config, families: frozenset[int]) -> tuple[str, list[str]]:
    """Return why the settings cannot work with these families (or nothing), and what an operator should know."""
    return _fatal(config, families), [*_wrong_family(config, families), *_nodeports(config, families)]


def nodeport_note(config: Config) -> str:
    """Return what is so by default, which concerns only those who have NodePorts; empty where it was chosen."""
    if config.nodeport_addresses:
        return ""
    return "nodePortAddresses is not set: NodePorts answer on all local addresses; consider the word primary"


def _fatal(config: Config, families: frozenset[int]) -> str:
    cidrs = config.cluster_cidrs
    if config.detect_local_mode is not DetectLocalMode.CLUSTER_CIDR or not cidrs or families & _of(cidrs):
        return ""
    return (
        f"clusterCIDR {','.join(cidrs)}: this host supports only {_names(families)}, so no local pod is ever seen"
    )


def _wrong_family(config: Config, families: frozenset[int]) -> Iterable[str]:
    """Yield settings of a family that this host does not have."""
    cidrs = {"clusterCIDR": config.cluster_cidrs, "ipvs.excludeCIDRs": config.exclude_cidrs}
    for name, texts in cidrs.items():
        for text in texts:
            if not families & _of([text]):
                yield f"{name}: {text} has no effect, since this host supports only {_names(families)}"
    listens = {
        "healthzBindAddress": config.healthz_bind_address,
        "metricsBindAddress": config.metrics_bind_address,
    }
    for name, listen in listens.items():
        if listen and family(listen.address) not in families:
            yield f"{name}: {listen} is of a family that this host does not support"


def _nodeports(config: Config, families: frozenset[int]) -> Iterable[str]:
    addresses = config.nodeport_addresses
    if addresses and PRIMARY not in addresses:
        for missing in sorted(families - _of(addresses)):
            yield f"nodePortAddresses has no IPv{missing} range: NodePorts answer on all IPv{missing} addresses"


def _of(texts: Iterable[str]) -> frozenset[int]:
    return frozenset(family(parse_cidr(text).network) for text in texts)


def _names(families: frozenset[int]) -> str:
    return " and ".join(f"IPv{number}" for number in sorted(families))
