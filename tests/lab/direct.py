"""Pods that are prepared for direct server return, as their init container does it."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterable, Mapping

from tests.lab.lab import Lab

LINKS = ("ipvsproxy4", "ipvsproxy6")


def prepare(lab: Lab, pod: str, vips: Iterable[tuple[str, str]], tunnel: str, numbers: Mapping[str, int]) -> None:
    """Give a pod its VIPs, each an IPv4 and an IPv6 address, and have it answer there at ports by protocol."""
    host, pairs = lab.host(pod), list(vips)
    texts = ",".join(address for pair in pairs for address in pair)
    argv = [sys.executable, "-m", "ipvsproxy", "dsr-endpoint", f"--vips={texts}", f"--tunnel={tunnel}"]
    for _ in range(2):  # an init container may run again
        report = lab.run(host, argv)
        assert all(link in report for link in LINKS)
    for address4, address6 in (*pairs, (host.ipv4, host.ipv6)):
        at = dataclasses.replace(host, ipv4=address4, ipv6=address6)
        for proto, number in numbers.items():
            lab.responder.listen(at, number, proto)


def take_back(lab: Lab, pod: str) -> None:
    """Take the links away again."""
    for link in LINKS:
        lab.run(lab.host(pod), ["ip", "link", "del", link])
