"""The one hand that changes the kernel: it carries out steps, phase by phase, and keeps the shadow true.

In: `Steps` from plan.diff. Out: a changed kernel, a changed shadow, and the names of what failed. A step that
fails costs only the object it is about; the shadow records what the kernel accepted and nothing else. When
answers were lost, that subsystem is in doubt and is read again from the kernel before anything else is decided.
"""

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Protocol

import msgspec
import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.address import format_ip
from ipvsproxy.kernel.conntrack import Conntrack
from ipvsproxy.kernel.ipvs import Ipvs, StepRefused, report
from ipvsproxy.kernel.ipvs_reader import NOT_THERE
from ipvsproxy.kernel.links import Links, reserved
from ipvsproxy.kernel.own_source import give_back_sources
from ipvsproxy.kernel.pressure import Pressure
from ipvsproxy.kernel.rules import Rules
from ipvsproxy.kernel.server_check import ServerCheck
from ipvsproxy.kernel.wire.netlink import KernelError, Lost
from ipvsproxy.plan.dependencies import (
    guarded_servers,
    guarded_vips,
    ready_redirects,
    replaced_vips,
    unneeded_elements,
)
from ipvsproxy.plan.diff import IpvsStep, Steps, Verb, record_ipvs, record_vip
from ipvsproxy.plan.host_ports import Port
from ipvsproxy.plan.node import Reserved
from ipvsproxy.plan.notification import Notification, VipsChanged
from ipvsproxy.plan.stale import Sweep
from ipvsproxy.plan.state import Destination, Dirty, FrontendKey, KernelState, Vip

log = structlog.get_logger()


class Host(Protocol):
    """What else of the host matters; `kernel.this_host` is the real one."""

    def make_settings(self) -> None:
        """Make the kernel settings. Raises SysctlError, KernelError."""

    def keep_settings(self) -> None:
        """Put back the settings that others have changed."""

    def reserve_ports(self) -> None:
        """Reserve the NodePorts, so that no connection of a program gets one as its source port."""

    def listening(self) -> frozenset[Port]:
        """Return the ports on which programs listen. Raises KernelError."""

    def has_scheduler(self, name: str) -> bool:
        """Whether IPVS has a scheduler, once its module has been loaded; for any thread. Raises KernelError."""

    def nameservers(self) -> frozenset[bytes]:
        """Return the addresses of the DNS servers."""

    def check_ipv6(self, *, is_needed: bool) -> None:
        """Warn when IPv6 is not forwarded though there are IPv6 Services."""

    def take_over(self) -> str:
        """Remove what a kube-proxy has left, or return which one is at work."""


class Kernel:
    """IPVS, VIPs and the ruleset of this network namespace, with the shadow of all three.

    The rules keep their part of the same shadow.
    """

    def __init__(
        self, shadow: KernelState, ipvs: Ipvs, links: Links, rules: Rules, conntrack: Conntrack, host: Host
    ) -> None:
        self.shadow = shadow
        self.rules = rules
        self.rival = ""
        self._conntrack = conntrack
        self._ipvs = ipvs
        self._links = links
        self._host = host
        self._servers_in_doubt = self._vips_in_doubt = self._link_is_missing = False
        self._check = ServerCheck(shadow, ipvs)
        self._pressure = Pressure()

    def prepare(self) -> None:
        """Make kernel settings and kube-ipvs0. Raises SysctlError, KernelError."""
        self._host.make_settings()
        self._links.ensure_link()
        self._host.reserve_ports()

    def may_begin_with_shared(self) -> bool:
        """Whether serving shared Services only takes nothing away that is served now. Raises KernelError."""
        return not (self._ipvs.observe() or self._links.vips()) or self.rules.are_for_shared_only()

    def adopt(self) -> None:
        """Fill the shadow of IPVS and VIPs from the kernel. Raises KernelError."""
        self._links.ensure_link()
        self._servers_in_doubt = self._vips_in_doubt = True
        for _ in self.settle_doubts():
            pass

    def settle_doubts(self) -> Iterator[Dirty]:
        """Make the shadow true again where answers were lost or contradicted it; yield the names that differed.

        What has been yielded stays true when the next subsystem cannot be read. Raises KernelError, NftError.
        """
        if self._servers_in_doubt:
            servers, self.shadow.servers = self.shadow.servers, self._ipvs.observe()
            self._servers_in_doubt = False
            both = servers.keys() | self.shadow.servers.keys()
            yield Dirty({key for key in both if servers.get(key) != self.shadow.servers.get(key)})
        if self._vips_in_doubt:
            yield Dirty(vips=self._reread_vips())
        if self._link_is_missing:
            self._link_is_missing = False
            with suppress(KernelError):  # the next verification reports it; what needs no VIP goes on
                yield self.verify_vips()
        if self.rules.in_doubt:
            yield self.rules.reload()

    def _reread_vips(self) -> set[bytes]:
        vips, self.shadow.vips = self.shadow.vips, self._links.vips()
        self._vips_in_doubt = False
        give_back_sources(self._links)
        return {vip.address for vip in self.shadow.vips ^ vips}

    def apply(self, steps: Steps, waiting: Dirty | None = None) -> Dirty:
        """Carry out all phases in order; return the names of what failed and of what had to wait for it.

        `waiting` are names that failed earlier and are not tried now: what depends on them waits, too.
        """
        failed = Dirty() if waiting is None else waiting.copy()
        self.rules.change(steps.elements_before, failed)
        self.rules.prepare([step.key for step in steps.added], failed)
        added, bound = steps.added, steps.bound
        if failed:
            added, bound = guarded_servers(added, failed), guarded_vips(bound, failed)
        if steps.redirects or bound or steps.unbound:
            self._change_servers(added, failed)
            self.rules.change(ready_redirects(steps.redirects, failed) if failed else steps.redirects, failed)
            self._change_vips(bound, failed, present=True)
            self._change_vips(replaced_vips(steps.unbound, failed), failed, present=False)
            self._change_servers(steps.removed, failed)
        else:
            # Nothing stands between the two: they are one batch, and one answer is waited for.
            self._change_servers([*added, *steps.removed], failed)
        self.rules.change(
            unneeded_elements(steps.elements_after, failed) if failed else steps.elements_after, failed
        )
        return failed if waiting is None else failed.without(waiting)

    def keep_settings(self) -> None:
        """Put back kernel settings and the reservation of the NodePorts."""
        self._host.keep_settings()
        self._host.reserve_ports()

    def check_load(self) -> None:
        """Warn when the host lacks memory, room or forwarding for what the shadow has."""
        states = self.shadow.servers.values()
        self._host.check_ipv6(is_needed=any(len(key.address) == 16 for key in self.shadow.servers))
        self._pressure.look(len(states), sum(len(state.destinations) for state in states))

    def take_over(self) -> None:
        """Remove what a kube-proxy has left, or notice that one is at work, which is then our `rival`."""
        self.rival = self._host.take_over()

    def verify_rules(self) -> Dirty:
        """Load the ruleset again when it is gone or replaced; return what was refused of it.

        Raises KernelError, NftError.
        """
        return self.rules.verify()

    def verify_others(self) -> Dirty:
        """Load what rules of other programs have made necessary. Raises NftError."""
        self.rules.follow_others()
        return Dirty()

    def verify_vips(self) -> Dirty:
        """Compare kube-ipvs0 and VIPs with the shadow, correct it, return what differed. Raises KernelError."""
        if self._links.ensure_link():
            log.warning("Found link kube-ipvs0 deleted, created it again")
        return Dirty(vips=self._reread_vips())

    def consume_own(self, notice: Notification) -> bool:
        """Whether a notification is only about what we have done ourselves."""
        if isinstance(notice, VipsChanged):
            vips = self.shadow.vips
            return not notice.unsure and all((vip in vips) is present for vip, present in notice.changes)
        return self.rules.consume_own(notice)

    def sample(self) -> bool:
        """Look at one virtual server, the next one each time; return whether it differs. Raises KernelError."""
        return not self._servers_in_doubt and self._check.sample()

    def verify_servers(self) -> Dirty:
        """Compare servers with the shadow, correct it, return what differed. Raises KernelError."""
        return Dirty(servers=self._check.verify())

    @property
    def is_verifying(self) -> bool:
        """Whether `verify_large` has something to do."""
        return bool(self._check.large)

    def verify_large(self) -> Dirty:
        """Compare the next piece of a large server with the shadow; correct it. Raises KernelError."""
        return Dirty(servers=self._check.verify_large())

    def connections(self, key: FrontendKey) -> dict[Destination, int]:
        """Return the number of connections of each destination of a server. Raises KernelError."""
        return self._ipvs.connections(key)

    def each_connections(self, key: FrontendKey) -> Iterator[tuple[Destination, int]]:
        """Yield the same for a large server as it is read. Raises KernelError."""
        return self._ipvs.each_connections(key)

    def is_large(self, key: FrontendKey) -> bool:
        """Whether a server of the shadow is to be read in pieces."""
        return self._check.large.is_large(key)

    def sweep(self, sweep: Sweep) -> int:
        """Delete the tracked connections that a sweep finds stale and return how many. Raises KernelError."""
        return self._conntrack.sweep(sweep)

    def listening(self) -> frozenset[Port]:
        """Return the ports on which programs of this node listen. Raises KernelError."""
        return self._host.listening()

    def has_scheduler(self, name: str) -> bool:
        """Whether IPVS has a scheduler, for any thread; loads its module. Raises KernelError."""
        return self._host.has_scheduler(name)

    def other_addresses(self) -> frozenset[bytes]:
        """Return the addresses of links other than kube-ipvs0. Raises KernelError."""
        return self._links.other_addresses()

    def senders(self) -> dict[str, bytes]:
        """Return the links with IPv4 addresses, each with its first one. Raises KernelError."""
        return self._links.senders()

    def reserved(self) -> Iterator[Reserved]:
        """Yield addresses that this node depends on: gateways, tunnels, DNS servers. Raises KernelError."""
        return reserved(self._links, self._host.nameservers())

    def _change_servers(self, steps: Sequence[IpvsStep], failed: Dirty) -> None:
        if not steps:
            return
        if self._check.large:
            self._check.large.changed({step.key for step in steps})
        try:
            refused = self._ipvs.apply(steps)
        except Lost as error:
            log.error(messages.IPVS_REPLIES_LOST, err=str(error))
            failed.servers.update(step.key for step in steps)
            self._servers_in_doubt = True
            return
        if refused:
            self._record_in_part(steps, refused, failed)
            return
        for step in steps:
            record_ipvs(step, self.shadow)

    def _record_in_part(self, steps: Sequence[IpvsStep], refused: Sequence[StepRefused], failed: Dirty) -> None:
        """Note in the shadow what has been carried out of some steps, and name what has not."""
        unsure = {item.step.key for item in refused}
        known = self._refused_of_large(refused)
        for step in steps:
            if step.key not in unsure:
                record_ipvs(step, self.shadow)
            elif step.key in known:
                left = tuple(d for d in step.destinations if d not in known[step.key])
                record_ipvs(msgspec.structs.replace(step, destinations=left), self.shadow)
        for key in unsure - known.keys():
            self._look_again(key)
        report(refused)
        failed.servers |= unsure
        # Of several about one server the first is why: without the server its destinations fail, too.
        failed.reasons.update((item.step.key, f"IPVS: {item.reason}") for item in reversed(refused))

    def _refused_of_large(self, refused: Sequence[StepRefused]) -> dict[FrontendKey, set[Destination]]:
        """Return the large servers to which only new destinations were refused, with these: no need to read it."""
        found: dict[FrontendKey, set[Destination]] = {}
        others = set()
        for item in refused:
            key = item.step.key
            if item.step.verb is Verb.NEW_DEST and item.errno not in NOT_THERE and self._check.large.is_large(key):
                found.setdefault(key, set()).update(item.step.destinations)
            else:
                others.add(key)
        return {key: which for key, which in found.items() if key not in others}

    def _look_again(self, key: FrontendKey) -> None:
        """Read one server into the shadow, of which some steps have been carried out and some have not."""
        try:
            state = self._ipvs.state(key)
        except KernelError as error:
            log.error("Could not read IPVS virtual server, will retry", frontend=str(key), err=str(error))
            self._servers_in_doubt = True
            return
        if state is None:
            self.shadow.servers.pop(key, None)
        else:
            self.shadow.servers[key] = state

    def _change_vips(self, vips: Sequence[Vip], failed: Dirty, *, present: bool) -> None:
        if not vips:
            return
        try:
            failures = self._links.bind(vips) if present else self._links.unbind(vips)
        except Lost as error:
            log.error("Lost replies of rtnetlink, reading VIPs again", err=str(error))
            failed.vips.update(vip.address for vip in vips)
            self._vips_in_doubt = True
            return
        for index, vip in enumerate(vips):
            if index not in failures:
                record_vip(vip, self.shadow, present=present)
                continue
            code = failures[index]
            self._link_is_missing |= code == errno.ENODEV
            log.error(messages.VIP_REFUSED, vip=format_ip(vip.address), err=os.strerror(code), bind=present)
            failed.vips.add(vip.address)
            failed.reasons[vip.address] = os.strerror(code)
