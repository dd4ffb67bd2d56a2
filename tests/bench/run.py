"""What a cold sync and a change of one endpoint cost, against the floor of the same kernel work.

Runs inside a network namespace of its own, with the real kernel, libnftables and the real loop; only the API
server is missing: objects come as the raw JSON of its lists and watch events. A floor is the kernel's part
alone: the very same netlink messages, encoded beforehand, and the same nft elements in one load. Each result
is one JSON object a line; ratios within one run are what can be compared between machines.

    make bench ARGS="--services 1000 --endpoints 5"
"""

import argparse
import gc
import json
import logging
import resource
import statistics
import sys
import time

import cluster
import msgspec
import structlog
from namespace import fresh_network

from ipvsproxy.config import Config
from ipvsproxy.kernel.forward import Forwarding
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.kernel import TABLE, Kernel
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.netlink import Wire
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kube.decode import decode_json
from ipvsproxy.kube.inbox import Changed, Inbox, Kind, Listed
from ipvsproxy.loop import Loop
from nft import Libnftables

CHANGES = 50


class RawList(msgspec.Struct):
    items: list[msgspec.Raw]


class RecordingIpvs(Ipvs):
    """Remembers the steps it was given, so that they can be replayed as a floor."""

    def __init__(self):
        super().__init__()
        self.steps = []

    def apply(self, steps):
        self.steps += steps
        return super().apply(steps)


class RecordingLinks(Links):
    """Remembers the VIPs it has bound."""

    def __init__(self):
        super().__init__()
        self.bound = []

    def bind(self, vips):
        self.bound += vips
        return super().bind(vips)


class RecordingNft(Libnftables):
    """Remembers the transactions it was given."""

    def __init__(self):
        super().__init__()
        self.transactions = []

    def run(self, transaction):
        self.transactions.append(transaction)
        super().run(transaction)


class Proxy:
    """The real loop on the real kernel, in a fresh namespace."""

    def __init__(self, record=False):
        fresh_network()
        self.ipvs = RecordingIpvs() if record else Ipvs()
        self.links = RecordingLinks() if record else Links()
        self.links.ensure_link()
        self.nft = RecordingNft() if record else Libnftables()
        kernel = Kernel(self.ipvs, self.links, self.nft, Ruleset(TABLE.name), Forwarding(self.nft))
        self.loop = Loop(Config(node_name="node0", cluster_cidrs=("10.128.0.0/9",)), Inbox(), kernel)

    def list(self, services, slices):
        """Take over the raw lists, as a first list and page would."""
        self.loop.turn(
            [
                listed(Kind.NODE, b'{"items": []}'),
                listed(Kind.SERVICE, services),
                listed(Kind.ENDPOINT_SLICE, slices),
            ]
        )

    def change(self, line):
        """Take over one raw object of a watch event."""
        decoded = decode_json(Kind.ENDPOINT_SLICE, line).object
        self.loop.turn([Changed(Kind.ENDPOINT_SLICE, decoded.key, decoded)])


def listed(kind, raw):
    objects = {}
    for item in msgspec.json.decode(raw, type=RawList).items:
        value = decode_json(kind, item).object
        objects[value.key] = value
    return Listed(kind, objects)


def timed(work):
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def replay_ipvs(proxy):
    """Seconds for the recorded IPVS messages alone."""
    fresh_network()
    messages = [proxy.ipvs._message(step) for step in proxy.ipvs.steps]
    wire = Wire(16)
    return timed(lambda: wire.batch(messages))


def replay_vips(proxy):
    fresh_network()
    links = Links()
    links.ensure_link()
    messages = [links._message(vip, add=True) for vip in proxy.links.bound]
    wire = Wire(0)
    return timed(lambda: wire.batch(messages))


def replay_rules(proxy):
    fresh_network()
    client = Libnftables()
    first = proxy.nft.transactions[0]
    return timed(lambda: client.run(first))


def ipvs_programming(lists):
    """Our encoder and its socket work against the same messages encoded beforehand."""
    recorder = Proxy(record=True)
    recorder.list(*lists)
    steps = recorder.ipvs.steps
    floor = replay_ipvs(recorder)
    fresh_network()
    ipvs = Ipvs()
    return {"seconds": timed(lambda: ipvs.apply(steps)), "floor_seconds": floor, "messages": len(steps)}


def cold_sync(lists):
    """From the raw lists to a programmed kernel."""
    recorder = Proxy(record=True)
    recorder.list(*lists)
    floor = replay_ipvs(recorder) + replay_vips(recorder) + replay_rules(recorder)
    del recorder
    gc.collect()
    proxy = Proxy()
    seconds = timed(lambda: proxy.list(*lists))
    writes = len(proxy.loop._ledger.elements) + len(proxy.loop._kernel.shadow.vips)
    return {"seconds": seconds, "floor_seconds": floor, "writes": writes}


def restart(lists):
    """A new process where nothing has changed: no write to IPVS and links, one atomic replace for nft."""
    Proxy().list(*lists)
    ipvs, links = RecordingIpvs(), RecordingLinks()
    links.ensure_link()
    nft = Libnftables()
    kernel = Kernel(ipvs, links, nft, Ruleset(TABLE.name), Forwarding(nft))
    loop = Loop(Config(node_name="node0", cluster_cidrs=("10.128.0.0/9",)), Inbox(), kernel)
    began = time.perf_counter()
    loop.turn(
        [
            listed(Kind.NODE, b'{"items": []}'),
            listed(Kind.SERVICE, lists[0]),
            listed(Kind.ENDPOINT_SLICE, lists[1]),
        ]
    )
    return {"seconds": time.perf_counter() - began, "writes": len(ipvs.steps) + len(links.bound)}


def endpoint_change(lists, services, endpoints):
    """From a raw watch object to the kernel: one endpoint of one Service gets another address."""
    proxy = Proxy(record=True)
    proxy.list(*lists)
    proxy.ipvs.steps.clear()
    proxy.nft.transactions.clear()
    lines = [
        json.dumps(cluster.endpoint_slice(n * services // CHANGES, endpoints, shift=9)).encode()
        for n in range(CHANGES)
    ]
    taken = [timed(lambda line=line: proxy.change(line)) for line in lines]
    steps, transactions = list(proxy.ipvs.steps), list(proxy.nft.transactions)
    floor = _floor_of_changes(lists, steps, transactions)
    return {
        "seconds": statistics.median(taken),
        "p90_seconds": statistics.quantiles(taken, n=10)[-1],
        "floor_seconds": floor,
        "messages": len(steps) / CHANGES,
        "transactions": len(transactions) / CHANGES,
    }


def _floor_of_changes(lists, steps, transactions):
    """Mean seconds of one change's kernel calls alone, with the same tables loaded."""
    proxy = Proxy()
    proxy.list(*lists)
    batches = [[proxy.ipvs._message(step)] for step in steps]
    wire = Wire(16)

    def work():
        for batch in batches:
            wire.batch(batch)
        for transaction in transactions:
            proxy.nft.run(transaction)

    return timed(work) / CHANGES


def report(name, services, endpoints, result):
    result = {"name": name, "services": services, "endpoints": endpoints, **result}
    if result.get("floor_seconds"):
        result["ratio"] = round(result["seconds"] / result["floor_seconds"], 2)
    result["rss_mib"] = round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
    rounded = {k: round(v, 6) if isinstance(v, float) else v for k, v in result.items()}
    print(json.dumps(rounded), flush=True)


def main():
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--services", type=int, default=1000)
    parser.add_argument("--endpoints", type=int, default=5)
    options = parser.parse_args()
    structlog.configure(
        wrapper_class=structlog.make_filtering_bound_logger(logging.WARNING),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
    )
    count, endpoints = options.services, options.endpoints
    lists = (
        cluster.as_list("Service", [cluster.service(n) for n in range(count)]),
        cluster.as_list("EndpointSlice", [cluster.endpoint_slice(n, endpoints) for n in range(count)]),
    )
    report("ipvs_programming", count, endpoints, ipvs_programming(lists))
    report("cold_sync", count, endpoints, cold_sync(lists))
    report("restart_unchanged", count, endpoints, restart(lists))
    report("endpoint_change", count, endpoints, endpoint_change(lists, count, endpoints))


if __name__ == "__main__":
    main()
