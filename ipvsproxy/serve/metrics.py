"""Prometheus metrics: kube-proxy's names, labels and buckets, and our own under the prefix `ipvsproxy_`.

The one importer of prometheus_client. Dashboards and alerts for kube-proxy work unchanged (contract 5.4); what has
no meaning here (iptables-only, Go runtime) is absent. The registry is our own, so two of them can live in a test.
"""

import time
from collections.abc import Iterable, Iterator, Mapping
from importlib.metadata import version

import prometheus_client
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector

from ipvsproxy.exchange.report import Sync
from ipvsproxy.plan.local import EXTERNAL, INTERNAL
from ipvsproxy.serve.health import FAMILY_NAMES
from ipvsproxy.serve.refusals import Refusals
from ipvsproxy.serve.traffic import Traffic, TrafficSeries

SYNC_BUCKETS = tuple(0.001 * 2**n for n in range(15))
PROGRAMMING_BUCKETS = (0.25, 0.5, *range(1, 60), *range(60, 120, 5), *range(120, 301, 30))
REQUEST_BUCKETS = (0.005, 0.025, 0.1, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 30.0, 60.0)
FAMILY = ("ip_family",)
SYNC = "kubeproxy_sync_proxy_rules_"

# Go's client has no "_created" series beside counters and histograms, and scrapers do not expect them.
prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]


class Metrics:
    """All metrics of a process; every method returns within microseconds."""

    def __init__(self, families: Iterable[int]) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        self._names = {number: FAMILY_NAMES[number] for number in families}
        self._make_upstream()
        self._make_client()
        self._make_own()

    def _make_upstream(self) -> None:
        """The names of kube-proxy."""
        self._duration = self._histograms(f"{SYNC}duration_seconds", "Time of a sync", SYNC_BUCKETS)
        self._programming = self._histograms(
            "kubeproxy_network_programming_duration_seconds",
            "Time from a change of a pod or Service to its being in the kernel",
            PROGRAMMING_BUCKETS,
        )
        self._last = self._gauges(f"{SYNC}last_timestamp_seconds", "Last successful sync")
        self._last_queued = self._gauges(f"{SYNC}last_queued_timestamp_seconds", "Last time work came in")
        self._changes_total = {
            "EndpointSlice": self._counter(f"{SYNC}endpoint_changes_total", "Events of EndpointSlices"),
            "Service": self._counter(f"{SYNC}service_changes_total", "Events of Services, for each family"),
        }
        self._changes_pending = {
            "EndpointSlice": self._gauge(f"{SYNC}endpoint_changes_pending", "Of these, since the last sync"),
            "Service": self._gauge(f"{SYNC}service_changes_pending", "Of these, since the last sync"),
        }
        self._rules_failed = self._counters(
            f"{SYNC}iptables_restore_failures_total", "Rule transactions that were refused (of nftables, here)"
        )
        self._probes = {
            "/healthz": self._counter("kubeproxy_proxy_healthz_total", "Answers of /healthz", ("code",)),
            "/livez": self._counter("kubeproxy_proxy_livez_total", "Answers of /livez", ("code",)),
        }
        help_text = "Services with a Local policy that have endpoints, but none on this node"
        labels = ("traffic_policy", "ip_family")
        self._lacking = self._gauge(f"{SYNC}no_local_endpoints_total", help_text, labels)
        for policy in (INTERNAL, EXTERNAL):
            for name in self._names.values():
                self._lacking.labels(policy, name)

        prefix = "kubeproxy_conntrack_reconciler_"
        self._sweeps = self._histograms(
            f"{prefix}sync_duration_seconds", "Time of a sweep of conntrack", SYNC_BUCKETS
        )
        self._swept = self._counters(f"{prefix}deleted_entries_total", "Stale conntrack entries deleted")

    def _make_client(self) -> None:
        """The names of the API client that all components of Kubernetes have."""
        self._requests = self._counter(
            "rest_client_requests_total", "Requests to the API server", ("code", "host", "method")
        )
        self._request_time = self._histogram(
            "rest_client_request_duration_seconds", "Time to response headers", ("host", "verb"), REQUEST_BUCKETS
        )

    def _make_own(self) -> None:
        self._gauge("ipvsproxy_build_info", "Always 1", ("version",)).labels(version("ipvsproxy")).set(1)
        self._services = self._gauge("ipvsproxy_services", "Services that are proxied")
        self._frontends = self._gauge("ipvsproxy_frontends", "Virtual servers that are wanted")
        self._draining = self._gauge("ipvsproxy_draining_frontends", "Frontends with endpoints that drain")
        self._leaving = self._gauge("ipvsproxy_draining_destinations", "Endpoints that drain, in each frontend")
        self._drain_timeouts = (
            self._counter(
                "ipvsproxy_drain_timeouts_total",
                "Draining endpoints deleted with connections at the drain timeout",
            ),
            self._counter("ipvsproxy_forced_drain_ends_total", "Deprecated: ipvsproxy_drain_timeouts_total"),
        )
        self._pending = self._gauge("ipvsproxy_pending_objects", "Kernel objects that failed and are tried again")
        self._limited = self._gauge("ipvsproxy_limited_services", "Services above a limit, served in part")
        self._kernel_changes = self._counter("ipvsproxy_kernel_changes_total", "Changes made to the kernel")
        self._failures = self._counter("ipvsproxy_sync_failures_total", "Syncs that could not be done at all")
        self._refusals = self._counter("ipvsproxy_service_failures_total", "Services refused by the kernel")
        self._repairs = self._counter("ipvsproxy_repairs_total", "Kernel objects repaired")
        self._contested = self._gauge("ipvsproxy_contested", "1 while another program undoes what is repaired")
        self._health_ports = self._gauge("ipvsproxy_health_check_ports", "Services with a healthCheckNodePort")
        self._notices = self._counter("ipvsproxy_events_total", "Events by what became of them", ("result",))

    def show_traffic(self, traffic: Traffic) -> None:
        """Show counters of single Services and endpoints from now on."""
        self.registry.register(_TrafficCollector(traffic))

    def show_refusals(self, refusals: Refusals) -> None:
        """Show how many connections of pods of each tenant were refused."""
        self.registry.register(_RefusalsCollector(refusals))

    def exposition(self, accept: str) -> tuple[bytes, str]:
        """Return all metrics in the format that an Accept header asks for, and its content type."""
        encode, content_type = choose_encoder(accept)
        return encode(self.registry), content_type

    def received(self, kind: str, objects: int) -> None:
        """Count objects that events brought; Services count once for each family, as upstream."""
        if kind in self._changes_total:
            count = objects * (len(self._names) if kind == "Service" else 1)
            self._changes_total[kind].inc(count)
            self._changes_pending[kind].inc(count)

    def queued(self) -> None:
        """Work has come in."""
        now = time.time()
        for gauge in self._last_queued.values():
            gauge.set(now)

    def synced(self, sync: Sync, triggers: Iterable[float]) -> None:
        """A turn has ended; `triggers` are the moments at which the changes in it began."""
        now = time.time()
        for number in self._names.keys() - sync.behind:
            self._last[number].set(now)
            self._duration[number].observe(sync.seconds)
        for number in self._names.keys() & sync.behind:
            self._rules_failed[number].inc()
        for triggered in triggers:
            for histogram in self._programming.values():
                histogram.observe(max(0.0, now - triggered))
        if not sync.behind:
            for gauge in self._changes_pending.values():
                gauge.set(0)
        self._services.set(sync.services)
        self._frontends.set(sync.frontends)
        self._draining.set(sync.draining)
        self._leaving.set(sync.draining_destinations)
        self._pending.set(sync.pending)
        self._limited.set(sync.limited)
        self._kernel_changes.inc(sync.changes)

    def failed(self) -> None:
        """A sync could not be done at all."""
        self._failures.inc()

    def refused(self) -> None:
        """A Service could not be programmed."""
        self._refusals.inc()

    def drains_forced(self, destinations: int) -> None:
        """Draining destinations were deleted with their connections."""
        for counter in self._drain_timeouts:
            counter.inc(destinations)

    def swept(self, family: int, seconds: float, deleted: int) -> None:
        """Conntrack was searched for stale entries of a family."""
        if family in self._names:
            self._sweeps[family].observe(seconds)
            self._swept[family].inc(deleted)

    def repaired(self, objects: int) -> None:
        """Objects in the kernel had been changed by other programs."""
        self._repairs.inc(objects)

    def contested(self, is_contended: bool) -> None:
        """Another program undoes what is repaired, or does so no more."""
        self._contested.set(is_contended)

    def lacking(self, counts: Mapping[tuple[str, int], int]) -> None:
        """Set the number of Services without a usable endpoint here, by (policy, family)."""
        for (policy, number), count in counts.items():
            if number in self._names:
                self._lacking.labels(policy, self._names[number]).set(count)

    def health_ports(self, count: int) -> None:
        """Set the number of Services with a health-check port."""
        self._health_ports.set(count)

    def probed(self, path: str, status: int) -> None:
        """Count an answer of the health server."""
        self._probes[path].labels(str(status)).inc()

    def requested(self, verb: str, host: str, code: str, seconds: float) -> None:
        """Count a request to the API server; `code` is `<error>` when there was no answer."""
        self._requests.labels(code, host, verb).inc()
        self._request_time.labels(host, verb).observe(seconds)

    def noticed(self, result: str) -> None:
        """Count an event: sent, dropped or failed."""
        self._notices.labels(result).inc()

    def _counter(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(name, help_text, labels, registry=self.registry)

    def _gauge(self, name: str, help_text: str, labels: tuple[str, ...] = ()) -> Gauge:
        return Gauge(name, help_text, labels, registry=self.registry)

    def _histogram(
        self, name: str, help_text: str, labels: tuple[str, ...], buckets: tuple[float, ...]
    ) -> Histogram:
        return Histogram(name, help_text, labels, registry=self.registry, buckets=buckets)

    # One child for each family, made at once, so that a scrape shows zeros from the beginning.

    def _counters(self, name: str, help_text: str) -> dict[int, Counter]:
        metric = self._counter(name, help_text, FAMILY)
        return {number: metric.labels(text) for number, text in self._names.items()}

    def _gauges(self, name: str, help_text: str) -> dict[int, Gauge]:
        metric = self._gauge(name, help_text, FAMILY)
        return {number: metric.labels(text) for number, text in self._names.items()}

    def _histograms(self, name: str, help_text: str, buckets: tuple[float, ...]) -> dict[int, Histogram]:
        metric = self._histogram(name, help_text, FAMILY, buckets)
        return {number: metric.labels(text) for number, text in self._names.items()}


class _TrafficCollector(Collector):
    """Counters of single Services and endpoints, asked for at each scrape."""

    def __init__(self, traffic: Traffic) -> None:
        self._traffic = traffic

    def describe(self) -> list[Metric]:
        """Name nothing beforehand, so that registering asks no kernel."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield all counters as they are now."""
        series = self._traffic.series()
        wholes = [item for item in series if not item.endpoint]
        parts = [item for item in series if item.endpoint]
        yield from _counted("service", ("namespace", "service", "frontend"), wholes)
        yield from _counted("endpoint", ("namespace", "service", "frontend", "endpoint"), parts)
        name, seconds = "ipvsproxy_traffic_scrape_duration_seconds", self._traffic.seconds
        yield GaugeMetricFamily(name, "Time that the last reading of these counters took", value=seconds)
        yield GaugeMetricFamily("ipvsproxy_traffic_reading_seconds", f"Deprecated: {name}", value=seconds)


class _RefusalsCollector(Collector):
    """Refused connections of pods by their tenants, asked for at each scrape."""

    def __init__(self, refusals: Refusals) -> None:
        self._refusals = refusals

    def describe(self) -> list[Metric]:
        """Name nothing beforehand, so that registering asks no kernel."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Yield both counters as they are now."""
        name, what = "ipvsproxy_tenant_refused_connections", "refused connections to Services of others"
        refused = CounterMetricFamily(name, f"Pods of each tenant: {what}", labels=("tenant",))
        for tenant, count in sorted(self._refusals.by_tenant().items()):
            refused.add_metric((tenant,), count)
        yield refused
        name, count = "ipvsproxy_unknown_pod_refused_connections", self._refusals.of_unknown
        yield CounterMetricFamily(
            name, "Pods that are not known yet: dropped connections to Services of tenants", count
        )


def _counted(what: str, labels: tuple[str, ...], series: Iterable[TrafficSeries]) -> Iterator[Metric]:
    name, of = f"ipvsproxy_{what}", f"of each {what}, on each of its frontends"
    opened = CounterMetricFamily(f"{name}_connections", f"Connections {of}", labels=labels)
    packets = CounterMetricFamily(f"{name}_packets", f"Packets {of}", labels=(*labels, "direction"))
    octets = CounterMetricFamily(f"{name}_bytes", f"Bytes {of}", labels=(*labels, "direction"))
    now = GaugeMetricFamily(f"{name}_current_connections", f"Connections now {of}", labels=(*labels, "state"))
    for item in series:
        values, counters = item.labels, item.counters
        opened.add_metric(values, counters.connections)
        packets.add_metric((*values, "in"), counters.in_packets)
        packets.add_metric((*values, "out"), counters.out_packets)
        octets.add_metric((*values, "in"), counters.in_bytes)
        octets.add_metric((*values, "out"), counters.out_bytes)
        now.add_metric((*values, "active"), item.active)
        now.add_metric((*values, "inactive"), item.inactive)
    yield from (opened, packets, octets, now)
