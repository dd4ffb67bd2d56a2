"""What may stand in annotations, read into values.

Each function takes what an object holds, which may be anything, and raises ValueError for what is not allowed.
`config.annotations` describes which annotation has which.
"""

import re
import sys
from itertools import pairwise
from typing import Any

from ipvsproxy.base.frontend import Protocol
from ipvsproxy.config import DataPath
from ipvsproxy.config.kinds import NANOSECONDS, BadValue, duration

SCHEDULERS = (
    *("rr", "wrr", "lc", "wlc", "lblc", "lblcr", "dh", "sh", "mh", "sed", "nq", "fo", "ovf", "twos"),
)  # fmt: skip
"""All there are (net/netfilter/ipvs/Kconfig of Linux 6.12)."""
FLAGS = {
    "sh-fallback": ("sh", 1),
    "sh-port": ("sh", 2),
    "mh-fallback": ("mh", 1),
    "mh-port": ("mh", 2),
    "flag-1": ("", 1),
    "flag-2": ("", 2),
    "flag-3": ("", 3),
}
"""By the names that ipvsadm has for them: the scheduler that they are for (empty: any) and the kernel's number."""
ENGINES = ("sip", "none")
"""All there are (net/netfilter/ipvs/Kconfig of Linux 6.12)."""
WITH_POD = "pod"
UNTIL_POD_IS_GONE = -1.0
"""In place of the seconds for which a removed endpoint may keep its connections: as long as its pod is there."""
ONE_FOR_ALL_PORTS = "service"
SCOPES = ("port", ONE_FOR_ALL_PORTS)
"""Of affinity."""
PINGS = ("always", "when-ready", "off")
IPIP, GUE = "ipip", "gue"
FORWARDING = {"masquerade": "", IPIP: IPIP, GUE: GUE, "tunnel": IPIP}
"""Ways from the node to an endpoint, by their names, of which the last is kube-router's: empty, or a tunnel."""
POD = re.compile(r"[a-z0-9][-a-z0-9.]*\*?|\*")
"""The name of a pod, or its beginning."""
MOST_WEIGHT = 65535
"""What ipvsadm takes."""
MOST_ZONE_WEIGHT, MOST_CONNECTIONS, LONGEST_NUMBER = 1000, 1_000_000, 7
TENANT = re.compile(r"[A-Za-z0-9]([-A-Za-z0-9_.]{0,61}[A-Za-z0-9])?")
"""The value of a label."""
EVERY_TENANT, MOST_TENANTS = "*", 64
MOST_PATTERNS = 16
"""Each length of theirs is one more look-up for each endpoint."""
LONGEST_SLOW_START = 3600.0
LAST_PORT, MOST_RANGES, EVERY_PORT = 65535, 16, "*"
RANGE_PROTOCOLS = {"": Protocol.TCP, "/tcp": Protocol.TCP, "/udp": Protocol.UDP, "/sctp": Protocol.SCTP}


def _text(value: Any) -> str:
    if isinstance(value, str):
        return value
    raise ValueError


def seconds(value: Any) -> float:
    """Return seconds."""
    try:
        nanoseconds = duration(_text(value))
    except BadValue as error:
        raise ValueError from error
    if nanoseconds < 0:
        raise ValueError
    return nanoseconds / NANOSECONDS


def drain(value: Any) -> float:
    """Return seconds, 0 without limit, UNTIL_POD_IS_GONE for the life of the pod."""
    return UNTIL_POD_IS_GONE if value == WITH_POD else seconds(value)


def slow_start(value: Any) -> float:
    """Return seconds, 0 for none."""
    found = seconds(value)
    if found > LONGEST_SLOW_START:
        raise ValueError
    return found


def affinity_engine(value: Any) -> str:
    """Return the name of a persistence engine, empty for none."""
    if _text(value) not in ENGINES:
        raise ValueError
    return "" if value == "none" else sys.intern(value)


def affinity_scope(value: Any) -> str:
    """Return one of SCOPES."""
    if _text(value) not in SCOPES:
        raise ValueError
    return sys.intern(value)


def ping(value: Any) -> str:
    """Return one of PINGS."""
    if _text(value) not in PINGS:
        raise ValueError
    return sys.intern(value)


def forwarding(value: Any) -> str:
    """Return the kind of a tunnel, empty for none."""
    if _text(value) not in FORWARDING:
        raise ValueError
    return FORWARDING[value]


def scheduler(value: Any) -> str:
    """Return one of SCHEDULERS."""
    if _text(value) not in SCHEDULERS:
        raise ValueError
    return sys.intern(value)


def data_path(value: Any) -> str:
    """Return a value of DataPath."""
    return DataPath(_text(value)).value


def boolean(value: Any) -> bool:
    """Read "true" or "false"."""
    text = _text(value)
    if text not in ("true", "false"):
        raise ValueError
    return text == "true"


def weights(value: Any) -> tuple[tuple[str, int], ...]:
    """Return the weights of pods; each is named once, and few by the beginning of their names."""
    found: dict[str, int] = {}
    for part in _text(value).split(","):
        name, equals, weight = part.strip().rpartition("=")
        if not (equals and POD.fullmatch(name)) or name in found:
            raise ValueError
        found[sys.intern(name)] = _number(weight, MOST_WEIGHT)
    if sum(name.endswith("*") for name in found) > MOST_PATTERNS:
        raise ValueError
    return tuple(found.items())


def weight(value: Any) -> int:
    """Return a weight."""
    return _number(_text(value), MOST_WEIGHT)


def same_zone_weight(value: Any) -> int:
    """Return a factor, 1 for none."""
    return _number(_text(value), MOST_ZONE_WEIGHT, least=1)


def max_connections(value: Any) -> tuple[int, int]:
    """Return the upper and the lower threshold, 0 and 0 for no limit."""
    upper, slash, lower = _text(value).partition("/")
    if value == "0":
        return 0, 0
    thresholds = _number(upper, MOST_CONNECTIONS), _number(lower, MOST_CONNECTIONS) if slash else 0
    if thresholds[0] == 0 or thresholds[1] > thresholds[0] or (slash and not thresholds[1]):
        raise ValueError
    return thresholds


def scheduler_flags(value: Any) -> tuple[str, ...]:
    """Return names of FLAGS, each once."""
    names = tuple(name.strip() for name in _text(value).split(","))
    if names == ("none",):
        return ()
    if any(name not in FLAGS for name in names):
        raise ValueError
    return tuple(map(sys.intern, dict.fromkeys(names)))


def prefixes(value: Any) -> tuple[int, int]:
    """Return the lengths of prefixes for IPv4 and IPv6, 0 for the whole address."""
    first, comma, second = _text(value).partition(",")
    four, six = _number(first.strip(), 32), _number(second.strip(), 128) if comma else 0
    if not four or (comma and not six):
        raise ValueError
    return four, six


def port_ranges(value: Any) -> tuple[tuple[Protocol, int, int], ...]:
    """Return protocol, first and last port of each range; those of a protocol are in order and do not overlap."""
    found = sorted(_port_range(part.strip()) for part in _text(value).split(","))
    overlaps = any(a[0] == b[0] and a[2] >= b[1] for a, b in pairwise(found))
    if overlaps or len(found) > MOST_RANGES:
        raise ValueError
    return tuple(found)


def _port_range(text: str) -> tuple[Protocol, int, int]:
    ports, slash, name = text.partition("/")
    protocol = RANGE_PROTOCOLS.get(slash + name)
    first, dash, last = ports.partition("-") if ports != EVERY_PORT else ("1", "-", str(LAST_PORT))
    numbers = _number(first, LAST_PORT, 1), _number(last if dash else first, LAST_PORT, 1)
    if protocol is None or numbers[0] > numbers[1]:
        raise ValueError
    return protocol, *numbers


def _number(text: str, most: int, least: int = 0) -> int:
    if not (text.isascii() and text.isdecimal() and len(text) <= LONGEST_NUMBER and least <= int(text) <= most):
        raise ValueError
    return int(text)


def tenants(value: Any) -> tuple[str, ...]:
    """Return names of tenants, or EVERY_TENANT alone."""
    names = tuple(dict.fromkeys(name.strip() for name in _text(value).split(",")))
    if names != (EVERY_TENANT,) and (len(names) > MOST_TENANTS or not all(map(TENANT.fullmatch, names))):
        raise ValueError
    return tuple(map(sys.intern, names))
