"""What this node should have: the objects as they are now, planned with the facts about the node.

Everything between the inbox and the comparison with the kernel, without the kernel. In: events and the node's
addresses. Out: the ledger, and the names of what has changed in it. Owned by the loop's thread.
"""

import time
from collections.abc import Callable, Collection, Container, Iterable, Mapping, Sequence

from ipvsproxy.config import Config, TenantPods
from ipvsproxy.exchange.inbox import Changed, Kind, Listed, Removed
from ipvsproxy.exchange.report import LookUps, Report
from ipvsproxy.kube.store import Store
from ipvsproxy.plan.addresses import OtherNodeAddresses
from ipvsproxy.plan.affected import services_affected
from ipvsproxy.plan.diff import Steps, diff
from ipvsproxy.plan.host_ports import Port
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.model import EndpointSlice, Node, Service
from ipvsproxy.plan.node import Missing, NodeFacts, Reserved
from ipvsproxy.plan.rules import audience_element, refusals_element, served_by_rules
from ipvsproxy.plan.safety import has_external_ips
from ipvsproxy.plan.schedulers import Schedulers
from ipvsproxy.plan.state import Destination, Dirty, Frontend, FrontendKey, KernelState, ServerState, Vip
from ipvsproxy.plan.tenants import Tenants
from ipvsproxy.reconciler.node_state import API_SERVER, NodeState, log_missing
from ipvsproxy.reconciler.planning import Planning, is_urgent
from ipvsproxy.reconciler.service_reports import ServiceReports
from ipvsproxy.ruleset.elements import ElementKey, Value, guards


class WantedState:
    """The wanted state of the node and what it follows from.

    `left_groups` are elements of addresses that have left a group, as long as the kernel may have them.
    `ask` asks for a look at the addresses of other nodes and returns its ticket (`plan.addresses.Neighbours`).
    """

    def __init__(
        self,
        config: Config,
        report: Report,
        ask: Callable[[], int] | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_missing: Callable[[Missing], None] = log_missing,
    ) -> None:
        self._store = Store(
            config.node_name,
            awaits_neighbours=ask is not None,
            tenant_label=config.tenant_label,
            always_shared=(API_SERVER, config.cluster_dns),
            all_pods=config.tenant_pods is TenantPods.ALL,
        )
        self._ask = ask
        self._report = report
        self._ledger = Ledger(config.vip_mode)
        self._node = NodeState(config, report, self._store, on_missing)
        self._reports = ServiceReports(report, clock, self._store.services)
        self.left_groups: set[ElementKey] = set()
        self._fixed: dict[ElementKey, Value] = {}
        self.schedulers = Schedulers(config.scheduler)
        self._planning = Planning(
            config, self._store, self._ledger, self._node, self._reports, self.schedulers, clock
        )
        ledger, tenants = self._ledger, self._store.tenants
        report.look_ups(
            LookUps(
                ledger.holders, ledger.in_maintenance, tenants.names, tenants.by_namespace, ledger.path_reasons
            )
        )

    # The objects, and what the node is.

    @property
    def is_listed(self) -> bool:
        """Whether each kind of object has been listed once: nothing is programmed before (contract 4.1)."""
        return self._store.synced

    @property
    def lacks_rights_only(self) -> bool:
        """Whether each kind has been listed once, but those which the API server refuses."""
        return self._store.lacks_rights_only

    def right_refused(self, kind: Kind) -> None:
        """Record that the API server refuses the right to list a kind, which matters until it can be listed."""
        self._store.right_refused(kind)
        self._report_rights()

    def _report_rights(self) -> None:
        self._report.lacking_rights(sorted(self._store.refused))

    @property
    def services(self) -> Mapping[str, Service]:
        """All Services by `namespace/name`."""
        return self._store.services

    def slices(self, service: str) -> Iterable[EndpointSlice]:
        """Return the slices of a Service in the order of their names."""
        return self._store.slices(service)

    @property
    def node(self) -> Node | None:
        """Our Node object."""
        return self._store.node

    @property
    def facts(self) -> NodeFacts:
        """The facts of the node as they were last seen."""
        return self._node.facts

    @property
    def missing_node(self) -> Missing | None:
        """What there was in place of our Node when it was missed first; None when it is there."""
        return self._node.missing

    # What is wanted.

    @property
    def frontends(self) -> Mapping[FrontendKey, Frontend]:
        """All wanted frontends."""
        return self._ledger.frontends

    @property
    def elements(self) -> Mapping[ElementKey, Value]:
        """All wanted elements of the ruleset."""
        return self._ledger.elements

    def vip(self, address: bytes) -> Vip | None:
        """Return a VIP in the form it should have, or None when it is not wanted."""
        return self._ledger.vip(address)

    def everything(self) -> Dirty:
        """Name all that is wanted."""
        return self._ledger.everything()

    def owner(self, key: FrontendKey) -> str:
        """Return `namespace/name` of the Service that holds a frontend."""
        return self._ledger.owner(key)

    def in_maintenance(self) -> Mapping[FrontendKey, frozenset[Destination]]:
        """Return, by frontend, the destinations that are wanted and get no new connections."""
        return self._ledger.in_maintenance()

    def path_reasons(self) -> Mapping[FrontendKey, str]:
        """Return, by frontend, why those are not on the short path that were to be."""
        return self._ledger.path_reasons()

    def conflicts(self, service: str) -> Mapping[FrontendKey, str]:
        """Return the frontends that a Service claims and does not hold, with the Service that does."""
        return self._ledger.conflicts(service)

    def steps(self, touched: Dirty, shadow: KernelState, protected: Callable[[FrontendKey], bool]) -> Steps:
        """Return the steps that make the touched part of the shadow as wanted (`plan.diff`)."""
        return diff(touched, self._ledger, shadow, protected)

    # What has changed.

    def apply(self, event: Listed | Changed | Removed) -> bool:
        """Record what an event reports of an object, and return whether anything is different now."""
        was_refused = type(event) is Listed and event.kind in self._store.refused
        different = self._store.apply(event)
        if was_refused:
            self._report_rights()
        return different

    def other_nodes(self, seen: OtherNodeAddresses) -> None:
        """Record what a look at the Nodes of the cluster has found."""
        self._store.neighbours(seen)

    def api_servers(self, servers: Iterable[tuple[bytes, int]]) -> None:
        """Record by which addresses and ports we reach the API server."""
        self._node.api_servers(servers)

    def ask_about_addresses(self) -> None:
        """Ask about addresses of which it is not known yet whether they belong to a node."""
        addresses = self._store.addresses
        if self._ask is not None and (addresses.has_questions or self._store.lacks_other_nodes_only):
            addresses.asked(self._ask())

    def follow_addresses(self) -> None:
        """From now on, have new addresses wait for an answer; those at the start are adopted, or known by now."""
        if self._ask is not None:
            self._store.addresses.looks_up = True
            if self._store.addresses.are_asked_for:
                self._ask()

    @property
    def needs_look_at_node(self) -> bool:
        """Whether `look_at_node` would find something new in the objects."""
        return self._node.has_changed

    def look_at_node(
        self,
        link_addresses: Iterable[bytes],
        reserved: Iterable[Reserved] = (),
        senders: Mapping[str, bytes] | None = None,
    ) -> Dirty:
        """Find the facts of the node again; all Services depend on them and become dirty when they changed."""
        previous = self._node.facts.basic()
        if not self._node.look(link_addresses, reserved, senders):
            return Dirty()
        store = self._store
        if self._node.facts.basic() == previous:
            # New nodes bring new gateways all the time in big clusters.
            store.mark(key for key, found in store.services.items() if has_external_ips(found))
        else:
            self._node.log()
            store.all_dirty()
        before, self._fixed = self._fixed, self._node.elements()
        return self._ledger.set_fixed(self._fixed, before)

    # Groups of sources.

    @property
    def tenants(self) -> Tenants:
        """The tenants, and the groups of sources that they are."""
        return self._store.tenants

    def group_of(self, source: bytes) -> int | None:
        """Return the group of a source, 0 for a local pod that is in none, None for what is no local pod.

        None also for one that has to wait until Services are planned before it joins a group: it is judged then.
        One that waits for the kernel alone is judged by the group that it will join.
        """
        tenants, facts = self._store.tenants, self._node.facts
        if source in facts.link_addresses or not tenants.is_decided(source, planned=not self.backlog):
            return None
        if group := tenants.group_at(source):
            return group
        return 0 if tenants.is_pod(source) or any(source in cidr for cidr in facts.pod_cidrs) else None

    def leave_groups(self) -> tuple[list[bytes], Dirty]:
        """Take addresses out of groups that are not theirs any more; return them, and what that may change."""
        addresses = self._store.tenants.leave()
        slots = [audience_element(address) for address in addresses]
        self.left_groups.update(slots)
        return addresses, self._ledger.set_members({}, slots)

    def join_groups(self, *, settled: bool, behind: Container[int] = ()) -> Dirty:
        """Put addresses into their groups; some have to wait, see `Tenants.join`. New groups are counted."""
        joining = self._store.tenants.join(settled=settled, behind=behind)
        members: dict[ElementKey, Value] = {audience_element(a): group for a, group in joining.items()}
        counted = {refusals_element(g): begun for g, begun in self._store.tenants.take_changed_groups().items()}
        members |= {slot: "" for slot, begun in counted.items() if begun}
        return self._ledger.set_members(members, [slot for slot, begun in counted.items() if not begun])

    def release_groups(self) -> None:
        """Give groups of tenants that are gone to others, whose Services become dirty."""
        self._store.release_groups()

    @property
    def needs_listeners(self) -> bool:
        """Whether a Service asks for a port of which it is not known whether a program listens on it."""
        return self._store.host_ports.has_news

    def listening(self, ports: frozenset[Port]) -> None:
        """Record on which ports programs of this node listen; Services that ask for such a port become dirty."""
        self._store.mark(self._store.host_ports.listening(ports))

    def schedulers_of_services(self) -> set[str]:
        """Return the schedulers that Services ask for, or get by a default of the node."""
        return self._planning.schedulers_of_services()

    def schedulers_found(self, states: Mapping[str, bool]) -> None:
        """Record which schedulers the kernel has; Services for which that makes a difference become dirty."""
        changed = self.schedulers.found(states)
        self._store.mark(self._planning.services_with(changed) if changed else ())

    def unmet(self, service: str) -> tuple[str, ...]:
        """Return what a Service does not get of what it, or its slices, ask for."""
        return self._reports.of(service)

    # Planning.

    @property
    def backlog(self) -> int:
        """The number of Services that have changed and are not planned yet."""
        return self._planning.backlog

    @property
    def limited(self) -> int:
        """The number of Services that are served in part."""
        return self._reports.limited

    @property
    def next_step(self) -> float:
        """When Services are to be planned again since an endpoint of theirs gets more, infinity for never."""
        return self._planning.slow_starts.next

    def remember_weights(self, present: Mapping[FrontendKey, ServerState] | None) -> None:
        """Take from the kernel, as long as that is given, which endpoints have not their whole weight yet."""
        self._planning.slow_starts.remember(present)

    def plan_everything(self) -> None:
        """Plan all Services, whatever it takes."""
        self._store.all_dirty()
        self._planning.plan_all(self._store.take_dirty())

    def plan_next(self, now: float) -> tuple[list[str], Dirty]:
        """Plan the Services that come next of those that have changed; return them, and what that may change."""
        return self._planning.plan_next(now)

    def plan_all(self, keys: Collection[str], between: Callable[[], None]) -> Dirty:
        """Plan Services, whatever it takes; `between` is called now and then."""
        return self._planning.plan_all(keys, between)

    def guards_of_leaving(self, vips: Iterable[Vip]) -> dict[ElementKey, Value]:
        """Return guards for VIPs that are there and not wanted, but not for those that another link holds, too."""
        mine = (vip.address for vip in vips if vip.address not in self._node.facts.link_addresses)
        return {slot: "" for address in mine if self._ledger.vip(address) is None for slot in guards(address)}

    def without_server(self, shadow: KernelState, *, is_new: bool) -> dict[ElementKey, Value]:
        """Return elements that serve frontends by rules whose VIP answers already, until they have their server.

        They have been on the short path, or another program has deleted the server. On a node that `is_new` no
        NodePort answers yet.
        """
        answering = {vip.address for vip in shadow.vips}.union(() if is_new else self._node.facts.link_addresses)
        return served_by_rules(self._ledger.frontends, shadow.servers, answering)

    def take_stages(self) -> Sequence[list[str]]:
        """Return all Services to be planned at a cold start: first those that all others wait for."""
        self._store.all_dirty()
        keys, services = self._store.take_dirty(), self._store.services
        first = [key for key in keys if key in services and is_urgent(key, services[key])]
        urgent = frozenset(first)
        return first, [key for key in keys if key not in urgent]

    def report_failures(self, failed: Dirty) -> None:
        """Report the Services that something has failed for in the kernel."""
        self._reports.affected(services_affected(failed, self._ledger))

    def report_withheld(self) -> None:
        """Log how many lines about Services were left out."""
        self._reports.withheld()
