"""The kernel in memory, as far as the loop can see it: IPVS, VIPs, a ruleset, and faults on demand.

`MemoryIpvs`, `MemoryLinks` and `MemoryStamp` have the methods of their namesakes in ipvsproxy.kernel; with
nft.fake they make a `Kernel` that needs no root. They count writes, and refuse what the real kernel refuses.
Every call passes `Faults`, which lets some of them fail, in whole or in part, and ends the process in others.
`MemoryNode.watch` is called after every single change.
"""

import errno
import os
import re
from contextlib import suppress
from typing import NamedTuple

from ipvsproxy.kernel.ipvs import StepRefused
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.parts import RulesetParts
from ipvsproxy.kernel.rules import Rules
from ipvsproxy.kernel.scripts import PARTS, Scripts
from ipvsproxy.kernel.scripts import part as part_of_ruleset
from ipvsproxy.kernel.wire.ipvs import single
from ipvsproxy.kernel.wire.netlink import KernelError, Lost
from ipvsproxy.plan.diff import Verb
from ipvsproxy.plan.state import KernelState, ServerState, VipForm
from ipvsproxy.ruleset.schema import SETS
from nft import NftError
from nft.fake import FakeNft
from tests.support.elements import elements

CHAINS = {name: set(re.findall(r"chain (\w+) {", part_of_ruleset(name))) for name in PARTS}


class Killed(BaseException):
    """The process has ended here, without a word."""


class Fault(NamedTuple):
    """How a call fails.

    `done` parts of a batch are carried out. Then: "refused" (every other part fails with `code`), "lost" (no
    answer arrives), "killed". Calls without parts fail as a whole.
    """

    how: str
    code: int = errno.ENOBUFS
    done: int = 0


class Faults:
    """Which of the coming calls fail."""

    def __init__(self):
        self.coming = {}
        self.calls = 0

    def plan(self, after, fault):
        """Let the call fail that comes after so many others."""
        self.coming[self.calls + after] = fault

    def next(self):
        self.calls += 1
        return self.coming.pop(self.calls - 1, None)

    def read(self):
        """Pass a call that only reads."""
        fault = self.next()
        if fault and fault.how == "killed":
            raise Killed
        if fault:
            raise (Lost if fault.how == "lost" else KernelError)("reading", fault.code)

    def batch(self, count):
        """Pass a call of many parts: yield the error of each, 0 for none, and end as planned."""
        fault = self.next()
        for index in range(count):
            if fault is None or index < fault.done:
                yield 0
            elif fault.how == "refused":
                yield fault.code if (index - fault.done) % 2 == 0 else 0
            else:
                break
        if fault and fault.how == "killed":
            raise Killed
        if fault and fault.how == "lost":
            raise Lost("netlink batch", fault.code)


class MemoryIpvs:
    def __init__(self, faults=None, watch=lambda: None):
        self.faults = faults or Faults()
        self.table = {}
        self.busy = {}
        self.writes = 0
        self.refuse = {}
        self._watch = watch

    def apply(self, steps):
        refused = []
        parts = [part for whole in steps for part in single(whole)]
        for fault, part in zip(self.faults.batch(len(parts)), parts, strict=False):
            code = self.refuse.get(part.key) or fault or self._do(part)
            if code:
                refused.append(StepRefused(part, code))
            else:
                self.writes += 1
                self._watch()
        return refused

    def _do(self, step):
        known, verb = self.table.get(step.key), step.verb
        if verb is Verb.NEW_SERVICE or verb is Verb.SET_SERVICE:
            if (known is None) is (verb is Verb.SET_SERVICE):
                return errno.ESRCH if known is None else self._do_again(step)
            self.table[step.key] = ServerState(step.server, known.destinations if known else {})
            return 0
        if known is None:
            # As the real one does, so that what is gone already counts as removed.
            return 0 if verb is Verb.DEL_SERVICE else errno.ESRCH
        if verb is Verb.DEL_SERVICE:
            del self.table[step.key]
            return 0
        return _change(known.destinations, verb, *step.destinations, step.attributes)

    def _do_again(self, step):
        """What is there already is set in place."""
        self.table[step.key].server = step.server
        return 0

    def state(self, key):
        self.faults.read()
        return self._all().get(key)

    def server(self, key):
        self.faults.read()
        return self.table[key].server if key in self.table else None

    def servers(self):
        self.faults.read()
        return {key: state.server for key, state in self.table.items()}

    def destinations(self, key):
        self.faults.read()
        return dict(self.table[key].destinations) if key in self.table else {}

    def each_destination(self, key):
        yield from self.destinations(key).items()

    def each_connections(self, key):
        yield from self.connections(key).items()

    def observe(self):
        self.faults.read()
        return self._all()

    def connections(self, key):
        self.faults.read()
        known = self.table[key].destinations if key in self.table else {}
        return {d: self.busy.get((key, d), 0) for d in known}

    def _all(self):
        return {key: ServerState(state.server, dict(state.destinations)) for key, state in self.table.items()}


def _change(destinations, verb, destination, attributes):
    present = destination in destinations
    if verb is Verb.SET_DEST and not present:
        return errno.ENOENT
    if verb is Verb.DEL_DEST:
        destinations.pop(destination, None)
    else:
        destinations[destination] = attributes
    return 0


class MemoryLinks:
    def __init__(self, others=(), faults=None, watch=lambda: None):
        self.faults = faults or Faults()
        self.present = set()
        self.sourced, self.keep_source = set(), {}
        self.refuse = {}
        self.unreadable = 0
        self.others = frozenset(others)
        self.writes = 0
        self.exists = False
        self._watch = watch
        self.hops = self.ends = frozenset()
        self.networks = ()

    def ensure_link(self):
        self.faults.read()
        made, self.exists = not self.exists, True
        return made

    def vips(self):
        self.faults.read()
        return set(self.present)

    def without_sources(self):
        """Give those in `sourced` none any more, but those in `keep_source`."""
        refused = {address: self.keep_source[address] for address in self.sourced & self.keep_source.keys()}
        self.sourced &= refused.keys()
        return refused

    def other_addresses(self):
        self.faults.read()
        if self.unreadable:
            raise KernelError("reading addresses", self.unreadable)
        return self.others

    def senders(self):
        return {}

    def gateways(self):
        return self.hops

    def subnets(self):
        return self.networks

    def tunnel_ends(self):
        return self.ends

    def bind(self, vips):
        return self._change(vips, self.present.add, self._refusal)

    def _refusal(self, vip):
        """What is not there counts as removed, but nothing can be added to it."""
        return errno.ENODEV if vip.form is VipForm.ADDRESS and not self.exists else 0

    def unbind(self, vips):
        return self._change(vips, self.present.discard, lambda _: 0)

    def _change(self, vips, change, refusal):
        failures = {}
        for fault, (index, vip) in zip(self.faults.batch(len(vips)), enumerate(vips), strict=False):
            code = self.refuse.get(vip.address) or fault or refusal(vip)
            if code:
                failures[index] = code
            else:
                self.writes += 1
                change(vip)
                self._watch()
        return failures


class MemoryNft(FakeNft):
    """The fake of the library, with faults: a transaction is all or nothing."""

    def __init__(self, faults=None, watch=lambda: None):
        super().__init__()
        self.faults = faults or Faults()
        self.poison, self.poison_code = None, errno.EINVAL
        self._watch = watch

    def run(self, transaction):
        fault = self.faults.next()
        self._swallow(transaction)
        if fault is None or (fault.how == "killed" and fault.done):
            super().run(transaction)
            self._check_parts()
            self._watch()
        if fault and fault.how == "killed":
            raise Killed
        if fault:
            raise NftError(fault.code, os.strerror(fault.code))

    def check(self, transaction):
        fault = self.faults.next()
        self._swallow(transaction)
        super().check(transaction)
        if fault and fault.how == "killed":
            raise Killed
        if fault:
            raise NftError(fault.code, os.strerror(fault.code))

    def _check_parts(self):
        """Fail when an element takes no effect since the chains that look for it are not there."""
        for name, kind in SETS.items():
            there = not kind.part or CHAINS[kind.part] <= self.chains
            assert there or not self.sets.get(name), f"elements of {name} without {kind.part}"

    def _swallow(self, transaction):
        if self.poison and self.poison in str(transaction):
            raise NftError(self.poison_code, "Error: Could not process rule: " + os.strerror(self.poison_code))


class MemoryStamp:
    """Knows the table of a FakeNft by its identity; `others` are tables that another version has left."""

    def __init__(self, nft):
        self._nft = nft
        self.others = {}

    def generation(self):
        self._nft.faults.read()
        return len(self._nft.transactions)

    def tables(self):
        self._nft.faults.read()
        return self.others

    def stamp(self):
        self._nft.faults.read()
        return f"{self._nft.generation} {len(self._nft.chains)}".encode() if self._nft.loaded else b""


class MemoryConntrack:
    """Tracked connections as (source, frontend, endpoint), or with "half-open" behind; and the sweeps made."""

    def __init__(self):
        self.entries = []
        self.sweeps = []
        self.failure = None

    def sweep(self, sweep):
        if self.failure:
            raise self.failure
        self.sweeps.append(sweep)
        before = len(self.entries)
        self.entries = [
            (source, name, endpoint, *half_open)
            for source, name, endpoint, *half_open in self.entries
            if not sweep.forbids(name, source, endpoint, replied=not half_open)
        ]
        return before - len(self.entries)


class MemoryForwarding:
    """A node without iptables, unless `drops`; chains that cannot be read may drop, as with the real one."""

    def __init__(self, faults):
        self._faults = faults
        self.drops = False

    def ensure(self, *, new=False):  # noqa: ARG002 - as the real one
        try:
            self._faults.read()
        except KernelError:
            self.drops = True
        return self.drops

    def tidy(self):
        with suppress(KernelError):
            self._faults.read()


class MemoryNotrack:
    """A node whose packets conntrack places, unless `hides`; `looks` counts how often its rules were read."""

    hides = False
    looks = 0

    def is_there(self):
        self.looks += 1
        return self.hides


class MemoryHost:
    """A host with nothing to set, on which `listens` are the ports that programs have."""

    def __init__(self):
        self.listens = frozenset()
        self.lacks_schedulers = set()
        self.taken_over = 0
        self.rival = ""

    def make_settings(self):
        pass

    keep_settings = reserve_ports = make_settings

    def listening(self):
        return self.listens

    def has_scheduler(self, name):
        return name not in self.lacks_schedulers

    def nameservers(self):
        return frozenset()

    def check_ipv6(self, *, is_needed):
        pass

    def take_over(self):
        self.taken_over += 1
        return self.rival


class MemoryNode:
    """Everything that outlives a process."""

    def __init__(self, others=()):
        self.watch = lambda: None
        self.faults = Faults()
        self.ipvs = MemoryIpvs(self.faults, self._changed)
        self.links = MemoryLinks(others, self.faults, self._changed)
        self.nft = MemoryNft(self.faults, self._changed)
        self.conntrack = MemoryConntrack()
        self.host = MemoryHost()
        self.forwarding = MemoryForwarding(self.faults)
        self.notrack = MemoryNotrack()

    def kernel(self, stamp=None):
        """Return what a newly started process has in hand."""
        shadow, stamp = KernelState(), stamp or MemoryStamp(self.nft)
        parts = RulesetParts(self.forwarding, self.notrack)
        rules = Rules(self.nft, stamp, parts, Scripts(), shadow, self._read_set)
        return Kernel(shadow, self.ipvs, self.links, rules, self.conntrack, self.host)

    def _read_set(self, kind):
        return elements(kind.name, self.nft.sets.get(kind.name, {}))

    def _changed(self):
        self.watch()

    @property
    def writes(self):
        return self.ipvs.writes + self.links.writes
