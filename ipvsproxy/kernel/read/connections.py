"""IPVS's connection table, line by line: /proc/net/ip_vs_conn, which netlink does not offer.

A big node has a million of them, so the reader takes as many as it needs and stops. The file tells no more than
this: whose connection it is, to which frontend, at which endpoint, in which state, and for how long still.
"""

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from ipvsproxy.plan.model import Protocol
from ipvsproxy.plan.state import Destination, FrontendKey

# By thread: a thread may be in another network namespace than its process.
PATH = Path("/proc/thread-self/net/ip_vs_conn")

MOST = 2_000_000
"""Lines of it that are read at most to find single connections: some seconds."""


class Connection(NamedTuple):
    """One connection; `state` in the kernel's words, `expires` in seconds if no further packet comes."""

    client: Destination
    frontend: FrontendKey
    endpoint: Destination
    state: str
    expires: int

    @property
    def is_translated(self) -> bool:
        """Whether an endpoint has it: conntrack also has those that were refused, or went to the node itself."""
        return self.endpoint.address != self.frontend.address


def connections(path: Path = PATH) -> Iterator[Connection]:
    """Yield all connections in the kernel's order. Raises OSError; no file means that there is no IPVS."""
    if not path.exists():
        return
    with path.open() as lines:
        next(lines, None)
        for line in lines:
            found = parse(line)
            if found:
                yield found


class Asker(NamedTuple):
    """Who has sent the first packet of a connection: the protocol by its number, address and port."""

    protocol: int
    client: Destination


def trace(askers: Collection[Asker], path: Path = PATH, most: int = MOST) -> dict[Asker, list[FrontendKey]] | None:
    """Return which frontends of IPVS have had connections of some clients, by one pass through the table.

    None when some client was not found among the first `most` lines, and there are more. Raises OSError.
    """
    found: dict[Asker, list[FrontendKey]] = {asker: [] for asker in askers}
    for number, connection in enumerate(connections(path) if found else ()):
        if number == most:
            return found if all(found.values()) else None
        asker = Asker(connection.frontend.protocol, connection.client)
        if asker in found:
            found[asker].append(connection.frontend)
    return found


def parse(line: str) -> Connection | None:
    """Read one line (ip_vs_conn_seq_show); None for what is no connection of a protocol we know."""
    words = line.split()
    if len(words) < 9 or words[0] not in Protocol.__members__:
        return None
    client, virtual, endpoint = (
        Destination(_address(words[at]), int(words[at + 1], 16)) for at in (1, 3, 5)
    )  # fmt: skip
    frontend = FrontendKey(virtual.address, Protocol[words[0]], virtual.port)
    return Connection(client, frontend, endpoint, words[7], int(words[8]))


def _address(text: str) -> bytes:
    """Read 0A600001, or eight groups of four digits."""
    return bytes.fromhex(text.replace(":", ""))
