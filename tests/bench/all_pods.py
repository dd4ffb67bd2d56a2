"""What it costs to know all pods of a cluster (tenantPods: all): bytes, CPU, and memory of one proxy.

    python -m tests.bench.all_pods --pods 150000 --nodes 5000

Pods are made as a Deployment and a kubelet write them, and go through the reflector and the store as from the
API server, page by page; only the connection is missing. Prints one JSON object: what one list is, what one change
of a pod is, and for comparison what the same pods are as metadata and as rows of a Table, neither of which has all
addresses.
"""

import argparse
import gzip
import json
import pathlib
import re
import resource
import sys
import time

from ipvsproxy.exchange.inbox import Inbox, Kind
from ipvsproxy.kube.api import PAGE_SIZE
from ipvsproxy.kube.pace import Pace
from ipvsproxy.kube.reflector import Reflector
from ipvsproxy.kube.store import Store

LABEL = "ipvsproxy.io/tenant"
CHANGES = 2_000
NAMESPACES = 500
# Names in angle brackets stand for what differs from pod to pod.
POD = re.sub(r"<(\w+)(:\w+)?>", r"{\1\2}", json.dumps(
    json.loads((pathlib.Path(__file__).parent / "pod.json").read_text()), separators=(",", ":")
).replace("{", "{{").replace("}", "}}"))  # fmt: skip


def pod(number, nodes, version="10"):
    """Return the JSON of a pod as the API server sends it: one container, and all that stands beside it."""
    high, low = divmod(number, 1 << 16)
    return POD.format(
        number=number, version=version, namespace=number % NAMESPACES, node=number % nodes,
        ipv4=f"10.{64 + high}.{low >> 8}.{low & 255}", ipv6=f"fd00:10:64::{high:x}:{low:x}",
    )  # fmt: skip


class PodsReply:
    status, headers = 200, {}

    def __init__(self, *parts):
        self._parts = parts

    def read(self, _most=0):
        return b"".join(self._parts)

    def chunks(self):
        yield from self._parts

    def interrupt(self):
        pass

    def close(self):
        pass


class PodsServer:
    """Pages of so many pods, then one watch with changes of some of them."""

    def __init__(self, pods, nodes):
        self.pods, self.nodes, self.bytes, self.packed, self.pages, self.making = pods, nodes, 0, 0, 0, 0.0

    def list(self, _kind, limit, continue_, _version):
        began, first = time.process_time(), int(continue_ or 0)
        last = min(first + limit, self.pods)
        items = [pod(number, self.nodes) for number in range(first, last)]
        more = str(last) if last < self.pods else ""
        head = f'{{"kind":"PodList","metadata":{{"resourceVersion":"10","continue":"{more}"}},"items":['
        body = (head + ",".join(items) + "]}").encode()
        self.bytes += len(body)
        self.pages += 1
        self.packed = self.packed or len(gzip.compress(body, 1)) / len(body)
        self.making += time.process_time() - began
        return PodsReply(body)

    def watch(self, _kind, _version, _seconds):
        began = time.process_time()
        found = [changed(pod(number, self.nodes, str(100 + number))) for number in range(min(CHANGES, self.pods))]
        self.making += time.process_time() - began
        return PodsReply(*found)

    def refresh(self):
        pass


def changed(text):
    """Return the line of a watch for a changed pod."""
    return f'{{"type":"MODIFIED","object":{text}}}\n'.encode()


def size(value):
    """Return the bytes of some JSON as the API server writes it."""
    return len(json.dumps(value, separators=(",", ":")))


def resident():
    """Return the resident memory now, in bytes."""
    return int(pathlib.Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()


def measure(pods, nodes):
    """Return all figures for so many pods."""
    server, inbox = PodsServer(pods, nodes), Inbox()
    store = Store("node-00000", tenant_label=LABEL, all_pods=True)
    reflector = Reflector(Kind.POD, server, inbox, Pace(clock=time.process_time))
    before = resident()
    listing = _seconds(server, lambda: (reflector.step(), [store.apply(event) for event in inbox.take(0)]))
    kept = resident() - before
    assert len(store.tenants.pods) == pods
    changes = min(CHANGES, pods)
    one_change = (
        _seconds(server, lambda: (reflector.step(), [store.apply(event) for event in inbox.take(0)])) / changes
    )
    one = json.loads(pod(0, nodes))
    cells = ["shop-frontend", "1/1", "Running", 0, "1d", "10.64.0.1", "node-00001", "<none>", "<none>"]
    return {
        "pods": pods, "nodes": nodes, "pages": server.pages, "page_size": PAGE_SIZE,
        "list_mib": round(server.bytes / 2**20, 1), "list_cpu_seconds": round(listing, 2),
        "list_mib_gzip": round(server.bytes * server.packed / 2**20, 1), "memory_mib": round(kept / 2**20, 1),
        "peak_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10, 1),
        "bytes_of_a_change": len(changed(pod(0, nodes))), "cpu_us_of_a_change": round(one_change * 1e6, 1),
        "bytes_as_metadata": size(one["metadata"]),
        "bytes_as_table_row": size({"cells": cells, "object": {"metadata": one["metadata"]}}),
    }  # fmt: skip


def _seconds(server, work):
    """Return the CPU time of some work without that of making the answers."""
    began, made = time.process_time(), server.making
    work()
    return time.process_time() - began - (server.making - made)


def main(argv):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pods", type=int, default=150_000)
    parser.add_argument("--nodes", type=int, default=5_000)
    chosen = parser.parse_args(argv)
    print(json.dumps(measure(chosen.pods, chosen.nodes)))


if __name__ == "__main__":
    main(sys.argv[1:])
