"""Which address masquerading gives a packet: not that of the route, but one of the link it leaves by."""

from collections.abc import Sequence
from typing import NamedTuple

from ipvsproxy.base.address import Cidr


class Own(NamedTuple):
    """An IPv4 address of this node that can be a source (primary, of global scope), on the link of this number."""

    link: int
    address: bytes
    prefix: int

    def is_near(self, address: bytes) -> bool:
        """Whether an address is in the subnet of this one."""
        return address in Cidr(self.address, self.prefix)


def masquerade_source(own: Sequence[Own], link: int, towards: bytes) -> bytes | None:
    """Return the source that a packet to a next hop gets; `own` in the kernel's order.

    The first address of the link whose subnet has the next hop, or else its first one; a link without addresses
    takes the first one of any link (inet_select_addr, net/ipv4/devinet.c).
    """
    on_link = [one for one in own if one.link == link]
    near = (one.address for one in on_link if one.is_near(towards))
    return next(near, next((one.address for one in [*on_link, *own]), None))
