"""Is our nft table still the one we loaded? One netlink request, without libnftables and without listing.

The kernel gives every table a handle that no other table ever gets and counts the chains, sets and maps in it
(NFT_MSG_GETTABLE, include/uapi/linux/netfilter/nf_tables.h). Both together are a stamp: it changes when
someone flushes the ruleset, deletes the table, or takes a chain or set out of it. Which version has loaded a table
stands in its comment.
"""

import errno
import hashlib
from importlib.metadata import version

from ipvsproxy.kernel.wire.netlink import KernelError, Wire, attribute, attributes, message
from ipvsproxy.kernel.wire.nfnetlink import (
    FAMILY_NAMES,
    NETLINK_NETFILTER,
    NFGENMSG,
    NFPROTO_ARP,
    NFPROTO_INET,
    NFPROTO_IPV4,
    NFPROTO_IPV6,
    NFT_MSG_GETGEN,
    NFT_MSG_GETTABLE,
    NFTA_GEN_ID,
    NFTA_TABLE_HANDLE,
    NFTA_TABLE_NAME,
    NFTA_TABLE_USE,
    NFTA_TABLE_USERDATA,
)

FAMILIES = (NFPROTO_INET, NFPROTO_ARP, NFPROTO_IPV4, NFPROTO_IPV6)


def layout(script: str) -> str:
    """Return the comment of a table that holds this script: the same for the same rules only."""
    return f"ipvsproxy v{version('ipvsproxy')}, layout {hashlib.sha256(script.encode()).hexdigest()[:12]}"


def read_comment(user_data: bytes) -> str:
    """Return the comment of a table or rule; user data begin with it: type 0, length, text and a zero."""
    text = user_data[2 : 2 + user_data[1]] if user_data[:1] == b"\0" else b""
    return text.rstrip(b"\0").decode(errors="replace")


class Ruleset:
    """The tables of one name in the families that ours have, seen from outside."""

    def __init__(self, name: str) -> None:
        self._wire = Wire(NETLINK_NETFILTER)
        self._name = name.encode() + b"\0"
        table = attribute(NFTA_TABLE_NAME, self._name)
        self._requests = [message(NFT_MSG_GETTABLE, 0, NFGENMSG.pack(family, 0, 0) + table) for family in FAMILIES]

    def close(self) -> None:
        """Close the socket."""
        self._wire.close()

    def generation(self) -> int:
        """Return the number of the last transaction of this network namespace, 0 when it cannot be read."""
        try:
            reply = self._wire.request(message(NFT_MSG_GETGEN, 0, NFGENMSG.pack(0, 0, 0)))
        except (KernelError, OSError):
            return 0
        return int.from_bytes(dict(attributes(reply, NFGENMSG.size))[NFTA_GEN_ID], "big")

    def tables(self) -> dict[str, str]:
        """Return the comments of the tables of this name in all families, by family. Raises KernelError."""
        found = {}
        for part in self._wire.dump(message(NFT_MSG_GETTABLE, 0, NFGENMSG.pack(0, 0, 0))):
            fields = dict(attributes(part, NFGENMSG.size))
            if fields[NFTA_TABLE_NAME] == self._name and part[0] in FAMILY_NAMES:
                found[FAMILY_NAMES[part[0]]] = read_comment(bytes(fields.get(NFTA_TABLE_USERDATA, b"")))
        return found

    def stamp(self) -> bytes:
        """Return what identifies the tables as they are, empty when there is none. Raises KernelError."""
        return b"".join(map(self._stamp, self._requests))

    def _stamp(self, request: bytes) -> bytes:
        try:
            reply = self._wire.request(request)
        except KernelError as error:
            if error.errno == errno.ENOENT:
                return b""
            raise
        fields = dict(attributes(reply, NFGENMSG.size))
        return bytes(fields[NFTA_TABLE_HANDLE]) + bytes(fields[NFTA_TABLE_USE])
