"""What Python costs for a start and for changes, in instructions: `python -m tests.bench.instructions`.

Other work on the machine does not disturb the counts (valgrind's cachegrind). The kernel is in memory, but
messages for IPVS and nftables, and texts for libnftables, are made as for the real one. Each figure is the
difference of two runs that differ only in how often they do it, so what a process needs to begin is in none.
Objects are decoded from JSON; making that JSON is not counted.
"""

import argparse
import json
import logging
import os
import re
import subprocess
import sys

import structlog

from ipvsproxy.base import garbage_collection
from ipvsproxy.config import Config, DataPath
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed
from ipvsproxy.kernel.element_changes import KernelNft
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kube.decode import decode_json
from ipvsproxy.process.assembly import make_loop
from tests.bench import cluster
from tests.bench.machine import objects
from tests.support.memory_kernel import MemoryNft, MemoryNode

ENDPOINTS = 5
ROUNDS = {"cold_sync": (0, 1), "burst": (1, 3), "endpoint_change": (1, 3)}
"""How often the two runs of a scenario do it."""
COUNT = re.compile(r"I\s+refs:\s+([\d,]+)")


class Swallowed:
    """A socket, libnftables, and a reader of IPVS on an empty node: takes everything, finds nothing."""

    def batch(self, _messages):
        return {}

    def transaction(self, messages):
        b"".join(messages)

    def run(self, transaction):
        str(transaction)

    check = run

    def services(self):
        return []


class EncodingIpvs(Ipvs):
    """Makes the bytes of messages and sends them nowhere."""

    def __init__(self):
        self._family = 33
        self._wire = self._reader = Swallowed()


class EncodingNft(KernelNft):
    """Makes the messages and texts of transactions and sends them nowhere."""

    def __init__(self):
        self._wire = self._libnftables = Swallowed()


class SwallowingNft(MemoryNft):
    """Keeps nothing of what it is given but that there was something."""

    def __init__(self):
        super().__init__()
        self._encoding = EncodingNft()

    def run(self, transaction):
        self._encoding.run(transaction)
        self.loaded = True

    check = run


class MeasuredNode:
    """A node with the given number of Services, not synced yet."""

    def __init__(self, services, data_path=DataPath.IPVS):
        garbage_collection.expect_many_objects()
        node = MemoryNode()
        node.ipvs, node.nft = EncodingIpvs(), SwallowingNft()
        config = Config(node_name="node0", cluster_cidrs=("10.128.0.0/9",), data_path=DataPath(data_path))
        self.loop = make_loop(config, Inbox(), node.kernel(), lambda: 0.0)
        self.lists = cluster.lists(services, ENDPOINTS)

    def list(self):
        """Decode all objects and bring the node up."""
        services, slices = (
            objects(kind, raw) for kind, raw in zip((Kind.SERVICE, Kind.ENDPOINT_SLICE), self.lists, strict=True)
        )
        events = [Listed(Kind.NODE, {}), Listed(Kind.SERVICE, services), Listed(Kind.ENDPOINT_SLICE, slices)]
        self.loop.reconcile(events)

    def change(self, lines):
        """Decode some slices and carry out what they change, in one pass."""
        found = [decode_json(Kind.ENDPOINT_SLICE, line).object for line in lines]
        self.loop.reconcile([Changed(Kind.ENDPOINT_SLICE, value.key, value) for value in found])


def run(scenario, services, rounds, data_path=DataPath.IPVS):
    """Do something so many times; what is not counted is done for the largest number of rounds."""
    node = MeasuredNode(services, data_path)
    lines = [
        [json.dumps(cluster.endpoint_slice(n, ENDPOINTS, shift=shift)).encode() for n in range(services)]
        for shift in range(1, max(ROUNDS[scenario]) + 1)
    ]
    if scenario == "cold_sync":
        return node.list() if rounds else None
    node.list()
    for changed in lines[:rounds]:
        for together in [changed] if scenario == "burst" else [[line] for line in changed]:
            node.change(together)
    return None


def count(scenario, services, rounds, data_path):
    """Return the instructions of a process that runs a scenario."""
    command = ["valgrind", "--tool=cachegrind", "--cache-sim=no", "--cachegrind-out-file=/dev/null"]
    command += [sys.executable, "-m", __spec__.name, "--run", scenario, str(services), str(rounds), data_path]
    environment = os.environ | {"PYTHONHASHSEED": "0"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    return int(COUNT.search(done.stderr)[1].replace(",", ""))


def main(arguments=None):
    """Print the instructions for each Service of a start, and for each change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--services", type=int, default=100)
    parser.add_argument("--data-path", choices=list(DataPath), default=DataPath.IPVS)
    parser.add_argument("--run", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args(arguments)
    if given.run:
        structlog.configure(
            wrapper_class=structlog.make_filtering_bound_logger(logging.ERROR),
            cache_logger_on_first_use=True,  # as the program has it
        )
        scenario, services, rounds, data_path = given.run
        run(scenario, int(services), int(rounds), data_path)
        return
    for scenario, (fewer, more) in ROUNDS.items():
        fewest, most = (count(scenario, given.services, rounds, given.data_path) for rounds in (fewer, more))
        difference = most - fewest
        print(f"{scenario}: {difference // (given.services * (more - fewer)):,}", flush=True)


if __name__ == "__main__":
    main()
    sys.stdout.flush()
    os._exit(0)  # a sync makes the end of a process cheaper, which is not counted
