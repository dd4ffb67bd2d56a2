"""The one hand that changes the kernel: it carries out steps, phase by phase, and keeps the shadow true.

In: `Steps` from plan.diff. Out: a changed kernel, a changed shadow, and the names of what failed. A step that
fails costs only the object it is about; the shadow records what the kernel accepted and nothing else. When
answers were lost, that subsystem is in doubt and is read again from the kernel before anything else is decided.
"""

import errno
import os
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress

import structlog

from ipvsproxy.address import format_ip
from ipvsproxy.inspect.elements import SHAPES
from ipvsproxy.kernel.conntrack import Conntrack
from ipvsproxy.kernel.forward import Forwarding
from ipvsproxy.kernel.ipvs import Ipvs, Refused
from ipvsproxy.kernel.links import Links, reserved
from ipvsproxy.kernel.netlink import KernelError, Lost
from ipvsproxy.kernel.pressure import Pressure
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.transactions import Transactions
from ipvsproxy.plan.diff import (
    ElementStep,
    IpvsStep,
    Steps,
    record_element,
    record_ipvs,
    record_vip,
)
from ipvsproxy.plan.gate import (
    guarded_servers,
    guarded_vips,
    halves,
    ready_ways,
    replaced_vips,
    unneeded_elements,
)
from ipvsproxy.plan.node import Reserved
from ipvsproxy.plan.notice import Notice, VipsNoticed
from ipvsproxy.plan.rules import ARP_SETS
from ipvsproxy.plan.stale import Sweep
from ipvsproxy.plan.state import Destination, FrontendKey, KernelState, Server, ServerState, Slot, Touched, Vip
from nft import REPLY_MARK, Client, NftError, Table, Transaction
from nft import ruleset as static_rules

TABLE, ARP_TABLE = Table("inet", "ipvsproxy"), Table("arp", "ipvsproxy")
"""Never `kube-proxy`: Calico's Felix takes that name for kube-proxy's nftables mode."""
ELSEWHERE = dict.fromkeys(ARP_SETS, ARP_TABLE)
VERIFIED_AT_ONCE = 1000
"""Servers whose destinations one verification reads: three system calls each."""
LOGGED_AT_ONCE = 10
CONTRADICTIONS = (errno.ENOENT, errno.EEXIST)
"""Answers of nftables that mean: the table is not what we think it is."""
REFUSALS = (*CONTRADICTIONS, errno.EINVAL, errno.EOPNOTSUPP, errno.ERANGE, errno.ENOTEMPTY)
"""Answers that are about something in a transaction, and not about the state the machine is in."""
MAX_HALVINGS = 20

log = structlog.get_logger()


class Kernel:
    """IPVS, VIPs and the ruleset of this network namespace, with the shadow of all three."""

    def __init__(  # noqa: PLR0913 - one argument for each thing of the kernel
        self,
        ipvs: Ipvs,
        links: Links,
        nft: Client,
        ruleset: Ruleset,
        forwarding: Forwarding,
        mark: int = REPLY_MARK,
        keep_settings: Callable[[], None] = lambda: None,
        *,
        make_settings: Callable[[], None] = lambda: None,
        nameservers: Callable[[], Iterable[bytes]] = tuple,
        quiet_arp: bool = True,
        take_over: Callable[[], str] = lambda: "",
        read_set: Callable[[str], Mapping[str, str]] | None = None,
        conntrack: Conntrack,
    ) -> None:
        self.shadow = KernelState()
        self._rules = static_rules(mark, quiet_arp=quiet_arp)
        self._make_settings = make_settings
        self._nameservers = nameservers
        self._keep_settings = keep_settings
        self._take_over = take_over
        self._read_set = read_set
        self.rival = ""
        self._conntrack = conntrack
        self._forwarding = forwarding
        self._ipvs = ipvs
        self._links = links
        self._transactions = Transactions(nft, ruleset)
        self._ruleset = ruleset
        self._stamp: bytes = b""
        self._servers_in_doubt = self._vips_in_doubt = self._rules_in_doubt = False
        self._attempts = 0
        self._verified = 0
        self._pressure = Pressure()

    def prepare(self) -> None:
        """Make kernel settings and kube-ipvs0. Raises SysctlError, KernelError."""
        self._make_settings()
        self._links.ensure_link()

    def adopt(self) -> None:
        """Fill the shadow of IPVS and VIPs from the kernel. Raises KernelError."""
        self._links.ensure_link()
        self._servers_in_doubt = self._vips_in_doubt = True
        self.settle_doubts()

    def settle_doubts(self) -> Touched:
        """Make the shadow true again where answers were lost or contradicted it; return the names that differed.

        Raises KernelError.
        """
        different = Touched()
        if self._servers_in_doubt:
            servers, self.shadow.servers = self.shadow.servers, self._ipvs.observe()
            both = servers.keys() | self.shadow.servers.keys()
            different.servers = {key for key in both if servers.get(key) != self.shadow.servers.get(key)}
            self._servers_in_doubt = False
        if self._vips_in_doubt:
            different.vips = self._reread_vips()
        if self._rules_in_doubt:
            self._reload_rules()
        return different

    def _reread_vips(self) -> set[bytes]:
        vips, self.shadow.vips = self.shadow.vips, self._links.vips()
        self._vips_in_doubt = False
        return {vip.address for vip in self.shadow.vips ^ vips}

    def _reload_rules(self) -> None:
        """Load what the table should hold; a refusal is logged, and costs nothing else."""
        log.warning("nftables ruleset is not as left, loading it again", table=str(TABLE))
        try:
            self.load_rules(self.shadow.elements)
        except NftError as error:
            log.error("nftables ruleset could not be loaded", error=error.text[:500])

    def load_rules(self, elements: dict[Slot, str]) -> None:
        """Replace our table by the static rules and these elements, atomically. Raises NftError."""
        transaction = Transaction(TABLE, ELSEWHERE)
        transaction.delete_table()
        transaction.load(self._rules)
        transaction.add_elements((slot.set, slot.key, value) for slot, value in elements.items())
        self._transactions.run(transaction)
        self.shadow.elements = dict(elements)
        self._rules_in_doubt = False
        self._stamp = self._ruleset.stamp()
        self._forwarding.ensure()

    def apply(self, steps: Steps) -> Touched:
        """Carry out all phases in order; return the names of what failed and of what had to wait for it."""
        failed = Touched()
        self._attempts = MAX_HALVINGS
        self._change_elements(steps.raised, failed)
        added, bound = steps.added, steps.bound
        if failed:
            added, bound = guarded_servers(added, failed), guarded_vips(bound, failed)
        if steps.switched or bound or steps.unbound:
            self._change_servers(added, failed)
            self._change_elements(ready_ways(steps.switched, failed) if failed else steps.switched, failed)
            self._change_vips(bound, failed, present=True)
            self._change_vips(replaced_vips(steps.unbound, failed), failed, present=False)
            self._change_servers(steps.removed, failed)
        else:
            # Nothing stands between the two: they are one batch, and one answer is waited for.
            self._change_servers([*added, *steps.removed], failed)
        self._change_elements(unneeded_elements(steps.lowered, failed) if failed else steps.lowered, failed)
        return failed

    def verify(self) -> Touched:
        """Compare the kernel with the shadow, correct the shadow, and return the names that differed.

        All servers and VIPs are looked at, and the destinations of a part of the servers: the next part each
        time, so that the cost of one call is bounded. A ruleset that is gone is noticed and loaded again.
        Raises KernelError, NftError.
        """
        changed = Touched()
        self._keep_settings()
        problems = []
        # Each part in its own right: what cannot be looked at must not keep the others from being repaired.
        for part in (self.verify_vips, self._verify_servers, self._verify_rules, self._forwarding.ensure):
            try:
                changed.update(part() or Touched())
            except (KernelError, NftError) as error:
                problems.append(error)
        if problems:
            raise problems[0]
        states = self.shadow.servers.values()
        self._pressure.look(len(states), sum(len(state.weights) for state in states))
        self.take_over()
        return changed

    def take_over(self) -> None:
        """Remove what a kube-proxy has left, or notice that one is at work, which is then our `rival`."""
        self.rival = self._take_over()

    def verify_vips(self) -> Touched:
        """Compare kube-ipvs0 and VIPs with the shadow, correct it, return what differed. Raises KernelError."""
        if self._links.ensure_link():
            log.warning("kube-ipvs0 was gone and has been made again")
        return Touched(vips=self._reread_vips())

    def _verify_rules(self) -> None:
        if self._ruleset.stamp() != self._stamp:
            log.warning("nftables ruleset was gone or replaced, loading it again", table=str(TABLE))
            self.load_rules(self.shadow.elements)

    def restore(self, sets: Collection[str], *, whole: bool) -> None:
        """Give some sets the elements they should have, or load all rules. Raises NftError, KernelError.

        Either is one transaction, so nobody sees a set that is empty.
        """
        if not whole and self._ruleset.stamp() == self._stamp:
            transaction = Transaction(TABLE, ELSEWHERE)
            transaction.flush_sets(sorted(sets))
            elements = self.shadow.elements.items()
            transaction.add_elements((slot.set, slot.key, value) for slot, value in elements if slot.set in sets)
            try:
                self._transactions.run(transaction)
            except NftError as error:
                log.warning("sets could not be restored, loading all rules again", error=error.text[:200])
            else:
                return
        self.load_rules(self.shadow.elements)

    def differing_sets(self) -> set[str]:
        """Return the sets of the ruleset with other elements than they should have. Raises KernelError."""
        wanted: dict[str, dict[str, str]] = {name: {} for name in SHAPES}
        for slot, value in self.shadow.elements.items():
            wanted[slot.set][slot.key] = value
        read = self._read_set
        return {name for name, elements in wanted.items() if read and read(name) != elements}

    def expects(self, notice: Notice) -> bool:
        """Whether the kernel tells of nothing but what we have done ourselves."""
        if isinstance(notice, VipsNoticed):
            vips = self.shadow.vips
            return not notice.unsure and all((vip in vips) is present for vip, present in notice.changes)
        return self._transactions.made(notice)

    def _verify_servers(self) -> Touched:
        servers = self._ipvs.servers()
        order = list(self.shadow.servers)
        start = self._verified % max(1, len(order))
        part = order[start : start + VERIFIED_AT_ONCE]
        self._verified = start + len(part)
        suspects = {key for key, state in self.shadow.servers.items() if servers.get(key) != state.server}
        suspects |= servers.keys() - self.shadow.servers.keys()
        return Touched(servers=self._reread(suspects | set(part), servers))

    def _reread(self, keys: set[FrontendKey], servers: dict[FrontendKey, Server]) -> set[FrontendKey]:
        """Read some servers with their destinations into the shadow; return those that were different."""
        different = set()
        for key in keys:
            server = servers.get(key)
            state = ServerState(server, self._ipvs.weights(key)) if server else None
            if state == self.shadow.servers.get(key):
                continue
            different.add(key)
            if state is None:
                del self.shadow.servers[key]
            else:
                self.shadow.servers[key] = state
        return different

    def connections(self, key: FrontendKey) -> dict[Destination, int]:
        """Return the number of connections of each destination of a server. Raises KernelError."""
        return self._ipvs.connections(key)

    def sweep(self, sweep: Sweep) -> int:
        """Delete the tracked connections that a sweep finds stale and return how many. Raises KernelError."""
        return self._conntrack.sweep(sweep)

    def other_addresses(self) -> frozenset[bytes]:
        """Return the addresses of links other than kube-ipvs0. Raises KernelError."""
        return self._links.other_addresses()

    def senders(self) -> dict[str, bytes]:
        """Return the links with IPv4 addresses, each with its first one. Raises KernelError."""
        return self._links.senders()

    def reserved(self) -> Iterator[Reserved]:
        """Yield addresses that this node depends on: gateways, tunnels, DNS servers. Raises KernelError."""
        return reserved(self._links, self._nameservers())

    def _change_elements(self, steps: Sequence[ElementStep], failed: Touched) -> None:
        if not steps:
            return
        transaction = Transaction(TABLE, ELSEWHERE)
        transaction.delete_elements((s.slot.set, s.slot.key) for s in steps if s.value is None or s.replaces)
        transaction.add_elements((s.slot.set, s.slot.key, s.value) for s in steps if s.value is not None)
        try:
            self._transactions.run(transaction)
        except NftError as error:
            self._find_refused(steps, error, failed)
            return
        for step in steps:
            record_element(step, self.shadow)

    def _find_refused(self, steps: Sequence[ElementStep], error: NftError, failed: Touched) -> None:
        """Try the halves of a refused transaction, so that what is wrong with one address costs no other."""
        parts = halves(steps) if error.errno in REFUSALS and self._attempts and self._table_is_ours() else ()
        if parts:
            self._attempts -= 1
            for part in parts:
                self._change_elements(part, failed)
            return
        log.error("nftables transaction refused", error=error.text[:500], elements=len(steps))
        failed.slots.update(step.slot for step in steps)
        failed.reasons.update((step.slot, f"nftables: {error.text[:200]}") for step in steps)
        self._rules_in_doubt = self._rules_in_doubt or error.errno in CONTRADICTIONS

    def _table_is_ours(self) -> bool:
        with suppress(KernelError):
            return self._ruleset.stamp() == self._stamp
        return False

    def _change_servers(self, steps: Sequence[IpvsStep], failed: Touched) -> None:
        if not steps:
            return
        try:
            refused = self._ipvs.apply(steps)
        except Lost as error:
            log.error("IPVS answers were lost, reading its state again", error=str(error))
            failed.servers.update(step.key for step in steps)
            self._servers_in_doubt = True
            return
        unsure = {item.step.key for item in refused}
        for step in steps:
            if step.key not in unsure:
                record_ipvs(step, self.shadow)
        for key in unsure:
            self._look_again(key)
        report(refused)
        failed.servers |= unsure
        failed.reasons.update((item.step.key, f"IPVS: {os.strerror(item.errno)}") for item in refused)

    def _look_again(self, key: FrontendKey) -> None:
        """Read one server into the shadow, of which some steps have been carried out and some have not."""
        try:
            state = self._ipvs.state(key)
        except KernelError as error:
            log.error("IPVS cannot be read, trying again", frontend=str(key), error=str(error))
            self._servers_in_doubt = True
            return
        if state is None:
            self.shadow.servers.pop(key, None)
        else:
            self.shadow.servers[key] = state

    def _change_vips(self, vips: Sequence[Vip], failed: Touched, *, present: bool) -> None:
        if not vips:
            return
        try:
            failures = self._links.bind(vips) if present else self._links.unbind(vips)
        except Lost as error:
            log.error("rtnetlink answers were lost, reading VIPs again", error=str(error))
            failed.vips.update(vip.address for vip in vips)
            self._vips_in_doubt = True
            return
        for index, vip in enumerate(vips):
            if index not in failures:
                record_vip(vip, self.shadow, present=present)
                continue
            code = failures[index]
            log.error(
                "VIP could not be changed", vip=format_ip(vip.address), error=os.strerror(code), bind=present
            )
            failed.vips.add(vip.address)
            failed.reasons[vip.address] = os.strerror(code)


def report(refused: Sequence[Refused]) -> None:
    """Log what IPVS refused: each object once, and not thousands of them."""
    told: dict[FrontendKey, Refused] = {}
    for item in refused:
        if len(told) < LOGGED_AT_ONCE:
            told.setdefault(item.step.key, item)
    for key, item in told.items():
        log.error(
            "IPVS refused a change",
            verb=item.step.verb.name,
            frontend=str(key),
            destination=str(item.destination) if item.destination else None,
            error=os.strerror(item.errno),
        )
    if len(refused) > len(told):
        log.error("IPVS refused more changes", count=len(refused) - len(told))
