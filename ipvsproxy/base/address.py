"""IP addresses and ranges as packed bytes.

An address is 4 or 16 bytes in network order, so its family is its length, it can be a dictionary key as it
is, and it goes into a netlink message without conversion. Text exists only at the edges: API objects come
in through `parse_ip`, nft scripts and logs go out through `format_ip`.

Parsing is as tolerant as Kubernetes is (contract 1.1): leading zeros in IPv4 octets are decimal, and an
IPv4-mapped IPv6 text counts as IPv4.
"""

import socket
from bisect import bisect_right
from collections.abc import Iterable, Sequence
from typing import NamedTuple

MAPPED_PREFIX = bytes(10) + b"\xff\xff"


class Cidr(NamedTuple):
    """A range of addresses: `network` is masked, `prefix` counts bits of its family."""

    network: bytes
    prefix: int

    def __contains__(self, address: object) -> bool:
        if not isinstance(address, bytes) or len(address) != len(self.network):
            return False
        shift = len(address) * 8 - self.prefix
        return int.from_bytes(address) >> shift == int.from_bytes(self.network) >> shift

    def __str__(self) -> str:
        return f"{format_ip(self.network)}/{self.prefix}"


def family(address: bytes) -> int:
    """Return 4 or 6."""
    return 4 if len(address) == 4 else 6


def parse_ip(text: str) -> bytes:
    """Return the packed form of an address.

    Raises ValueError when the text is not an IP address.
    """
    if ":" in text:
        packed = _pton(socket.AF_INET6, text)
        return packed[12:] if packed.startswith(MAPPED_PREFIX) else packed
    try:
        return socket.inet_pton(socket.AF_INET, text)
    except (OSError, ValueError):
        return _pton(socket.AF_INET, _strip_zeros(text), text)


def _strip_zeros(text: str) -> str:
    return ".".join(octet.lstrip("0") or "0" if octet.isdigit() else octet for octet in text.split("."))


def _pton(af: int, text: str, shown: str | None = None) -> bytes:
    try:
        return socket.inet_pton(af, text)
    except (OSError, ValueError):
        raise ValueError(f"{shown or text!r} is not an IP address") from None


def address_family(length: int) -> int:
    """Return the socket family of addresses of so many bytes."""
    return socket.AF_INET if length == 4 else socket.AF_INET6


def format_ip(address: bytes) -> str:
    """Return the canonical text (RFC 5952 for IPv6)."""
    return socket.inet_ntop(address_family(len(address)), address)


def format_endpoint(address: bytes, port: int) -> str:
    """Return `address:port`, with brackets around IPv6."""
    text = format_ip(address)
    return f"{text}:{port}" if len(address) == 4 else f"[{text}]:{port}"


def parse_cidr(text: str) -> Cidr:
    """Return a range, host bits cleared.

    Raises ValueError when the text is not `address/prefix`.
    """
    address, slash, length = text.partition("/")
    packed = parse_ip(address)
    bits = len(packed) * 8
    prefix = int(length) if slash and length.isascii() and length.isdigit() else -1
    if bits == 32 and ":" in address:
        prefix -= 96
    if not 0 <= prefix <= bits:
        raise ValueError(f"{text!r} is not a CIDR")
    shift = bits - prefix
    return Cidr((int.from_bytes(packed) >> shift << shift).to_bytes(bits // 8), prefix)


def is_loopback(address: bytes) -> bool:
    """127.0.0.0/8 or ::1."""
    return address[0] == 127 if len(address) == 4 else address == bytes(15) + b"\x01"


def is_link_local_v6(address: bytes) -> bool:
    """fe80::/10."""
    return len(address) == 16 and address[0] == 0xFE and address[1] & 0xC0 == 0x80


def is_link_local(address: bytes) -> bool:
    """169.254.0.0/16 or fe80::/10."""
    return address[:2] == b"\xa9\xfe" if len(address) == 4 else is_link_local_v6(address)


def is_multicast(address: bytes) -> bool:
    """224.0.0.0/4 and everything above, which is broadcast or reserved, or ff00::/8."""
    return address[0] >= (0xE0 if len(address) == 4 else 0xFF)


def is_unspecified(address: bytes) -> bool:
    """0.0.0.0 or ::."""
    return not any(address)


def is_node_address(address: bytes) -> bool:
    """Tell whether an address found on a link counts as one of the node (contract 4.2, last point)."""
    return not (is_loopback(address) or is_link_local_v6(address))


def disjoint(ranges: Iterable[Cidr]) -> tuple[Cidr, ...]:
    """Return ranges of one family in order of their networks, without those that lie within another one.

    CIDRs either nest or are disjoint, so each has to be compared with the last one kept only: n log n.
    """
    kept: list[Cidr] = []
    for cidr in sorted(ranges):
        if not kept or cidr.network not in kept[-1]:
            kept.append(cidr)
    return tuple(kept)


def is_covered(address: bytes, ranges: Sequence[Cidr]) -> bool:
    """Tell whether an address is in one of the ranges, which are as `disjoint` returns them: log n."""
    place = bisect_right(ranges, Cidr(address, len(address) * 8))
    return place > 0 and address in ranges[place - 1]


class Ranges:
    """A set of addresses of both families, given by ranges; whether one is in it costs log n."""

    def __init__(self, cidrs: Iterable[Cidr] = ()) -> None:
        found = tuple(cidrs)
        self._of = {size: disjoint(cidr for cidr in found if len(cidr.network) == size) for size in (4, 16)}

    def __contains__(self, address: bytes) -> bool:
        return is_covered(address, self._of[len(address)])

    def __bool__(self) -> bool:
        return any(self._of.values())
