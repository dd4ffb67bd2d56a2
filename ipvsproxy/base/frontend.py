"""What a frontend is called: the address, protocol and port on which one port of a Service answers.

A frozen Struct: made and hashed several times faster than a named tuple, and a node has up to hundreds of
thousands of them.
"""

from enum import IntEnum

import msgspec

from ipvsproxy.base.address import format_endpoint


class Protocol(IntEnum):
    """Transport protocols of a Service port, by their IP protocol number."""

    TCP = 6
    UDP = 17
    SCTP = 132


PROTOCOL_NAMES = {protocol.value: protocol.name.lower() for protocol in Protocol}
"""As nft and other tools write them."""


class FrontendKey(msgspec.Struct, frozen=True, order=True, gc=False):
    """Where a Service port answers; `address` is packed, `protocol` an IP protocol number."""

    address: bytes
    protocol: int
    port: int

    def __str__(self) -> str:
        return f"{format_endpoint(self.address, self.port)}/{Protocol(self.protocol).name}"


EVERY_PORT = 0
"""The port of a virtual server for all ports of an address that have no server of their own."""


FTP_PORT, FTP_DATA_PORT, FIRST_DATA_PORT = 21, 20, 1024
"""IPVS takes ports like these for data connections of an FTP server at the same address (__ip_vs_service_find)."""


def every_port(key: FrontendKey) -> FrontendKey:
    """Return the frontend for all ports of an address that have none of their own."""
    return FrontendKey(key.address, key.protocol, EVERY_PORT)
