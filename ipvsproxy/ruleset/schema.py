"""The sets and maps of our nftables tables: name, key, value, and whose elements they hold, each of them once.

The scripts in nft/rulesets declare the same sets for the kernel; a test compares both. Fields are in packet order.
A key begins with the fields that name its owner.
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Literal, NamedTuple

SOURCE_RANGES, VIEW_INVALID, BY_SOURCE = "source_ranges", "view_invalid", "by_source"
SHORT_PATH, SHORT_LOCAL, PING = "short_path", "short_path_local", "ping"
RANGES_OF_PORTS, DIRECT_RETURN, LONG_DATAGRAMS = "port_ranges", "direct_return", "long_datagrams"
"""Parts of the ruleset that the elements of some sets need."""
RANGES_BY_IPVS = "source_ranges_ipvs"
"""The part that frontends with source ranges need which IPVS serves, or whose connections it goes on with."""
MOST_ENDPOINTS = 64
"""Of a frontend on the short path, whose parts have a chain for each number of endpoints."""


class NumberForm(NamedTuple):
    """How the kernel and nft have a number: its byte order, how many times as large, and as which text."""

    order: Literal["big", "little"] = "big"
    unit: int = 1
    text: str = "{}"


OF_PACKETS = NumberForm()
OF_HOST = NumberForm(sys.byteorder)
"""Numbers that are in no packet are in the order of the host."""
OF_GROUPS = NumberForm(sys.byteorder, unit=16, text="0:{:x}")
"""Groups of sources: as values of `meta priority` (see nft/rulesets/by_source.nft)."""


class FieldType(NamedTuple):
    """The bytes of a field, before it is filled up in a key of several, and what `typeof` in nft means it.

    `number` is None for fields that are no numbers.
    """

    size: int
    typeof: tuple[str, ...]
    number: NumberForm | None = None


class Field(Enum):
    """What one field of a key or value is."""

    IP4 = FieldType(4, ("ip saddr", "ip daddr", "arp saddr ip", "arp daddr ip"))
    IP6 = FieldType(16, ("ip6 saddr", "ip6 daddr"))
    PROTOCOL = FieldType(1, ("meta l4proto", "ip protocol", "ip6 nexthdr"), OF_PACKETS)
    PORT = FieldType(2, ("th dport", "th sport"), OF_PACKETS)
    NUMBER = FieldType(4, ("numgen random mod 64",), OF_HOST)
    LINK = FieldType(16, ("iifname", "oifname"))
    AUDIENCE = FieldType(4, ("meta priority",), OF_GROUPS)
    VERDICT = FieldType(0, ("verdict",))


LOCAL = 0
"""The audience of local pods and the node. Others are groups of source addresses, whose numbers AUDIENCES has."""
UNKNOWN_GROUP = 0
"""Local pods that are in no group."""
SHARED_GROUP = 1
"""The group of sources that may connect to everything; nft/rulesets/by_source.nft names it."""
LARGEST_GROUP = 4095
"""Times 16 it is the largest `meta priority` that no queueing discipline takes for one of its classes."""


class OwnerKind(IntEnum):
    """Whose the elements of a set are, by the number of key fields that name the owner."""

    NODE = 0
    ADDRESS = 1
    FRONTEND = 3


@dataclass(frozen=True, eq=False, repr=False)
class SetSchema:
    """A set, or a map if it has a `value`. There is one object for each, which is equal only to itself.

    `family` is 4, 6, or 0 where the elements are of no single one. `table` is the family of the table it is in.
    `part` is the part of the ruleset that its elements need, empty for the script that is always there. `counts`
    is whether the kernel counts the packets that have matched an element. With `port_interval` the port of a key
    is an interval, else the last field is one if there is any.
    """

    name: str
    owner: OwnerKind
    key: tuple[Field, ...]
    value: tuple[Field, ...] = ()
    family: int = 0
    interval: bool = False
    table: str = "inet"
    part: str = ""
    counts: bool = False
    port_interval: bool = False

    def __repr__(self) -> str:
        return self.name

    @property
    def is_concatenated(self) -> bool:
        """Whether the key has several fields, each of them filled up to four bytes."""
        return len(self.key) > 1

    @property
    def is_packed(self) -> bool:
        """Whether an element has bytes of its own: an interval of one field is two elements, and may meet more."""
        return self.is_concatenated or not self.interval


ByFamily = Mapping[int, SetSchema]
IP = {4: Field.IP4, 6: Field.IP6}


def _addresses(name: str, *, twice: bool = False, interval: bool = False, part: str = "") -> ByFamily:
    found = {}
    for number, ip in IP.items():
        key = (ip, ip) if twice else (ip,)
        found[number] = SetSchema(
            f"{name}{number}", OwnerKind.ADDRESS, key, family=number, interval=interval, part=part
        )
    return found


def _frontends(  # noqa: PLR0913 - what there is beside the frontend
    name: str,
    *,
    verdict: bool = False,
    redirect: bool = False,
    source: bool = False,
    group: bool = False,
    number: bool = False,
    ports: bool = False,
    part: str = "",
) -> ByFamily:
    found = {}
    for version, ip in IP.items():
        rest = (ip,) if source else (Field.AUDIENCE,) if group else (Field.NUMBER,) if number else ()
        key = (ip, Field.PROTOCOL, Field.PORT, *rest)
        value = (Field.VERDICT,) if verdict else (ip, Field.PORT) if redirect else ()
        name_of_set = f"{name}{version}"
        found[version] = SetSchema(
            name_of_set, OwnerKind.FRONTEND, key, value, family=version, interval=source or ports, part=part,
            port_interval=ports,
        )  # fmt: skip
    return found


POD_CIDRS: ByFamily = {
    number: SetSchema(f"pod_cidrs{number}", OwnerKind.NODE, (ip,), family=number, interval=True)
    for number, ip in IP.items()
}
"""Source ranges of local pods; their links are in POD_INTERFACES."""
POD_INTERFACES = SetSchema("pod_interfaces", OwnerKind.NODE, (Field.LINK,), interval=True)
VIPS = _addresses("vips")
SERVED = _addresses("served")
"""All addresses that have frontends."""
DATAGRAMS = SetSchema("datagrams4", OwnerKind.ADDRESS, (Field.IP4,), family=4, part=LONG_DATAGRAMS)
"""All IPv4 addresses that have UDP frontends by IPVS."""
HAIRPIN = _addresses("hairpin", twice=True)
"""Endpoints of this node, each with itself."""
FRONTENDS = _frontends("frontends", verdict=True)
MASQUERADE = _frontends("masquerade", verdict=True)
INTERNAL_VIEWS = _frontends("internal_views", redirect=True)
"""From a frontend to the virtual server of its view for the audience LOCAL."""
VIEWED = _addresses("viewed")
"""All addresses that have frontends with a view for the audience LOCAL, on either path."""
AUDIENCES: ByFamily = {
    number: SetSchema(
        f"audiences{number}", OwnerKind.ADDRESS, (ip,), (Field.AUDIENCE,), family=number, part=BY_SOURCE
    )
    for number, ip in IP.items()
}
"""The groups of source addresses, by number."""
BY_AUDIENCE = _frontends("by_audience", verdict=True, part=BY_SOURCE)
"""Frontends at which the group of the source matters."""
RESTRICTED = _frontends("restricted", part=BY_SOURCE)
"""Frontends to which only some groups of local pods may connect; which groups is in ADMITTED."""
ADMITTED = _frontends("admitted", group=True, part=BY_SOURCE)
REFUSALS = SetSchema("refusals", OwnerKind.NODE, (Field.AUDIENCE,), part=BY_SOURCE, counts=True)
"""Groups of sources, with a count of their refused connections; UNKNOWN_GROUP is that of unknown pods."""
GROUP_VIEWS = _frontends("group_views", redirect=True, group=True, part=BY_SOURCE)
"""From a frontend and a group to the virtual server of its view for that group."""
PORT_RANGES = _frontends("port_ranges", verdict=True, ports=True)
RANGE_MASQUERADE = _frontends("range_masquerade", verdict=True, ports=True, part=RANGES_OF_PORTS)
"""Ranges of ports of VIPs, as FRONTENDS and MASQUERADE have single ones."""
VIEW_FRONTENDS = _frontends("view_frontends", part=VIEW_INVALID)
"""Frontends with views, and those to whose virtual servers these lead."""
ENDPOINTS = _frontends("endpoints", redirect=True, number=True, part=SHORT_PATH)
"""Endpoints of frontends on the short path, each with its number from 0 on."""
SHORT_VIEWS = _frontends("short_views", verdict=True, part=SHORT_LOCAL)
"""The view for the audience LOCAL of frontends on the short path: to one of the INTERNAL_ENDPOINTS."""
INTERNAL_ENDPOINTS = _frontends("internal_endpoints", redirect=True, number=True, part=SHORT_LOCAL)
"""Endpoints of such views, each with its number from 0 on."""
SHORT_FRONTENDS = _frontends("short_frontends", part=SHORT_PATH)
SHORT_ENDPOINTS = _frontends("short_endpoints", part=SHORT_PATH)
"""Frontends on the short path, and all their endpoints: from and to these, conntrack must know a packet."""
RANGED = _frontends("ranged", part=SOURCE_RANGES)
"""Frontends with source ranges; who may connect to them is in ALLOWED."""
RANGED_VIPS = _addresses("ranged_vips", part=SOURCE_RANGES)
"""All addresses that have such frontends."""
ALLOWED = _frontends("allowed", source=True, part=SOURCE_RANGES)
PING_OFF = _addresses("ping_off", part=PING)
PING_WHEN_READY = _addresses("ping_when_ready", part=PING)
"""VIPs that answer pings only if they are in PING_READY."""
PING_READY = _addresses("ping_ready", part=PING)
PING_RANGED = _addresses("ping_ranged", part=PING)
"""VIPs that answer pings of some sources, which are in PING_ALLOWED."""
PING_ALLOWED = _addresses("ping_allowed", twice=True, interval=True, part=PING)
PACKET_TABLES = {4: "ip", 6: "ip6"}
"""Tables of one family: nftables duplicates no packets in `inet`."""
DIRECT: ByFamily = {
    number: SetSchema(
        f"direct{number}", OwnerKind.FRONTEND, (ip, Field.PROTOCOL, Field.PORT), family=number,
        table=PACKET_TABLES[number], part=DIRECT_RETURN,
    )
    for number, ip in IP.items()
}  # fmt: skip
"""Frontends whose endpoints answer clients themselves, with the frontend as source."""
HEALTH_CHECK_PORTS = SetSchema("health_check_ports", OwnerKind.NODE, (Field.PORT,))
QUIET = SetSchema("quiet4", OwnerKind.ADDRESS, (Field.IP4,), family=4, table="arp")
"""VIPs that no ARP is answered for, on the links in LINKS, which ask with the addresses in SENDERS."""
LINKS = SetSchema("links", OwnerKind.NODE, (Field.LINK,), table="arp")
SENDERS = SetSchema("senders4", OwnerKind.NODE, (Field.LINK,), (Field.IP4,), family=4, table="arp")


def _all() -> Iterator[SetSchema]:
    addresses = (VIPS, SERVED, VIEWED, RANGED_VIPS, HAIRPIN)
    frontends = (FRONTENDS, MASQUERADE, ENDPOINTS, SHORT_FRONTENDS, SHORT_ENDPOINTS, RANGED, ALLOWED)
    short_views = (SHORT_VIEWS, INTERNAL_ENDPOINTS)
    groups = (AUDIENCES, BY_AUDIENCE, RESTRICTED, ADMITTED, GROUP_VIEWS)
    views = (*short_views, INTERNAL_VIEWS, *groups, VIEW_FRONTENDS)
    pings = (PING_OFF, PING_WHEN_READY, PING_READY, PING_RANGED, PING_ALLOWED)
    ranges = (PORT_RANGES, RANGE_MASQUERADE)
    for both in (POD_CIDRS, *addresses, *frontends, *views, *pings, *ranges, DIRECT):
        yield from both.values()
    yield from (DATAGRAMS, POD_INTERFACES, REFUSALS, HEALTH_CHECK_PORTS, QUIET, LINKS, SENDERS)


SETS: Mapping[str, SetSchema] = {found.name: found for found in _all()}
"""Every set and map, by its name."""
