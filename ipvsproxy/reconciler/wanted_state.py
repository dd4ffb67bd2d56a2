"""What this node should have: the objects as they are now, planned with the facts about the node.

Everything between the inbox and the comparison with the kernel, without the kernel. In: events and the node's
addresses. Out: the ledger, and the names of what has changed in it. Owned by the loop's thread.
"""

import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.budget import LINES, Budget, namespace_of
from ipvsproxy.config import Config
from ipvsproxy.exchange.report import Report, service_subject
from ipvsproxy.kube.store import Store
from ipvsproxy.plan.host_ports import Port
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.local import LocalView, listen_addresses, local_view
from ipvsproxy.plan.model import Protocol, Service
from ipvsproxy.plan.node import Missing, NodeFacts, Reserved, blindness, facts, missing
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.planning_order import SLICE, PlanningOrder
from ipvsproxy.plan.quota import ALL_TIERS, Quota
from ipvsproxy.plan.rules import detector_elements, sender_elements
from ipvsproxy.plan.safety import LISTS_NODES, AddressRefusal, has_external_ips, judge
from ipvsproxy.plan.state import Dirty, Frontend, FrontendKey, Vip
from ipvsproxy.plan.tally import NO_LIMIT, Tally, Tier, largest_size
from ipvsproxy.plan.waiting import Owner
from ipvsproxy.ruleset.elements import ElementKey, Value, guards

API_SERVER = "default/kubernetes"
API_SERVER_ROLE = "the API server"
DNS_PORT = 53
DELETED = "Node is about to be deleted"
MOST_LISTED = 5
"""Of the addresses or frontends that a Service does not get, those that are listed one by one."""

log = structlog.get_logger()


class WantedState:
    """The wanted state of the node and what it follows from.

    `ask` asks for a look at the addresses of other nodes and returns its ticket (`plan.addresses.Neighbours`).
    """

    def __init__(
        self,
        config: Config,
        report: Report,
        ask: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = Store(config.node_name, awaits_neighbours=ask is not None)
        self._ask = ask
        self.ledger = Ledger(config.vip_mode)
        self._config = config
        self._report = report
        self._local: set[str] = set()
        self._facts = NodeFacts(config.node_name)
        self._fixed: dict[ElementKey, Value] = {}
        self._refused: dict[str, tuple[AddressRefusal, ...]] = {}
        self._complaints: dict[str, tuple[str, ...]] = {}
        self._reported_nodes = False
        self._quota = Quota(config.namespace_limit, config.node_limit)
        self._turns = PlanningOrder()
        self._clock = clock
        self._lines = Budget(clock, LINES)
        self._api_servers: tuple[Reserved, ...] = ()
        self._missing: Missing | None = None

    @property
    def facts(self) -> NodeFacts:
        """The facts of the node as they were last seen."""
        return self._facts

    @property
    def limited(self) -> int:
        """The number of Services that are served in part."""
        return len(self._complaints)

    def api_servers(self, servers: Iterable[tuple[bytes, int]]) -> None:
        """Take over by which addresses and ports we reach the API server."""
        self._api_servers = tuple(Reserved(address, API_SERVER_ROLE, port) for address, port in servers)
        self.store.node_changed = True

    def ask_about_addresses(self) -> None:
        """Ask about addresses of which nobody knows yet whether they belong to a node."""
        addresses = self.store.addresses
        if self._ask is not None and (addresses.has_questions or self.store.lacks_other_nodes_only):
            addresses.asked(self._ask())

    def follow_addresses(self) -> None:
        """From now on, have new addresses wait for an answer; those at the start are adopted, or known by now."""
        if self._ask is not None:
            self.store.addresses.looks_up = True
            if self.store.addresses.are_asked_for:
                self._ask()

    def look_at_node(
        self,
        link_addresses: Iterable[bytes],
        reserved: Iterable[Reserved] = (),
        senders: Mapping[str, bytes] | None = None,
    ) -> Dirty:
        """Take over the facts of the node; all Services depend on them and become dirty when they changed."""
        self.store.node_changed = False
        node = self.store.node
        reserved = (*reserved, *self._api_servers, *self._api_endpoints())
        new = facts(self._config, node, link_addresses, reserved, senders, self.store.host_ports.in_use)
        # A folder of manifests need not describe the node, and no load balancer asks there.
        eligible = node.eligible if node else self._config.manifests is not None
        self._look_for_node(new)
        reason = str(self._missing) if self._missing else "" if eligible else DELETED
        self._report.node(eligible=eligible, listen=listen_addresses(self._config, new), reason=reason)
        if new == self._facts:
            return Dirty()
        previous, self._facts = self._facts, new
        if new.basic() == previous.basic():
            # New nodes bring new gateways all the time in big clusters.
            self.store.mark(key for key, found in self.store.services.items() if has_external_ips(found))
            return self._replace_fixed()
        log.info(messages.NODE_FACTS, **new.summary())
        if reason := blindness(self._config, new):
            log.warning(reason)
        self.store.all_dirty()
        return self._replace_fixed()

    def listening(self, ports: frozenset[Port]) -> None:
        """Record on which ports programs of this node listen; Services that ask for such a port become dirty."""
        self.store.mark(self.store.host_ports.listening(ports))
        self._facts = replace(self._facts, ports_in_use=ports)

    @property
    def missing_node(self) -> Missing | None:
        """What there was in place of our Node when it was missed first; None when it is there."""
        return self._missing

    def _look_for_node(self, found: NodeFacts) -> None:
        """Warn once while our Node is not there: whatever depends on it finds nothing, and reports nothing.

        A folder of manifests need not describe it, where that tells of no node or has endpoints on it.
        """
        store = self.store
        if store.node is not None:
            self._missing = None
        elif self._missing is None:
            names = store.nodes_of_endpoints()
            absent = missing(found.name, store.other_nodes.values(), names, found.link_addresses)
            if self._config.manifests is None or (absent.others and absent.name not in absent.others):
                self._missing = absent
                self._report_missing(absent)

    def _report_missing(self, absent: Missing) -> None:
        log.warning(messages.NODE_MISSING, effect=absent.effect, **absent.summary())

    def _replace_fixed(self) -> Dirty:
        previous, self._fixed = self._fixed, _fixed(self._facts, self._config)
        return self.ledger.set_fixed(self._fixed, previous)

    def _api_endpoints(self) -> Iterable[Reserved]:
        for piece in self.store.slices(API_SERVER):
            for endpoint in piece.endpoints:
                for port in piece.ports:
                    yield Reserved(endpoint.address, API_SERVER_ROLE, port.port)

    def plan(self, keys: Collection[str]) -> Dirty:
        """Plan some Services anew and return what that may change."""
        touched = Dirty()
        services, node, config = self.store.services, self._facts, self._config
        listing_nodes = 0
        for key in keys:
            service = services.get(key)
            if service is None:
                self.ledger.forget(key, touched)
                self._quota.forget(key)
                self._refused.pop(key, None)
                self._complaints.pop(key, None)
                self._report_local(key, None)
                continue
            slices = self.store.slices(key)
            tally = Tally(config.service_limit)
            refusals = judge(service, node, config, self.store.addresses)
            wanted = plan_service(service, slices, node, config, tally, refusals)
            owner = Owner(service.created, key)
            self._quota.set(owner, tally.sizes)
            wanted = self._within_quota(key, wanted, tally)
            self.ledger.replace(owner, wanted, touched)
            self._report_local(key, local_view(service, slices, wanted, node.name))
            if refusals or key in self._refused:
                self._report_refusals(key, [refusal for refusal in refusals if not refusal.quiet])
                listing_nodes += any(refusal.reason == LISTS_NODES for refusal in refusals)
            if tally.complaints or key in self._complaints:
                self._report_complaints(key, tally.complaints)
        self._report_other_nodes(listing_nodes)
        self._report_conflicts()
        return touched

    def _within_quota(
        self, key: str, wanted: dict[FrontendKey, Frontend], tally: Tally
    ) -> dict[FrontendKey, Frontend]:
        """Return the tiers of a Service that its namespace, or the node, has room for."""
        tiers = self._quota.tiers(key)
        if tiers == ALL_TIERS:
            return wanted
        served = dict(islice(wanted.items(), tally.end(Tier(tiers - 1)) if tiers else 0))
        if len(served) < len(wanted):
            config, node = self._config, self._quota.is_node_full
            limit = f"--node-limit {config.node_limit}" if node else f"--namespace-limit {config.namespace_limit}"
            tally.complaints.append(
                f"{len(served)} of {len(wanted)} virtual servers are served:"
                f" the Services of the {'node' if node else 'namespace'} are larger than {limit}"
            )
        return served

    def plan_next(self) -> tuple[list[str], Dirty]:
        """Plan the Services that come next of those that have changed; return them, and what that may change."""
        now = self._clock()
        for key in self.store.take_dirty():
            self._turns.add(key, self._size(key), now)
        keys = self._turns.take()
        touched = self.plan(keys)
        self._plan_again(keys, touched)
        return keys, touched

    def plan_all(self, keys: Collection[str], between: Callable[[], None] = lambda: None) -> Dirty:
        """Plan Services, whatever it takes; `between` is called now and then."""
        touched = Dirty()
        while keys:
            for part in self._slices(keys):
                touched.update(self.plan(part))
                self._plan_again(part, touched)
                between()
            keys = self.store.take_dirty()
        return touched

    def _slices(self, keys: Iterable[str]) -> Iterator[list[str]]:
        part: list[str] = []
        left = self._turns.size
        for key in keys:
            size = self._size(key)
            if part and size > left:
                yield part
                part, left = [], self._turns.size
            part.append(key)
            left -= size
        if part:
            yield part

    def _plan_again(self, planned: Collection[str], touched: Dirty) -> None:
        """Plan those of which another part is served now, before the kernel is told; later if it is too much."""
        changed = self._quota.settle()
        if not changed:
            return
        if sum(map(self._size, changed)) <= SLICE + sum(map(self._size, planned)):
            touched.update(self.plan(changed))
        else:
            self.store.mark(changed)

    @property
    def backlog(self) -> int:
        """The number of Services that have changed and are not planned yet."""
        return len(self._turns) + self.store.dirty

    def _size(self, key: str) -> int:
        """Return about how much work a Service is: what it was, or may be."""
        service = self.store.services.get(key)
        if service is None:
            return self._quota.size(key)
        addresses, endpoints = len(self._facts.nodeport_addresses), self.store.count_endpoints(key)
        return min(largest_size(service, addresses, endpoints), self._config.service_limit or NO_LIMIT)

    def _report_refusals(self, key: str, refusals: Sequence[AddressRefusal]) -> None:
        """Say once which addresses a Service does not get: one line and one Event, however many there are."""
        found = tuple(refusals)
        if found == self._refused.get(key, ()):
            return
        self._refused[key] = found
        if not found:
            del self._refused[key]
            return
        self._report_texts(key, messages.ADDRESSES_REFUSED, "addresses", list(map(str, found)))

    def _report_texts(self, key: str, message: str, what: str, texts: Sequence[str]) -> None:
        """Report what a Service does not get in one line and one Event: the first few, and how many there are."""
        listed, more = list(texts[:MOST_LISTED]), len(texts) - MOST_LISTED
        self._warn(key, message, count=len(texts), **{what: listed})
        self.report_refused(key, "; ".join(listed + ([f"and {more} more"] if more > 0 else [])))

    def _report_other_nodes(self, services: int) -> None:
        """Log once for all Services that load balancers list nodes, of which each one serves its own addresses."""
        if services and not self._reported_nodes:
            self._reported_nodes = True
            log.info(messages.NODE_ADDRESSES_IGNORED, services=services)

    def _report_complaints(self, key: str, complaints: Sequence[str]) -> None:
        """Report once what a Service does not get since it asks for too much."""
        before = frozenset(self._complaints.pop(key, ()))
        if complaints:
            self._complaints[key] = tuple(dict.fromkeys(complaints))  # both families may have one
        for complaint in self._complaints.get(key, ()):
            if complaint not in before:
                self._warn(key, messages.SERVED_IN_PART, reason=complaint)
                self.report_refused(key, complaint)

    def _report_local(self, key: str, view: LocalView | None) -> None:
        if view is not None:
            self._local.add(key)
        elif key in self._local:
            self._local.remove(key)
        else:
            return
        self._report.local(key, view)

    def guards_of_leaving(self, vips: Iterable[Vip]) -> dict[ElementKey, Value]:
        """Return guards for VIPs that are there and not wanted, but not for those that another link holds, too."""
        mine = (vip.address for vip in vips if vip.address not in self._facts.link_addresses)
        return {slot: "" for address in mine if self.ledger.vip(address) is None for slot in guards(address)}

    def stages(self) -> Sequence[list[str]]:
        """Return all Services in the order of a cold start: those that all others wait for come first."""
        keys = self.store.take_dirty()
        first = [key for key in keys if key in self.store.services and is_urgent(self.store.services[key])]
        urgent = frozenset(first)
        return first, [key for key in keys if key not in urgent]

    def _report_conflicts(self) -> None:
        """Report once what a Service claims and does not get."""
        for key, found in self.ledger.take_new_conflicts().items():
            texts = [f"{frontend} is held by the Service {holder}" for frontend, holder in sorted(found.items())]
            self._report_texts(key, "Found frontends of a Service taken by other Services", "frontends", texts)

    def _warn(self, key: str, text: str, **more: object) -> None:
        """Log a line about a Service, unless its namespace has had too many."""
        namespace = namespace_of(key)
        if self._lines.take(namespace):
            log.warning(text, service=key, **more)
            self._report_withheld({namespace: self._lines.take_withheld(namespace)})

    def report_withheld(self) -> None:
        """Log how many lines were withheld."""
        self._report_withheld(self._lines.take_all_withheld())

    def _report_withheld(self, counts: Mapping[str, int]) -> None:
        for namespace, count in counts.items():
            if count:
                log.warning(messages.SERVICE_LINES_SUPPRESSED, namespace=namespace, count=count)

    def report_refused(self, key: str, reason: str) -> None:
        """Report that a Service could not be programmed."""
        service = self.store.services.get(key)
        self._report.refused(service_subject(key, service.uid if service else ""), reason)


def _fixed(node: NodeFacts, config: Config) -> dict[ElementKey, Value]:
    """Return the elements that depend on the node alone."""
    senders = dict(sender_elements(node.senders)) if config.suppress_vip_arp else {}
    return {**dict(detector_elements(node.pod_cidrs, node.pod_interfaces)), **senders}


def is_urgent(service: Service) -> bool:
    """Whether other programs cannot start without this Service: the API server's own, and DNS.

    But none with addresses from outside: an older Service, not planned yet, may hold the same.
    """
    if service.external_ips or service.load_balancer_ips:
        return False
    return service.key == API_SERVER or any(
        p.port == DNS_PORT and p.protocol is Protocol.UDP for p in service.ports
    )
