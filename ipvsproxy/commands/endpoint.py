"""Addresses as operators type them, into values. All raise WrongUsage."""

from ipvsproxy.base.address import parse_ip
from ipvsproxy.base.frontend import PROTOCOL_NAMES, FrontendKey, Protocol
from ipvsproxy.commands.invocation import WrongUsage


def frontend(text: str) -> FrontendKey:
    """Read ADDRESS:PORT[/PROTOCOL], an IPv6 address in brackets; the protocol is TCP by default."""
    endpoint, _, name = text.partition("/")
    host, colon, port = endpoint.rpartition(":")
    if not colon or not host or (":" in host and not host.startswith("[")):
        raise WrongUsage(f"{text!r} is not ADDRESS:PORT[/PROTOCOL], with brackets around an IPv6 address")
    if not (port.isascii() and port.isdecimal() and 0 < int(port) < 65536):
        raise WrongUsage(f"{text!r}: {port!r} is not a port")
    if (name or "tcp").upper() not in Protocol.__members__:
        raise WrongUsage(f"{text!r}: {name!r} is none of {', '.join(PROTOCOL_NAMES.values())}")
    return FrontendKey(
        address(host.removeprefix("[").removesuffix("]")), Protocol[(name or "tcp").upper()], int(port)
    )


def address(text: str) -> bytes:
    """Read an address."""
    try:
        return parse_ip(text)
    except ValueError as error:
        raise WrongUsage(str(error)) from None
