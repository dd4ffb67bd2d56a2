"""The kernel in memory, as far as the loop can see it: IPVS, VIPs, a ruleset, and faults on demand.

`MemoryIpvs`, `MemoryLinks` and `MemoryStamp` have the methods of their namesakes in ipvsproxy.kernel; with
nft.fake they make a `Kernel` that needs no root. They count writes, and refuse what the real kernel refuses.
"""

import errno

from ipvsproxy.kernel.ipvs import Refused
from ipvsproxy.kernel.ipvs_wire import single
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.plan.diff import Verb
from ipvsproxy.plan.state import ServerState
from nft.fake import FakeNft


class MemoryIpvs:
    def __init__(self):
        self.table = {}
        self.busy = {}
        self.writes = 0
        self.refuse = {}

    def apply(self, steps):
        refused = []
        for step in (part for whole in steps for part in single(whole)):
            code = self.refuse.get(step.key) or self._do(step)
            if code:
                refused.append(Refused(step, code))
            else:
                self.writes += 1
        return refused

    def _do(self, step):
        known, verb = self.table.get(step.key), step.verb
        if verb is Verb.NEW_SERVICE or verb is Verb.SET_SERVICE:
            if (known is None) is (verb is Verb.SET_SERVICE):
                return errno.ESRCH if known is None else errno.EEXIST
            self.table[step.key] = ServerState(step.server, known.weights if known else {})
            return 0
        if known is None:
            return errno.ESRCH
        if verb is Verb.DEL_SERVICE:
            del self.table[step.key]
            return 0
        return _change(known.weights, verb, *step.destinations, step.weight)

    def state(self, key):
        return self.observe().get(key)

    def servers(self):
        return {key: state.server for key, state in self.table.items()}

    def weights(self, key):
        return dict(self.table[key].weights) if key in self.table else {}

    def observe(self):
        return {key: ServerState(state.server, dict(state.weights)) for key, state in self.table.items()}

    def connections(self, key):
        return {d: self.busy.get((key, d), 0) for d in self.weights(key)}


def _change(weights, verb, destination, weight):
    present = destination in weights
    if present is (verb is Verb.NEW_DEST):
        return errno.EEXIST if present else errno.ENOENT
    if verb is Verb.DEL_DEST:
        del weights[destination]
    else:
        weights[destination] = weight
    return 0


class MemoryLinks:
    def __init__(self, others=()):
        self.present = set()
        self.others = frozenset(others)
        self.writes = 0
        self.exists = False

    def ensure_link(self):
        made, self.exists = not self.exists, True
        return made

    def vips(self):
        return set(self.present)

    def other_addresses(self):
        return self.others

    def bind(self, vips):
        self.writes += len(vips)
        self.present |= set(vips)
        return {}

    def unbind(self, vips):
        self.writes += len(vips)
        self.present -= set(vips)
        return {}


class MemoryStamp:
    """Knows the table of a FakeNft by its identity."""

    def __init__(self, nft):
        self._nft = nft

    def stamp(self):
        return f"{self._nft.generation}".encode() if self._nft.loaded else b""


class MemoryForwarding:
    """A node without iptables."""

    def ensure(self):
        pass


class MemoryNode:
    """Everything that outlives a process."""

    def __init__(self, others=()):
        self.ipvs = MemoryIpvs()
        self.links = MemoryLinks(others)
        self.nft = FakeNft()
        self.taken_over = 0

    def kernel(self):
        """Return what a newly started process has in hand."""
        stamp, forwarding = MemoryStamp(self.nft), MemoryForwarding()
        return Kernel(self.ipvs, self.links, self.nft, stamp, forwarding, take_over=self._take_over)

    def _take_over(self):
        self.taken_over += 1

    @property
    def writes(self):
        return self.ipvs.writes + self.links.writes
