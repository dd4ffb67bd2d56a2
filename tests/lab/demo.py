"""Show what ipvsproxy does: two nodes, pods and an outside client, and real requests to examples/.

Every row of the tables below is one way into one Service, asked several times at once. It says which endpoints
must answer and which source they must see; the printed tables say which did. The second one is of two tenants: who
is refused, and whose DNS answers. The exit code is 1 when anything differs. Run it with `make demo`, which finds a
kernel with IPVS for it.
"""

from __future__ import annotations

import contextlib
import itertools
import pathlib
import sys
import time
from collections.abc import Iterable, Sequence

from ipvsproxy.base import messages
from tests.lab.cases import OWN, TIMES, Case, CaseRow, addresses_of, ask_everything
from tests.lab.lab import DEFAULT_PROXY_ARGS, Lab, LabHost
from tests.lab.proxy import LabProxy

EXAMPLES = pathlib.Path(__file__).resolve().parents[2] / "examples"
SERVED = (("tcp", 8080), ("tcp", 2525), ("tcp", 8443), ("tcp", 9000), ("tcp", 5353), ("udp", 5353))


CASES = (
    Case("p12", "ClusterIP", "10.96.0.10", 80, "p11 p21", OWN),
    Case("node1", "ClusterIP", "10.96.0.10", 80, "p11 p21", "node1"),
    Case("client", "ClusterIP", "10.96.0.10", 80, "p11 p21", "node1"),
    Case("node1", "ClusterIP", "10.96.0.53", 53, "p12 p21", "node1", "udp"),
    Case("node1", "ClusterIP", "10.96.0.53", 53, "p12 p21", "node1"),
    Case("node2", "ClusterIP", "10.96.0.53", 53, "p12 p21", "node2", "udp"),
    Case("p12", "ClusterIP IPv6", "fd00:10:96::60", 8000, "p11 p22", OWN),
    Case("node1", "ClusterIP IPv6", "fd00:10:96::60", 8000, "p11 p22", "node1"),
    Case("client", "NodePort", "192.0.2.1", 30080, "p11 p21", "node1"),
    Case("client", "NodePort", "192.0.2.2", 30080, "p11 p21", "node2"),
    Case("p12", "NodePort", "192.0.2.1", 30080, "p11 p21", "node1"),
    Case("node1", "NodePort", "192.0.2.1", 30080, "p11 p21", "node1"),
    Case("client", "LoadBalancer", "203.0.113.10", 80, "p12 p22", "node1"),
    Case("client", "LoadBalancer", "203.0.113.10", 80, "p12 p22", "node2", via="node2"),
    Case("client", "LoadBalancer IPv6", "2001:db8:113::10", 80, "p12 p22", "node1"),
    Case("p11", "LoadBalancer", "203.0.113.10", 80, "p12 p22", "node1"),
    Case("node1", "LoadBalancer", "203.0.113.10", 80, "p12 p22", "node1"),
    Case("client", "external IP", "198.51.100.10", 25, "p11 p22", "node1"),
    Case("p12", "external IP", "198.51.100.10", 25, "p11 p22", "node1"),
    Case("client", "Local LoadBalancer", "203.0.113.20", 443, "p21 p22", OWN, via="node2"),
    Case("client", "Local LoadBalancer", "203.0.113.20", 443),
    Case("p11", "Local LoadBalancer", "203.0.113.20", 443, "p21 p22", OWN),
    Case("node1", "Local LoadBalancer", "203.0.113.20", 443, "p21 p22", "node1"),
    Case("client", "Local NodePort", "192.0.2.1", 30083, "p11", OWN),
    Case("client", "Local NodePort", "192.0.2.2", 30083, "p21", OWN),
    Case("p12", "Local NodePort", "192.0.2.1", 30083, "p11 p21", OWN),
    Case("client", "ExternalName", "198.51.100.66", 80),
)


TENANTS = (
    Case("p11", "own Service shop", "10.96.0.70", 80, "p21", OWN),
    Case("p12", "own Service shop", "10.96.0.71", 80, "p22", OWN),
    Case("p11", "that of green", "10.96.0.71", 80, outcome="refused"),
    Case("p12", "that of blue", "10.96.0.70", 80, outcome="refused"),
    Case("p12", "NodePort of blue", "192.0.2.1", 30090, outcome="refused"),
    Case("client", "NodePort of blue", "192.0.2.1", 30090, "p21", "node1"),
    Case("p11", "cluster's DNS", "10.96.0.53", 53, "p21", OWN, "udp"),
    Case("p11", "cluster's DNS", "10.96.0.53", 53, "p21", OWN),
    Case("p12", "cluster's DNS", "10.96.0.53", 53, "p22", OWN, "udp"),
    Case("p12", "cluster's DNS", "10.96.0.53", 53, "p22", OWN),
    Case("p11", "DNS of green", "10.96.0.73", 53, outcome="refused"),
)
TENANTS_TEXT = """
Two tenants: p11 and p21 are pods of blue, p12 and p22 of green. Each has a Service "shop", and the other one is
refused there. Who is no pod is not judged. Each has a DNS of its own, p21 and p22: it answers pods of its tenant
that ask the DNS of the cluster.
"""
PROXY_ARGS = (*DEFAULT_PROXY_ARGS, "--tenant-label=ipvsproxy.io/tenant", "--cluster-dns=default/dns")


def through_node(lab: Lab, case: Case) -> str:
    """Name the node whose proxy decides: the one that is addressed, or the first on the path."""
    addressed = [node.name for node in lab.nodes if case.address in addresses_of(lab, node.name)]
    return (addressed or [case.via])[0] if case.asker == "client" else "own node"


def show(lab: Lab, rows: list[CaseRow], cases: Sequence[Case]) -> None:
    """Print the aligned table of some cases, in their order."""
    head = ("who", "way in", "address", "through", "answered by", "source seen", "")
    table = [head]
    for row in sorted((row for row in rows if row.case in cases), key=lambda row: cases.index(row.case)):
        case = row.case
        through = through_node(lab, case)
        verdict = (
            "ok" if row.fine else f"UNEXPECTED, wanted {case.endpoints or case.outcome} from {case.source or '-'}"
        )
        table.append((case.asker, case.kind, case.target, through, row.answered, row.sources or "-", verdict))
    widths = [max(map(len, column)) for column in zip(*table, strict=True)]
    for line in table:
        print("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def start_proxies(lab: Lab) -> list[LabProxy]:
    """Start one on each node, both at once, and wait until both have done their first sync."""
    proxies = [lab.proxy(node, EXAMPLES, PROXY_ARGS, wait=False) for node in lab.nodes]
    for proxy in proxies:
        proxy.wait_for(messages.SYNCED)
    return proxies


def serve(lab: Lab, pods: Iterable[LabHost]) -> None:
    for pod, (proto, port) in itertools.product(pods, SERVED):
        lab.responder.listen(pod, port, proto)


def timed(what: str, began: float) -> float:
    now = time.monotonic()
    print(f"{what}: {now - began:.1f} s", flush=True)
    return now


def main() -> int:
    began = time.monotonic()
    with Lab() as lab, contextlib.ExitStack() as cleanup:
        serve(lab, lab.pods)
        began = timed("lab built", began)
        proxies = start_proxies(lab)
        cleanup.callback(lambda: [proxy.stop() for proxy in proxies if proxy.is_running()])
        began = timed("two ipvsproxy started and synced", began)
        rows = ask_everything(lab, (*CASES, *TENANTS))
        timed(f"{len(rows) * TIMES} requests", began)
        print()
        show(lab, rows, CASES)
        print(TENANTS_TEXT)
        show(lab, rows, TENANTS)
        bad = [row for row in rows if not row.fine]
        print(f"\n{len(rows) - len(bad)} of {len(rows)} as expected")
        for proxy in proxies if bad else []:
            print(f"\n--- the end of {proxy.log.name}\n{proxy.text()[-3000:]}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
