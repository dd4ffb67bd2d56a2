"""Ways to read the lists of the API server, for comparison."""

import json
import os
import pathlib
import time

from ipvsproxy.exchange.inbox import Kind
from tests.bench.machine import objects


def measure(way, services, slices):
    """Return (seconds, MiB held) of reading both lists, in a forked process."""
    reading, writing = os.pipe()
    if not os.fork():
        before, began = resident_mib(), time.perf_counter()
        kept = way(services, slices)
        seconds = time.perf_counter() - began
        os.write(writing, json.dumps((seconds, resident_mib() - before)).encode())
        os._exit(0 if kept else 1)
    os.close(writing)
    with os.fdopen(reading) as answer:
        result = json.load(answer)
    os.wait()
    return result


def resident_mib():
    pages = int(pathlib.Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 2**20


def values(services, slices):
    """What the proxy does."""
    return objects(Kind.SERVICE, services), objects(Kind.ENDPOINT_SLICE, slices)


def dictionaries(services, slices):
    """The standard library, everything kept as it comes."""
    return json.loads(services), json.loads(slices)


def models(services, slices):
    """The classes of the kubernetes package."""
    from kubernetes.client import ApiClient

    read = ApiClient().deserialize
    kind = "application/json"
    return (
        read(services.decode(), "V1ServiceList", kind),
        read(slices.decode(), "V1EndpointSliceList", kind),
    )
