"""`ipvsproxy dsr-endpoint --vips=…`: prepare the pod that this runs in for direct server return (docs/dsr.md)."""

import errno
import sys

from ipvsproxy.base.address import is_multicast, is_node_address, is_unspecified, parse_ip
from ipvsproxy.commands.command_table import EXIT_OK
from ipvsproxy.commands.invocation import CommandFailed, Invocation, WrongUsage
from ipvsproxy.kernel.direct_endpoint import Unfit, prepare
from ipvsproxy.kernel.wire.netlink import KernelError


def run(invocation: Invocation) -> int:
    """Prepare it, and print what there is."""
    flags = invocation.flags
    vips, addresses = _addresses("--vips", flags["vips"]), _addresses("--addresses", flags["addresses"])
    if not vips:
        raise WrongUsage("--vips: at least one address is needed")
    try:
        lines = prepare(vips, flags["tunnel"], addresses)
    except Unfit as error:
        raise CommandFailed(str(error)) from None
    except KernelError as error:
        needs = "; it takes the capability CAP_NET_ADMIN" if error.errno == errno.EPERM else ""
        raise CommandFailed(f"{error}{needs}") from None
    sys.stdout.write("".join(f"{line}\n" for line in lines))
    return EXIT_OK


def _addresses(flag: str, texts: list[str]) -> list[bytes]:
    """Return addresses, each once. Raises WrongUsage."""
    found = []
    for text in filter(None, map(str.strip, texts)):
        try:
            address = parse_ip(text)
        except ValueError:
            raise WrongUsage(f"{flag}: {text!r} is no address") from None
        if is_unspecified(address) or is_multicast(address) or not is_node_address(address):
            raise WrongUsage(f"{flag}: {text!r} is no address that a host may have for others")
        found.append(address)
    return list(dict.fromkeys(found))
