"""The only loop: take what changed, plan it, compare, apply, and now and then verify.

One thread turns this crank and owns the store, the ledger and every kernel handle; nobody else writes to the
kernel. It holds no decision of its own: what a Service needs is decided in plan.wanted, who holds a frontend in
plan.ledger, which steps follow in plan.diff, and how they are carried out in kernel.kernel.

Nothing is programmed before every kind of object has been listed once. What failed stays in `_pending` and is
tried again, later each time.
"""

import time
from collections.abc import Callable

import structlog

from ipvsproxy.address import parse_cidr
from ipvsproxy.config import Config
from ipvsproxy.kernel.kernel import Kernel
from ipvsproxy.kernel.netlink import KernelError
from ipvsproxy.kube.inbox import Event, Failed, Inbox, NodeAddressesChanged
from ipvsproxy.kube.store import Store
from ipvsproxy.plan.diff import Steps, diff, draining, reap
from ipvsproxy.plan.ledger import Ledger, Owner
from ipvsproxy.plan.node import NodeFacts, facts
from ipvsproxy.plan.rules import detector_elements
from ipvsproxy.plan.state import FrontendKey, Slot, Touched
from ipvsproxy.plan.wanted import plan_service
from nft import NftError

RETRY_SECONDS = (0.1, 30.0)
REAP_SECONDS = (1.0, 30.0)

log = structlog.get_logger()


class Fatal(Exception):
    """The process cannot do its work and must end."""


class Loop:
    """The machine: everything between the inbox and the kernel."""

    def __init__(
        self, config: Config, inbox: Inbox, kernel: Kernel, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._config = config
        self._inbox = inbox
        self._kernel = kernel
        self._clock = clock
        self._store = Store(config.node_name)
        self._ledger = Ledger(config.vip_mode)
        self._facts = NodeFacts(config.node_name)
        self._fixed: dict[Slot, str] = {}
        self._excluded = [parse_cidr(text) for text in config.exclude_cidrs]
        self._pending = Touched()
        self._draining: set[FrontendKey] = set()
        self._started = False
        self._retry = Timer(clock, *RETRY_SECONDS)
        self._reap = Timer(clock, *REAP_SECONDS)
        self._next_verify = 0.0

    def run(self) -> None:
        """Turn the crank for ever. Raises Fatal."""
        while True:
            self.turn(self._inbox.take(self._timeout()))
            # What arrives meanwhile is handled together.
            time.sleep(self._config.min_sync_period)

    def turn(self, events: list[Event]) -> None:
        """Handle some events and whatever is due. Raises Fatal."""
        addresses_changed = False
        for event in events:
            match event:
                case Failed(reason):
                    raise Fatal(reason)
                case NodeAddressesChanged():
                    addresses_changed = True
                case _:
                    self._store.apply(event)
        if not self._store.synced:
            return
        try:
            self._work(addresses_changed=addresses_changed)
        except (KernelError, NftError) as error:
            # Nothing is known to be lost by stopping half way: what was not recorded is still pending.
            log.exception("sync failed, trying again", error=str(error))
            self._pending.update(self._ledger.everything())
            self._retry.later()

    def _work(self, *, addresses_changed: bool) -> None:
        if not self._started:
            if self._retry.due():
                self._start()
            return
        if addresses_changed or self._store.node_changed:
            self._look_at_node()
        self._plan_dirty()
        if self._clock() >= self._next_verify:
            self._verify()
        if self._pending and self._retry.due():
            self._apply()
        if self._draining and self._reap.due():
            self._reap_drained()

    def _start(self) -> None:
        """Adopt what is there, load the rules, and bring everything to the wanted state, in this order.

        The guard must know every frontend before it takes effect, so the rules come in one transaction.
        """
        began = self._clock()
        self._kernel.adopt()
        self._look_at_node()
        self._plan_dirty()
        self._kernel.load_rules(self._ledger.elements)
        self._pending.update(self._ledger.everything())
        self._pending.servers |= self._kernel.shadow.servers.keys()
        self._pending.vips |= {vip.address for vip in self._kernel.shadow.vips}
        changes = self._apply()
        self._started = True
        self._next_verify = self._clock() + self._config.sync_period
        log.info(
            "synced",
            services=len(self._store.services),
            frontends=len(self._ledger.frontends),
            changes=changes,
            seconds=round(self._clock() - began, 3),
        )

    def _look_at_node(self) -> None:
        """Take over the facts of the node; all Services depend on them."""
        self._store.node_changed = False
        new = facts(self._config, self._store.node, self._kernel.other_addresses())
        if new == self._facts:
            return
        self._facts = new
        log.info("node facts", **new.summary())
        fixed = dict(detector_elements(new.pod_cidrs, new.pod_interfaces))
        self._pending.update(self._ledger.set_fixed(fixed, self._fixed))
        self._fixed = fixed
        self._store.all_dirty()

    def _plan_dirty(self) -> None:
        for key in self._store.take_dirty():
            service = self._store.services.get(key)
            if service is None:
                touched = self._ledger.forget(key)
            else:
                wanted = plan_service(service, self._store.slices(key), self._facts, self._config)
                touched = self._ledger.replace(Owner(service.created, key), wanted)
                for frontend in self._ledger.conflicts(key):
                    log.warning(
                        "frontend is held by another Service",
                        service=key,
                        frontend=str(frontend),
                        holder=self._ledger.owner(frontend),
                    )
            if touched and self._started:
                log.info(
                    "Service changed",
                    service=key,
                    gone=service is None,
                    frontends=len(touched.servers),
                )
            self._pending.update(touched)
            if touched:
                self._retry.now()

    def _apply(self) -> int:
        """Carry out what is pending and return the number of changes; what fails stays pending."""
        pending, self._pending = self._pending, Touched()
        steps = diff(pending, self._ledger, self._kernel.shadow, self._protected)
        failed = self._kernel.apply(steps) if steps else Touched()
        self._note_draining(pending.servers)
        if failed:
            self._pending.update(failed)
            self._retry.later()
        else:
            self._retry.reset()
        return steps.count()

    def _protected(self, key: FrontendKey) -> bool:
        return any(key.address in cidr for cidr in self._excluded)

    def _note_draining(self, keys: set[FrontendKey]) -> None:
        before = len(self._draining)
        for key in keys:
            state = self._kernel.shadow.servers.get(key)
            if state and key in self._ledger.frontends and draining(self._ledger.frontends[key], state):
                self._draining.add(key)
            else:
                self._draining.discard(key)
        if len(self._draining) > before:
            self._reap.reset()
            self._reap.later()

    def _reap_drained(self) -> None:
        """Delete destinations of weight 0 whose connections have ended."""
        for key in sorted(self._draining):
            frontend, state = self._ledger.frontends[key], self._kernel.shadow.servers[key]
            steps = reap(frontend, state, self._kernel.connections(key))
            self._pending.update(self._kernel.apply(Steps(removed=steps)))
            for step in steps:
                log.info(
                    "drained destinations removed",
                    frontend=str(key),
                    destinations=list(map(str, step.destinations)),
                )
        self._note_draining(set(self._draining))
        self._reap.later()

    def _verify(self) -> None:
        """Compare the kernel with what we know of it; differences are repaired by the next apply."""
        self._next_verify = self._clock() + self._config.sync_period
        self._look_at_node()
        changed = self._kernel.verify()
        if changed:
            log.warning(
                "the kernel was not as left, repairing", servers=len(changed.servers), vips=len(changed.vips)
            )
            self._pending.update(changed)
            self._retry.now()

    def _timeout(self) -> float | None:
        if not self._store.synced:
            return None
        times = [self._next_verify if self._started else self._retry.at]
        if self._pending:
            times.append(self._retry.at)
        if self._draining:
            times.append(self._reap.at)
        return max(0.0, min(times) - self._clock())


class Timer:
    """A point in time that each `later` moves twice as far away, between a first and a longest wait in seconds."""

    def __init__(self, clock: Callable[[], float], first: float, longest: float) -> None:
        self.at = 0.0
        self._clock = clock
        self._first = self._wait = first
        self._longest = longest

    def due(self) -> bool:
        """Whether the time has come."""
        return self._clock() >= self.at

    def later(self) -> None:
        """Wait longer than the last time."""
        self.at = self._clock() + self._wait
        self._wait = min(self._longest, self._wait * 2)

    def now(self) -> None:
        """Become due at once, whatever was decided before."""
        self.at = self._clock()

    def reset(self) -> None:
        """Start with short waits again."""
        self._wait = self._first
        self.at = self._clock()
