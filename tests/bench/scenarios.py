"""What is measured. Each scenario runs in a process of its own and returns the fields of its result."""

import itertools
import json
import pathlib
import resource
import statistics
import time

from ipvsproxy.config import Config
from ipvsproxy.exchange.inbox import Inbox, Kind, Listed
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.process.assembly import make_loop
from tests.bench import alternatives, cluster, floors
from tests.bench.machine import REFERENCE_CALIBRATION, BenchProxy, calibration, objects, timed
from tests.bench.namespace import fresh_network
from tests.support.memory_kernel import MemoryNode

ROUNDS = 6
CHANGES_A_ROUND = 20
BURST = 1000
SMALL = 1000
"""Services of the small node that a big one is compared with."""
VERIFICATIONS = 4
PAGE = 500
GROWTH = 1.2


def ipvs_programming(services, endpoints):
    """Our encoder and sockets against the same messages packed beforehand."""
    recorder = BenchProxy(record=True)
    recorder.list(*cluster.lists(services, endpoints))
    calls = recorder.ipvs.calls
    floor = floors.of_ipvs(calls)
    fresh_network()
    ipvs = Ipvs()
    seconds = timed(lambda: [ipvs.apply(steps) for steps in calls])
    return {"seconds": seconds, "floor_seconds": floor, "messages": messages(calls)}


def cold_sync(services, endpoints):
    """From the raw lists to a programmed kernel, on an empty node."""
    lists = cluster.lists(services, endpoints)
    recorder = BenchProxy(record=True)
    recorder.list(*lists)
    floor = floors.of_ipvs(recorder.ipvs.calls) + floors.of_vips(recorder.links.bound)
    floor += floors.of_rules(recorder.nft.transactions)
    counts = {"messages": messages(recorder.ipvs.calls) + len(recorder.links.bound)}
    del recorder
    proxy = BenchProxy()
    return {"seconds": timed(lambda: proxy.list(*lists)), "floor_seconds": floor, **counts}


def first_answers(services, endpoints):
    """From both lists indexed to API server and DNS answering; the floor is the whole programming time."""
    lists = cluster.lists(services, endpoints)
    proxy = BenchProxy(record=True)
    events = proxy.index(*lists)
    began = time.perf_counter()
    proxy.loop.reconcile(events)
    whole = time.perf_counter() - began
    return {"seconds": proxy.links.first - began, "floor_seconds": whole, "floor": "the whole programming time"}


def restart_unchanged(services, endpoints):
    """A new process where nothing has changed; the floor is a cold sync."""
    lists = cluster.lists(services, endpoints)
    first = BenchProxy()
    cold = timed(lambda: first.list(*lists))
    again = BenchProxy(record=True, fresh=False)
    seconds = timed(lambda: again.list(*lists))
    writes = messages(again.ipvs.calls) + len(again.links.bound)
    return {"seconds": seconds, "floor_seconds": cold, "floor": "a cold sync", "writes": writes}


def endpoint_change(services, endpoints):
    """One endpoint of one Service gets another address, elsewhere in the cluster."""
    return _changes(services, endpoints, local=False)


def local_endpoint_change(services, endpoints):
    """The same for an endpoint on this node, which is an element of the ruleset as well."""
    return _changes(services, endpoints, local=True)


def _changes(services, endpoints, *, local):
    """A big node and a small one, their rounds interleaved, and the floor of the big one."""
    big, small = _Node(services, endpoints, local), _Node(min(SMALL, services), endpoints, local)
    for number in range(ROUNDS):
        for node in (big, small):
            node.round(number)
    floor = big.floor()
    p50, p90 = statistics.median(big.taken), statistics.quantiles(big.taken, n=10)[-1]
    small_p90 = statistics.quantiles(small.taken, n=10)[-1]
    return {
        "seconds": p50,
        "floor_seconds": floor,
        "p90_seconds": p90,
        "p90_ratio_to_small": round(p90 / small_p90, 2),
        "messages": sum(messages(calls) for calls, _ in big.recorded) / len(big.recorded),
        "transactions": sum(len(t) for _, t in big.recorded) / len(big.recorded),
    }


class _Node:
    """A node on which endpoints change."""

    def __init__(self, services, endpoints, local):
        self.lists = cluster.lists(services, endpoints)
        self.endpoints = endpoints
        self.proxy = BenchProxy(record=True)
        self.proxy.list(*self.lists)
        on_this_node = [n for n in range(services) if ((n + endpoints - 1) % cluster.NODES == 0) is local]
        step = max(1, len(on_this_node) // CHANGES_A_ROUND)
        self.numbers = on_this_node[::step][:CHANGES_A_ROUND]
        self.taken, self.recorded = [], []

    def round(self, number):
        for service in self.numbers:
            line = json.dumps(cluster.endpoint_slice(service, self.endpoints, shift=number + 1)).encode()
            self.proxy.forget()
            began = time.perf_counter()
            self.proxy.change(line)
            self.taken.append(time.perf_counter() - began)
            self.recorded.append((list(self.proxy.ipvs.calls), list(self.proxy.nft.transactions)))

    def floor(self):
        """Median seconds of one change's kernel calls alone."""
        changes = floors.Changes(self.lists)
        return statistics.median(changes.seconds(*recorded) for recorded in self.recorded)


def burst(services, endpoints):
    """A thousand changes over a thousand Services, all at once."""
    count = min(BURST, services)
    lists = cluster.lists(services, endpoints)
    proxy = BenchProxy(record=True)
    proxy.list(*lists)
    proxy.forget()
    lines = [json.dumps(cluster.endpoint_slice(n, endpoints, shift=1)).encode() for n in range(count)]
    seconds = timed(lambda: proxy.change(*lines))
    calls, transactions = list(proxy.ipvs.calls), list(proxy.nft.transactions)
    floor = floors.Changes(lists).seconds(calls, transactions)
    return {
        "seconds": seconds,
        "floor_seconds": floor,
        "messages": messages(calls),
        "transactions": len(transactions),
    }


def memory(services, endpoints):
    """What a process holds: after the first lists, at their peak, and for each Service beyond them."""
    before = rss_kib()
    proxy = BenchProxy()
    more = int(services * GROWTH)
    proxy.loop.reconcile(_paged(services, endpoints))
    peak, held = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, rss_kib()
    proxy.loop.reconcile(_paged(more, endpoints))
    growth = (rss_kib() - held) / (more - services)
    return {
        "rss_mib": round(held / 1024),
        "peak_rss_mib": round(peak / 1024),
        "empty_rss_mib": round(before / 1024),
        "growth_kib_per_service": round(growth, 2),
    }


def one_service(services, endpoints):
    """What a process holds when one Service has the endpoints of all, before and after they are others.

    With a kernel in memory, whose tables count as well: a real one takes minutes for so many destinations of one
    virtual server, since it looks through all of them for each.
    """
    before = rss_kib()
    total = services * endpoints
    config = Config(node_name="node0", cluster_cidrs=("10.128.0.0/9",))
    loop = make_loop(config, Inbox(), MemoryNode().kernel(), lambda: 0.0)
    for shift in (0, 1):
        loop.reconcile(_crowd(total, shift))
    return {
        "rss_mib": round(rss_kib() / 1024),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "empty_rss_mib": round(before / 1024),
        "endpoints_of_the_service": total,
    }


def at_the_node_limit(_services, _endpoints):
    """What a process holds when objects ask for more than --node-limit; with a kernel in memory as well.

    Services of 100 ports with 1,000 endpoints each, in ten namespaces: what the API takes in a single slice.
    """
    before = rss_kib()
    config = Config(node_name="node0", cluster_cidrs=("10.128.0.0/9",))
    count = config.node_limit // (cluster.LARGEST_SLICE * cluster.MOST_PORTS)
    pairs = [cluster.wide(number, f"tenant-{number % 10}") for number in range(count)]
    services, slices = (
        objects(kind, cluster.as_list(kind, items))
        for kind, items in zip((Kind.SERVICE, Kind.ENDPOINT_SLICE), zip(*pairs, strict=True), strict=True)
    )
    node = MemoryNode()
    loop = make_loop(config, Inbox(), node.kernel(), lambda: 0.0)
    loop.reconcile([Listed(Kind.NODE, {}), Listed(Kind.SERVICE, services), Listed(Kind.ENDPOINT_SLICE, slices)])
    while loop._wanted.backlog:
        loop.reconcile([])
    return {
        "rss_mib": round(rss_kib() / 1024),
        "peak_rss_mib": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024),
        "empty_rss_mib": round(before / 1024),
        "services_asked_for": count,
        "servers": len(node.ipvs.table),
    }


def _crowd(total, shift):
    """The lists of one Service in slices as large as the API takes them; `shift` moves all addresses."""
    crowd = cluster.crowd(total, shift * total)
    slices = {}
    for piece in crowd:
        slices.update(objects(Kind.ENDPOINT_SLICE, cluster.as_list("EndpointSlice", [piece])))
    services = objects(Kind.SERVICE, cluster.as_list("Service", [cluster.service(0)]))
    return [Listed(Kind.NODE, {}), Listed(Kind.SERVICE, services), Listed(Kind.ENDPOINT_SLICE, slices)]


def _paged(services, endpoints):
    """Both lists as the reflector reads them: page by page, nothing of a page kept but its values."""
    found = {Kind.SERVICE: {}, Kind.ENDPOINT_SLICE: {}}
    for start in range(0, services, PAGE):
        numbers = range(start, min(services, start + PAGE))
        page = cluster.as_list("Service", [cluster.service(n) for n in numbers])
        found[Kind.SERVICE].update(objects(Kind.SERVICE, page))
        page = cluster.as_list("EndpointSlice", [cluster.endpoint_slice(n, endpoints) for n in numbers])
        found[Kind.ENDPOINT_SLICE].update(objects(Kind.ENDPOINT_SLICE, page))
    return [Listed(Kind.NODE, {}), *itertools.starmap(Listed, found.items())]


def idle(services, endpoints):
    """CPU of a node on which nothing happens: verifications and glances at servers, as a share of one core."""
    now = [0.0]
    proxy = BenchProxy(clock=lambda: now[0])
    proxy.list(*cluster.lists(services, endpoints))
    period = proxy.sync_period
    began = time.process_time()
    for _ in range(VERIFICATIONS):
        end = now[0] + period
        while now[0] < end:
            now[0] = min(end, now[0] + proxy.loop.timeout())
            proxy.loop.reconcile([])
    used = (time.process_time() - began) / VERIFICATIONS
    share, slowness = used / period, calibration() / REFERENCE_CALIBRATION
    return {
        "seconds": used,
        "cpu_share": round(share, 5),
        "cpu_share_native": round(share / max(1.0, slowness), 5),
        "slowness": round(slowness, 1),
    }


def decoding(services, endpoints):
    """Both lists from JSON to values: ours against what one might use instead, each in a process of its own.

    `seconds` and `held_mib` are ours; the others are given as multiples of them. The models of the kubernetes
    package are so slow that a part of the list has to do.
    """
    lists = cluster.lists(services, endpoints)
    ours = alternatives.measure(alternatives.values, *lists)
    dictionaries = alternatives.measure(alternatives.dictionaries, *lists)
    part = cluster.lists(max(1, services // 20), endpoints)
    share = services / max(1, services // 20)
    models = [value * share for value in alternatives.measure(alternatives.models, *part)]
    return {
        "seconds": ours[0],
        "held_mib": round(ours[1], 1),
        "dictionaries": [round(a / b, 1) for a, b in zip(dictionaries, ours, strict=True)],
        "kubernetes_models": [round(a / b, 1) for a, b in zip(models, ours, strict=True)],
    }


def messages(calls):
    """Number of netlink messages in recorded IPVS calls."""
    return sum(step.size for steps in calls for step in steps)


def rss_kib():
    """Resident memory of this process."""
    lines = pathlib.Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS"))


SCENARIOS = {
    work.__name__: work
    for work in (
        ipvs_programming,
        cold_sync,
        first_answers,
        restart_unchanged,
        endpoint_change,
        local_endpoint_change,
        burst,
        memory,
        one_service,
        at_the_node_limit,
        idle,
        decoding,
    )
}
MEASURE_MEMORY = {memory, one_service, at_the_node_limit, decoding}
"""Scenarios whose result is memory, or which measure in processes of their own."""
TARGETS = {
    "ipvs_programming": ("ratio", 1.5),
    "cold_sync": ("ratio", 2.5),
    "first_answers": ("ratio", 0.1),
    "restart_unchanged": ("ratio", 1.5),
    "endpoint_change": ("ratio", 3.0),
    "local_endpoint_change": ("ratio", 3.0),
    "burst": ("ratio", 3.0),
    "memory": ("rss_mib", 200),
    "one_service": ("peak_rss_mib", 500),
    "at_the_node_limit": ("peak_rss_mib", 2048),
    "idle": ("cpu_share_native", 0.01),
    "decoding": ("held_mib", 60),
}
"""What each result is held against: a field and the most it should be, at 10,000 Services with 5 endpoints."""
