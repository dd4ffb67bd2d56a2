"""The real kernel in the shape of `memory_kernel.MemoryNode`: with the same faults, and a way to look at it.

All of it is in the network namespace of the calling thread. What a call that fails has carried out of its batch,
it has carried out for real. The addresses of other links are made up.
"""

from __future__ import annotations

import json
import os
import re

import nftables

from ipvsproxy.kernel.element_changes import KernelNft
from ipvsproxy.kernel.forward import Forwarding
from ipvsproxy.kernel.ipvs import Ipvs, StepRefused
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.links import Links
from ipvsproxy.kernel.notrack import Notrack
from ipvsproxy.kernel.parts import RulesetParts
from ipvsproxy.kernel.rules import Rules
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.scripts import PARTS, Scripts, part
from ipvsproxy.kernel.tables import TABLE
from ipvsproxy.kernel.wire.ipvs import single
from ipvsproxy.kernel.wire.netlink import Wire
from ipvsproxy.plan.state import KernelState
from nft import Libnftables, NftError, Transaction
from tests.lab.wipe import wipe
from tests.support.memory_kernel import Faults, Killed, MemoryConntrack, MemoryHost


class Reads:
    """Lets reading calls pass `Faults` first."""

    READS: tuple[str, ...] = ()

    def __init__(self, real, faults):
        self._real, self._faults = real, faults
        self.writes = 0

    def __getattr__(self, name):
        found = getattr(self._real, name)
        if name in self.READS:
            self._faults.read()
        return found

    def _carry_out(self, parts, refused):
        """Return the parts that are to be carried out, note the others, and the error to raise at the end."""
        done, error, codes = [], None, self._faults.batch(len(parts))
        try:
            for code, (index, part) in zip(codes, enumerate(parts), strict=False):
                if code:
                    refused[index] = code
                else:
                    done.append((index, part))
        except (Killed, Exception) as raised:  # noqa: BLE001 - whatever the plan says
            error = raised
        self.writes += len(done)
        return done, error


class RealIpvs(Reads):
    READS = ("state", "servers", "destinations", "observe", "connections")

    def apply(self, steps):
        parts, codes = [part for step in steps for part in single(step)], {}
        done, error = self._carry_out(parts, codes)
        refused = self._real.apply([part for _, part in done]) if codes or error else self._real.apply(steps)
        if error:
            raise error
        return [*refused, *(StepRefused(parts[index], code) for index, code in codes.items())]


class RealLinks(Reads):
    READS = ("ensure_link", "vips")

    def __init__(self, real, faults, node):
        super().__init__(real, faults)
        self._node = node

    def other_addresses(self):
        self._faults.read()
        return self._node.links.others

    def bind(self, vips):
        return self._change(vips, self._real.bind)

    def unbind(self, vips):
        return self._change(vips, self._real.unbind)

    def _change(self, vips, change):
        refused = {}
        done, error = self._carry_out(list(vips), refused)
        answers = change([vip for _, vip in done])
        if error:
            raise error
        return {**refused, **{done[index][0]: code for index, code in answers.items()}}


class RealNft:
    def __init__(self, faults):
        self._real, self._faults = KernelNft(), faults
        self.transactions = []

    def run(self, transaction):
        fault = self._faults.next()
        if fault is None or (fault.how == "killed" and fault.done):
            self._real.run(transaction)
            self.transactions.append(str(transaction))
        if fault and fault.how == "killed":
            raise Killed
        if fault:
            raise NftError(fault.code, os.strerror(fault.code))

    def check(self, transaction):
        fault = self._faults.next()
        if fault and fault.how == "killed":
            raise Killed
        if fault:
            raise NftError(fault.code, os.strerror(fault.code))
        self._real.check(transaction)


class Others:
    def __init__(self, others):
        self.others = frozenset(others)


class RealNode:
    """Everything that outlives a process, in the thread's namespace, which is emptied first."""

    def __init__(self, others):
        wipe()
        self.links = Others(others)
        self.faults = Faults()
        self._ipvs = Ipvs()
        self._links = Links()
        self._made = []
        self._handles = []

    def kernel(self):
        """Return what a newly started process has in hand; the handles of the last one are closed."""
        self._close()
        ipvs, links = Ipvs(), Links()
        ruleset, nft = Reads(Ruleset(TABLE.name), self.faults), RealNft(self.faults)
        ruleset.READS = ("stamp",)
        forwarding, notrack = Forwarding(nft), Notrack()
        self._handles = [ipvs, *(v for item in (links, ruleset._real, forwarding, notrack) for v in _wires(item))]
        faulty = RealIpvs(ipvs, self.faults), RealLinks(links, self.faults, self)
        self._made += [*faulty, nft]
        shadow = KernelState()
        rules = Rules(nft, ruleset, RulesetParts(forwarding, notrack), Scripts(), shadow, None)
        return Kernel(shadow, *faulty, rules, MemoryConntrack(), MemoryHost())

    @property
    def writes(self):
        return sum(made.writes for made in self._made if isinstance(made, Reads))

    @property
    def transactions(self):
        return sum(len(made.transactions) for made in self._made if isinstance(made, RealNft))

    # Looking, and what others do.

    def servers(self):
        return self._ipvs.observe()

    def vips(self):
        self._links.ensure_link()
        return self._links.vips()

    def rules(self):
        """Return all of our table, without handles and counters."""
        binding = nftables.Nftables()
        binding.set_json_output(True)
        code, output, _ = binding.cmd(f"list table {TABLE}")
        return sorted(_flat(item) for item in json.loads(output)["nftables"]) if code == 0 else []

    def tamper(self, steps):
        self._ipvs.apply(steps)

    def add_vip(self, vip):
        self._links.ensure_link()
        self._links.bind([vip])

    def delete_vips(self):
        self._links.unbind(list(self.vips()))

    def delete_link(self):
        self._links.ensure_link()
        self._links.remove_link()

    def delete_table(self):
        transaction = Transaction(TABLE)
        transaction.delete_table()
        Libnftables().run(transaction)

    def close(self):
        self._close()
        for wire in (self._ipvs, *_wires(self._links)):
            wire.close()

    def _close(self):
        for handle in self._handles:
            handle.close()
        self._handles = []


def _wires(owner):
    return [value for value in vars(owner).values() if isinstance(value, Wire)]


def _flat(item):
    ((kind, body),) = item.items()
    if kind == "metainfo":
        return kind
    if isinstance(body.get("elem"), list):
        body["elem"] = sorted(map(json.dumps, body["elem"]))
    body.pop("handle", None)
    return json.dumps({kind: body}, sort_keys=True)


OF_PARTS = {name for one in PARTS for name in re.findall(r"^\t(?:chain|set|map) (\w+) {", part(one), re.MULTILINE)}


def is_of_a_part(item):
    """Whether one thing of a listed ruleset is something that only some nodes need."""
    kinds = json.loads(item) if item.startswith("{") else {}
    names = {kinds.get(kind, {}).get("name") for kind in ("chain", "set", "map")}
    return not (names | {kinds.get("rule", {}).get("chain")}).isdisjoint(OF_PARTS)


def assert_same_rules(rules, cold):
    """Compare a listed ruleset with that of a cold start.

    Chains that were needed once stay until the next start (nft.PARTS); those that are needed now are there.
    """
    assert [one for one in rules if not is_of_a_part(one)] == [one for one in cold if not is_of_a_part(one)]
    assert not set(cold) - set(rules)
