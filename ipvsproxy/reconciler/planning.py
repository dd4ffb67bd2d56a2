"""Planning: which Services are planned next, within which limits, and what follows for the ledger.

In: the objects and the facts of the node. Out: a changed ledger, and the names of what that may change in the
kernel. Belongs to the loop's thread.
"""

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice

from msgspec.structs import replace

from ipvsproxy.base.address import format_ip
from ipvsproxy.base.names import DNS_PORT
from ipvsproxy.config import Config, DataPath, TenantRefusal, annotations
from ipvsproxy.config.annotation_values import ONE_FOR_ALL_PORTS
from ipvsproxy.kube.store import Store
from ipvsproxy.plan.balance import UNWEIGHTED
from ipvsproxy.plan.ledger import Ledger
from ipvsproxy.plan.local import local_view
from ipvsproxy.plan.localhost import localhost_ports
from ipvsproxy.plan.model import EndpointSlice, Protocol, Service
from ipvsproxy.plan.path import path_of_service
from ipvsproxy.plan.planner import plan_service
from ipvsproxy.plan.planning_order import SLICE, PlanningOrder
from ipvsproxy.plan.quota import Quota
from ipvsproxy.plan.safety import LISTS_NODES, judge
from ipvsproxy.plan.schedulers import Schedulers, modules_of
from ipvsproxy.plan.slow_start import SlowStarts
from ipvsproxy.plan.state import SHORT_PATH, Dirty, Frontend, FrontendKey, GroupAdmission
from ipvsproxy.plan.tally import ALL_TIERS, Tally, Tier, largest_size
from ipvsproxy.plan.tenant_dns import with_views
from ipvsproxy.plan.waiting import RankedService
from ipvsproxy.reconciler.node_state import API_SERVER, NodeState
from ipvsproxy.reconciler.service_reports import ServiceReports
from ipvsproxy.ruleset.schema import SHARED_GROUP

UDP = Protocol.UDP
NAMED = 5
"""Addresses that a complaint names."""


class Planning:
    """The Services that have changed, and the limits on all of them."""

    def __init__(  # noqa: PLR0913 - what planning needs to know
        self,
        config: Config,
        store: Store,
        ledger: Ledger,
        node: NodeState,
        reports: ServiceReports,
        schedulers: Schedulers,
        clock: Callable[[], float],
    ) -> None:
        self._config = config
        self._store = store
        self._ledger = ledger
        self._node = node
        self._reports = reports
        self._schedulers = schedulers
        self._localhost_families = config.localhost_families
        self._clock = clock
        self.slow_starts = SlowStarts()
        self._defaults = annotations.defaults(config.service_defaults)
        self._quota = Quota(config.namespace_limit, config.node_limit)
        self._turns = PlanningOrder()
        self._port_claims = store.addresses.ports
        self._asking: set[str] = set()
        self._dns_of_tenants: set[str] = set()
        self._drops = config.tenant_refusal is TenantRefusal.DROP

    @property
    def backlog(self) -> int:
        """The number of Services that have changed and are not planned yet."""
        return len(self._turns) + self._store.dirty

    def plan(self, keys: Collection[str]) -> Dirty:
        """Plan some Services anew and return what that may change."""
        touched, listing_nodes = Dirty(), 0
        self._node.follow_ports()
        for key in keys:
            service = self._store.services.get(key)
            if service is None:
                self._ledger.forget(key, touched)
                self._quota.forget(key)
                self._reports.forget(key)
                self.slow_starts.forget(key)
                if key in self._port_claims.by_service:
                    self._claim_ports(RankedService("", key), {})
            else:
                listing_nodes += self._plan_service(key, service, touched)
        if self._store.has_tenants:
            listing_nodes += self._plan_cluster_dns_again(keys, touched)
        self._reports.nodes_listed(listing_nodes)
        self._reports.conflicts(self._ledger.take_new_conflicts())
        return touched

    def _plan_service(self, key: str, service: Service, touched: Dirty) -> bool:
        """Plan one Service; return whether its load balancer lists nodes."""
        config, node, reports = self._config, self._node.facts, self._reports
        slices: Sequence[EndpointSlice] = self._store.slices(key)
        service = service.with_defaults(self._defaults) if self._defaults else service
        if self._store.dns_of_tenants and self._is_cluster_dns(key):
            # What a view leads away is not judged by the endpoints of this Service only with IPVS.
            service = replace(service, data_path=DataPath.IPVS)
        tally = Tally(config.service_limit)
        if self._store.has_tenants:
            slices, foreign = self._store.tenants.own_endpoints(service, slices)
            tally.complaints += _of_other_tenants(foreign)
            service = self._open_ranges(service, tally)
        is_known = True
        asks = service.scheduler or service.affinity_engine
        if asks and not (self._schedulers.lacks_some(service) and self._needs_no_server(service, slices)):
            service, lacking, is_known = self._schedulers.usable(service)
            tally.complaints += lacking
        refusals = judge(service, node, config, self._store.addresses)
        steps = self._steps(key, service, slices) if service.slow_start_seconds or self.slow_starts else None
        wanted = plan_service(service, slices, node, config, tally, refusals, steps)
        owner = RankedService(service.created, key)
        self._quota.set(owner, tally.sizes)
        wanted = self._within_quota(key, wanted, tally)
        if self._store.has_tenants:
            wanted = self._for_tenants(service, wanted)
        if service.port_ranges or service.affinity_scope or key in self._port_claims.by_service:
            self._claim_ports(owner, wanted if _asks_for_ranges(service) else {})
        self._ledger.replace(owner, wanted, touched)
        reports.local(key, local_view(service, slices, wanted, node.name))
        if self._localhost_families:
            reports.localhost_ports(key, localhost_ports(service, self._localhost_families))
        reports.addresses(key, refusals)
        if is_known:
            reports.complaints(key, tally.complaints)
        reports.misused(key, service.misused, slices)
        return bool(refusals) and any(refusal.reason == LISTS_NODES for refusal in refusals)

    def _needs_no_server(self, service: Service, slices: Sequence[EndpointSlice]) -> bool:
        """Whether all of a Service takes the short path, so that the kernel's schedulers do not matter."""
        config = self._config
        scheduler = service.scheduler or config.scheduler
        if path_of_service(service, config.data_path, scheduler, config.detect_local_mode).path is not SHORT_PATH:
            return False
        wanted = plan_service(service, slices, self._node.facts, config)
        return all(frontend.path is SHORT_PATH for frontend in wanted.values())

    def _steps(self, key: str, service: Service, slices: Sequence[EndpointSlice]) -> Mapping[bytes, int] | None:
        """Return the steps of endpoints with a slow start, None where the Service has none."""
        if service.slow_start_seconds and (service.scheduler or self._config.scheduler) not in UNWEIGHTED:
            return self.slow_starts.steps(service, slices, self._node.facts.zone, self._clock())
        self.slow_starts.forget(key)
        return None

    def schedulers_of_services(self) -> set[str]:
        """Return the schedulers, and engines, that Services ask for, or get by a default of the node."""
        return {module for service in self._store.services.values() for module in self._modules_of(service)}

    def services_with(self, schedulers: AbstractSet[str]) -> Iterator[str]:
        """Yield the Services that ask for one of some schedulers, or get it by a default of the node."""
        for key, service in self._store.services.items():
            if not schedulers.isdisjoint(self._modules_of(service)):
                yield key

    def _for_tenants(self, service: Service, wanted: dict[FrontendKey, Frontend]) -> dict[FrontendKey, Frontend]:
        """Return the frontends of a Service with what depends on the group of who connects."""
        groups = self._store.tenants.admitted(service)
        if groups is None:
            return self._with_dns_of_tenants(wanted) if self._is_cluster_dns(service.key) else wanted
        admission = GroupAdmission(groups, self._drops)
        return {key: replace(frontend, admission=admission) for key, frontend in wanted.items()}

    def _open_ranges(self, service: Service, tally: Tally) -> Service:
        """Return a Service without ranges of ports if not every pod may connect: groups are by single ports."""
        if not _asks_for_ranges(service) or self._store.tenants.admitted(service) is None:
            return service
        what = "port ranges are not served" if service.port_ranges else "each port has an affinity of its own"
        tally.complaints.append(f"{what}: only pods of some tenants may connect to the Service")
        return replace(service, port_ranges=(), affinity_scope="")

    def _claim_ports(self, owner: RankedService, ranged: Mapping[FrontendKey, Frontend]) -> None:
        """Keep others from ports in ranges that a Service gets, and from no more than these."""
        self._asking |= self._store.addresses.claim_ports(owner, ranged.values())

    def _is_cluster_dns(self, key: str) -> bool:
        return bool(self._store.tenants) and key == self._config.cluster_dns

    def _with_dns_of_tenants(self, wanted: dict[FrontendKey, Frontend]) -> dict[FrontendKey, Frontend]:
        """Return the frontends of the cluster's DNS with views that lead pods of tenants to their own."""
        services, tenants = self._store.services, self._store.tenants
        servers: dict[int, Service] = {}
        for service in sorted(map(services.__getitem__, self._store.dns_of_tenants), key=_age):
            group = tenants.group(tenants.tenant(service.namespace) or "")
            if group not in (None, SHARED_GROUP):
                servers.setdefault(group, service)
        falls_back = self._config.tenant_dns_fallback
        return with_views(wanted, servers, self._ledger.frontends, falls_back=falls_back)

    def _plan_cluster_dns_again(self, keys: Collection[str], touched: Dirty) -> bool:
        """Plan the cluster's DNS when the DNS of a tenant has been planned, or is gone.

        At once, so that no view leads to what this very change takes away. Returns what `_plan_service` does.
        """
        own, key = self._store.dns_of_tenants, self._config.cluster_dns
        if self._dns_of_tenants.isdisjoint(keys) and not any(name in own for name in keys):
            return False
        self._dns_of_tenants = set(own)
        service = self._store.services.get(key)
        return service is not None and self._plan_service(key, service, touched)

    def _modules_of(self, service: Service) -> Iterator[str]:
        return modules_of(service.with_defaults(self._defaults) if self._defaults else service)

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

    def plan_next(self, now: float) -> tuple[list[str], Dirty]:
        """Plan the Services that come next of those that have changed; return them, and what that may change."""
        self._store.mark(self.slow_starts.due(now))
        for key in self._store.take_dirty():
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
            keys = self._store.take_dirty()
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
        """Plan those of which another part is served now, before the kernel is; later if it is too much.

        They are what limits leave out, and those that ask for ports in ranges which another Service got or lost.
        """
        changed = self._quota.settle()
        if self._asking:
            changed = list(dict.fromkeys((*changed, *sorted(self._asking))))
            self._asking.clear()
        if not changed:
            return
        if sum(map(self._size, changed)) <= SLICE + sum(map(self._size, planned)):
            touched.update(self.plan(changed))
        else:
            self._store.mark(changed)
        self._store.mark(self._asking)
        self._asking.clear()

    def _size(self, key: str) -> int:
        """Return about how much work a Service is: what it was, or may be."""
        service = self._store.services.get(key)
        if service is None:
            return self._quota.size(key)
        addresses, endpoints = len(self._node.facts.nodeport_addresses), self._store.count_endpoints(key)
        size, limit = largest_size(service, addresses, endpoints), self._config.service_limit
        return limit if limit and size > limit else size


def _asks_for_ranges(service: Service) -> bool:
    """Whether a Service may get a server for several ports."""
    return bool(service.port_ranges) or service.affinity_scope == ONE_FOR_ALL_PORTS


def _age(service: Service) -> tuple[str, str]:
    """The oldest of several Services counts, by creation time, then by name."""
    return service.created, service.key


def _of_other_tenants(endpoints: Sequence[bytes]) -> list[str]:
    """Return the complaint about endpoints that are pods of other tenants."""
    if not endpoints:
        return []
    names, more = ", ".join(map(format_ip, endpoints[:NAMED])), len(endpoints) - NAMED
    return [f"endpoints that are pods of other tenants get nothing: {names}{f' and {more} more' * (more > 0)}"]


def is_urgent(key: str, service: Service) -> bool:
    """Whether other programs cannot start without this Service: the API server's own, and DNS.

    But none with addresses from outside: an older Service, not planned yet, may hold the same.
    """
    if service.external_ips or service.load_balancer_ips:
        return False
    return key == API_SERVER or any(p.port == DNS_PORT and p.protocol is UDP for p in service.ports)
