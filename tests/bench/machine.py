"""The real loop on the real kernel in a network namespace of its own, and what it was told to write.

Only the API server is missing: objects come as the raw JSON of lists and watch events.
"""

import gc
import time

import msgspec

from ipvsproxy.base import garbage_collection
from ipvsproxy.config import Config
from ipvsproxy.exchange.inbox import Changed, Inbox, Kind, Listed
from ipvsproxy.kernel.conntrack import Conntrack
from ipvsproxy.kernel.element_changes import KernelNft
from ipvsproxy.kernel.forward import Forwarding
from ipvsproxy.kernel.ipvs import Ipvs
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.notrack import Notrack
from ipvsproxy.kernel.parts import RulesetParts
from ipvsproxy.kernel.rules import Rules
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.scripts import Scripts
from ipvsproxy.kernel.tables import TABLE
from ipvsproxy.kube.decode import decode_json
from ipvsproxy.plan.state import KernelState
from ipvsproxy.process.assembly import make_loop
from tests.bench.namespace import fresh_network
from tests.support.memory_kernel import MemoryHost

WARM_BYTES = 192 << 20
ARENA = 1 << 20
"""Python takes memory from the system in pieces of this size and gives back what is wholly unused."""
CALIBRATION_LOOPS = 600_000
REFERENCE_CALIBRATION = 0.05
"""Seconds of the calibration on one core of a server of 2023, without emulation."""


class RawList(msgspec.Struct):
    items: list[msgspec.Raw]


class RecordingIpvs(Ipvs):
    """Remembers what it was given, call by call."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def apply(self, steps):
        self.calls.append(list(steps))
        return super().apply(steps)


class RecordingLinks(Links):
    """Remembers the VIPs it has bound, and when it had first done so."""

    def __init__(self):
        super().__init__()
        self.bound = []
        self.first = None

    def bind(self, vips):
        self.bound += vips
        failures = super().bind(vips)
        self.first = self.first or time.perf_counter()
        return failures


class RecordingNft(KernelNft):
    """Remembers the transactions it was given."""

    def __init__(self):
        super().__init__()
        self.transactions = []

    def run(self, transaction):
        self.transactions.append(transaction)
        super().run(transaction)


class BenchProxy:
    """A proxy in a fresh namespace, or in this one; time stands still for it unless `clock` is given.

    So neither verification nor the removal of drained destinations gets into what is measured.
    """

    def __init__(self, *, record=False, fresh=True, clock=lambda: 0.0):
        if fresh:
            fresh_network()
        garbage_collection.expect_many_objects()
        self.ipvs = RecordingIpvs() if record else Ipvs()
        self.links = RecordingLinks() if record else Links()
        self.links.ensure_link()
        self.nft = RecordingNft() if record else KernelNft()
        ruleset, parts = Ruleset(TABLE.name), RulesetParts(Forwarding(self.nft), Notrack())
        shadow = KernelState()
        rules = Rules(self.nft, ruleset, parts, Scripts(), shadow, None)
        kernel = Kernel(shadow, self.ipvs, self.links, rules, Conntrack(), MemoryHost())
        config = Config(node_name="node0", cluster_cidrs=("10.128.0.0/9",))
        self.sync_period = config.sync_period
        self.loop = make_loop(config, Inbox(), kernel, clock)

    def index(self, services, slices):
        """Return the events of both lists, decoded."""
        return [
            Listed(Kind.NODE, {}),
            Listed(Kind.SERVICE, objects(Kind.SERVICE, services)),
            Listed(Kind.ENDPOINT_SLICE, objects(Kind.ENDPOINT_SLICE, slices)),
        ]

    def list(self, services, slices):
        """Take over the raw lists."""
        self.loop.reconcile(self.index(services, slices))

    def change(self, *lines):
        """Take over raw objects of watch events, in one turn."""
        decoded = [decode_json(Kind.ENDPOINT_SLICE, line).object for line in lines]
        self.loop.reconcile([Changed(Kind.ENDPOINT_SLICE, value.key, value) for value in decoded])

    def forget(self):
        """Start recording anew."""
        self.ipvs.calls.clear()
        self.nft.transactions.clear()
        self.links.bound.clear()


def objects(kind, raw):
    """Decode a raw list into {key: value}."""
    found = {}
    for item in msgspec.json.decode(raw, type=RawList).items:
        value = decode_json(kind, item).object
        found[value.key] = value
    return found


def warm_memory():
    """Have memory at hand that the system has already given: what that costs is not what is measured.

    In a user-mode kernel the first touch of a page takes as long as programming a virtual server. Returns what
    must be kept alive: an object in each piece.
    """
    size = 400
    pieces = [bytes(size) for _ in range(WARM_BYTES // size)]
    return pieces[:: ARENA // size // 2]


def timed(work):
    """Seconds that something takes, with no garbage of others collected meanwhile."""
    gc.collect()
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def calibration():
    """Seconds of CPU that a fixed piece of Python takes here: what emulation and other work cost."""
    began, table, total = time.process_time(), {}, 0
    for number in range(CALIBRATION_LOOPS):
        total += number & 3
        table[number & 1023] = total
    return time.process_time() - began
