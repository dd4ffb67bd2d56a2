"""From the value of a setting to what the machine works with: nanoseconds to seconds, text to addresses and names.

Each function takes one checked value. The table names them (`Row.convert`).
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from ipvsproxy.base.address import parse_cidr, parse_ip
from ipvsproxy.config.kinds import NANOSECONDS
from ipvsproxy.config.values import ADDRESS_WORDS, ALL_SERVICES, DetectLocalMode, Listen

SERVICE_METRICS = {"off": 0, "all": ALL_SERVICES}
SHORTEST_SYNC = NANOSECONDS // 10
"""Verifications that follow each other more closely would leave no time for anything else."""


def seconds(nanoseconds: int) -> float:
    """Return a duration in seconds."""
    return nanoseconds / NANOSECONDS


def sync_period(nanoseconds: int) -> float:
    """Return the seconds between two verifications."""
    return seconds(max(nanoseconds, SHORTEST_SYNC))


def path(text: str) -> Path | None:
    """Return a path, None for an empty text."""
    return Path(text) if text else None


def scheduler(text: str) -> str:
    """Return the name of a scheduler; empty means round robin, as with kube-proxy."""
    return text or "rr"


def detect_local_mode(text: str) -> DetectLocalMode:
    """Return how local pods are detected."""
    return DetectLocalMode(text or DetectLocalMode.CLUSTER_CIDR)


def cidrs(texts: list[str]) -> tuple[str, ...]:
    """Return those that are CIDRs: in other modes than ClusterCIDR there may be anything (contract 1.6)."""
    return tuple(text for text in texts if reads(parse_cidr, text))


def service_metrics(text: str) -> int:
    """Return for how many Services there are counters."""
    return SERVICE_METRICS[text] if text in SERVICE_METRICS else int(text)


def pairs(values: dict[str, str]) -> tuple[tuple[str, str], ...]:
    """Return names with their values."""
    return tuple(values.items())


def nodeport_addresses(texts: list[str]) -> tuple[str, ...]:
    """Return ranges and the word primary."""
    return tuple(found for text in texts for found in ADDRESS_WORDS.get(text, (text,)))


def vmodule(items: list[dict[str, Any]]) -> tuple[tuple[str, int], ...]:
    """Return patterns of file names with their verbosity."""
    return tuple((item["filePattern"], item["verbosity"]) for item in items)


def listen(text: str) -> Listen | None:
    """Return where a server listens, None for an empty text: nowhere."""
    host, _, port = text.rpartition(":")
    return Listen(parse_ip(host.strip("[]")), int(port)) if text else None


def reads(parse: Callable[[str], Any], text: str) -> bool:
    """Whether a text can be parsed."""
    try:
        parse(text)
    except ValueError:
        return False
    return True
