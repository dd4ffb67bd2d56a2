"""The pod's side of direct server return: where tunnels end, with the VIPs, in this process's network namespace.

One link for each family takes what comes in a tunnel to the pod's address. The VIPs are its addresses, so that
programs of the pod are reached there and answer from there. It needs CAP_NET_ADMIN, and no right to write
/proc/sys. Done again it changes only what differs, so that VIPs may come and go.
"""

import errno
from collections.abc import Iterable, Mapping, Sequence
from contextlib import closing
from pathlib import Path

from ipvsproxy.base.address import address_family, family, format_ip
from ipvsproxy.base.names import DIRECT_LINKS, GUE_PORT
from ipvsproxy.config.annotation_values import GUE
from ipvsproxy.kernel.wire.netlink import KernelError, Wire, generic_family, message
from ipvsproxy.kernel.wire.rtnetlink import IFADDRMSG, NETLINK_ROUTE, RTM_GETADDR, address_message
from ipvsproxy.kernel.wire.tunnels import (
    ARP_ANNOUNCE,
    ARP_IGNORE,
    RP_FILTER,
    PodLink,
    all_links,
    ipv4_settings,
    list_gue_ports,
    new_gue_port,
    new_tunnel,
    read_address,
    read_gue_port,
    read_link,
    set_up,
)

NETLINK_GENERIC = 16
STRICT = "1"
RP_FILTER_OF_ALL = Path("/proc/sys/net/ipv4/conf/all/rp_filter")
NO_CHECK = {RP_FILTER: 0}
"""Clients are not reached by the link that their packets come by."""
OWN_ADDRESSES_ONLY = {ARP_IGNORE: 1, ARP_ANNOUNCE: 2}
"""The VIP is an address of the node, too: it answers no ARP request that has it as source."""


class Unfit(Exception):
    """What keeps a network namespace from having the pod's side; the text is one line."""


def prepare(vips: Sequence[bytes], tunnel: str, addresses: Sequence[bytes]) -> list[str]:
    """Make tunnels of a kind (`ipip` or `gue`) end here, and return what there is, a line for each link.

    `addresses` are those of the pod, one a family; without them, they are found. Raises Unfit, KernelError.
    """
    with closing(_Namespace()) as here:
        report = []
        for number in sorted(set(map(family, vips))):
            own = next((address for address in addresses or here.addresses() if family(address) == number), b"")
            if not own:
                raise Unfit(f"the pod has no IPv{number} address, as a VIP needs")
            wanted = [vip for vip in vips if family(vip) == number]
            here.end_tunnels(number, own, wanted)
            if tunnel == GUE:
                take_gue(number)
            report.append(f"{DIRECT_LINKS[number]}: {tunnel} to {format_ip(own)}, {_text(wanted)}")
        return report


def _text(vips: Iterable[bytes]) -> str:
    return f"VIPs {', '.join(map(format_ip, vips))}"


class _Namespace:
    """Links and addresses of this network namespace."""

    def __init__(self) -> None:
        self._wire = Wire(NETLINK_ROUTE)

    def close(self) -> None:
        self._wire.close()

    def addresses(self) -> list[bytes]:
        """Return the addresses of its links, first link first, that others can reach."""
        links = self._links()
        others = [link.number for link in links.values() if not _is_own(link) and not link.is_loopback]
        return [address for index in sorted(others) for address in self._addresses_of(index)]

    def end_tunnels(self, number: int, own: bytes, vips: Iterable[bytes]) -> None:
        """Have a link for tunnels to an address, with these VIPs and no others."""
        name = DIRECT_LINKS[number]
        link = self._links().get(name)
        if link is None:
            self._do(f"making the link {name}", new_tunnel(name, number, own))
            link = self._links()[name]
        if link.local != own:
            raise Unfit(f"the link {name} is for tunnels to another address: delete it")
        if number == 4:
            self._allow_ipv4(link.number)
        self._do(f"setting {name} up", set_up(link.number))
        have, wanted = set(self._addresses_of(link.number)), set(vips)
        for vip in sorted(have ^ wanted):
            change = address_message(vip, link.number, 0, add=vip in wanted)
            self._do(f"changing the address {format_ip(vip)} of {name}", change)

    def _allow_ipv4(self, index: int) -> None:
        """Have packets of clients taken at the end of the tunnel, and the VIP unknown at other links."""
        if RP_FILTER_OF_ALL.exists() and RP_FILTER_OF_ALL.read_text().strip() == STRICT:
            raise Unfit(
                "net.ipv4.conf.all.rp_filter is 1 in the pod: the kernel drops what comes out of tunnels."
                " New pods get the value that the node has; it must be 0 or 2"
            )
        self._do("setting rp_filter", ipv4_settings(index, NO_CHECK))
        for link in self._links().values():
            if not _is_own(link) and not link.is_loopback:
                self._do(f"setting arp_ignore of {link.name}", ipv4_settings(link.number, OWN_ADDRESSES_ONLY))

    def _links(self) -> Mapping[str, PodLink]:
        return {link.name: link for link in map(read_link, self._wire.dump(all_links()))}

    def _addresses_of(self, wanted: int) -> list[bytes]:
        request = message(RTM_GETADDR, 0, IFADDRMSG.pack(0, 0, 0, 0, 0))
        found = map(read_address, self._wire.dump(request))
        return [address for index, address, is_global in found if index == wanted and is_global]

    def _do(self, what: str, request: bytes) -> None:
        failure = self._wire.batch([request]).get(0, 0)
        if failure:
            raise KernelError(what, failure)


def _is_own(link: PodLink) -> bool:
    return link.name in DIRECT_LINKS.values()


def take_gue(number: int) -> None:
    """Have the kernel take GUE of a family; it may already do so. Raises Unfit, KernelError."""
    length = 4 if number == 4 else 16
    kind = generic_family("fou")
    with closing(Wire(NETLINK_GENERIC)) as wire:
        failure = wire.batch([new_gue_port(kind, GUE_PORT, length)]).get(0, 0)
        if failure not in (0, errno.EADDRINUSE, errno.EALREADY):
            raise KernelError(f"taking GUE at UDP port {GUE_PORT}", failure)
        taken = set(map(read_gue_port, wire.dump(list_gue_ports(kind))))
    if (address_family(length), GUE_PORT) not in taken:
        raise Unfit(f"a program of the pod has UDP port {GUE_PORT}, where GUE comes in")
