"""UDP datagrams, and messages of SCTP, of sizes below and above the MTU of the lab's links."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from tests.lab import netns
from tests.lab.waiting import Patience, receive

SIZES = (1400, 1472, 1473, 4000, 9000, 60000)
"""1472 is what fits into 1500 with the headers of IPv4 and UDP."""


def unanswered(
    where: str, to: tuple[str, int], *, connected: bool, proto: str = "udp", sizes: Sequence[int] = SIZES
) -> Iterator[str]:
    """Send three datagrams of each size, each from a port of its own, and tell of those not answered."""
    for size in sizes:
        with netns.open_socket(where, to[0], proto) as asking:
            asking.settimeout(2)
            if connected:
                asking.connect(to)
            for _ in range(3):
                try:
                    _ = asking.send(bytes(size)) if connected else asking.sendto(bytes(size), to)
                    receive(asking, Patience(2))
                except OSError as error:
                    yield f"{size}: {error}"
