"""Everything that can be seen of a node, read once into `diagnosis.facts`.

Nothing is changed. What cannot be read (no rights, no kernel, no API) costs only itself: `Facts.unread` says why.
"""

import errno
import time
from collections.abc import Callable, Collection, Iterable, Sequence
from contextlib import closing
from importlib.metadata import version
from typing import NamedTuple, TypeVar

from msgspec.structs import replace

from ipvsproxy.base.address import format_ip, parse_ip
from ipvsproxy.commands import drift
from ipvsproxy.commands.objects import UNKNOWN, Surroundings, are_named, desired, of_this_host
from ipvsproxy.config import Config
from ipvsproxy.config.table import BY_FLAG
from ipvsproxy.diagnosis.facts import (
    Api,
    Dns,
    DnsAnswer,
    ExternalName,
    Facts,
    Host,
    KubeProxy,
    OwnNode,
    SettingsFacts,
)
from ipvsproxy.diagnosis.foreign import is_ours
from ipvsproxy.diagnosis.links import unserved
from ipvsproxy.diagnosis.shape import rules_by_chain
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.inspect.difference import Change
from ipvsproxy.kernel import host
from ipvsproxy.kernel.filters.legacy import read_legacy
from ipvsproxy.kernel.filters.nf_tables import read_chains
from ipvsproxy.kernel.filters.xtables import legacy_leftovers
from ipvsproxy.kernel.instance_lock import InstanceLock
from ipvsproxy.kernel.links import LINK_NAME
from ipvsproxy.kernel.read.connections import Asker, trace
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.kernel.read.survey import as_fact, read_host, read_links, read_processes
from ipvsproxy.kernel.rules import TABLE
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.kube.connection import in_cluster
from ipvsproxy.kube.once import Objects, Unavailable, read_objects
from ipvsproxy.plan.filters import FilterChain
from ipvsproxy.plan.model import Protocol, Service
from ipvsproxy.plan.rules import needed_parts
from ipvsproxy.plan.state import Destination, KernelState
from ipvsproxy.probe.dns import resolve
from ipvsproxy.probe.web import read_proxy
from ipvsproxy.process.other_proxy import signs
from ipvsproxy.reconciler.wanted_state import API_SERVER, DNS_PORT, WantedState
from nft import PARTS, part, ruleset

T = TypeVar("T")
KUBERNETES = "kubernetes.default.svc"
DNS_NAMESPACE, DNS_NAMES = "kube-system", ("kube-dns", "coredns")
EXTERNAL_NAMES_ASKED, NODES_SHOWN = 20, 20
READING = (KernelError, OSError)


class SurveyResult(NamedTuple):
    """The facts, and what they were made from as far as it could be had; `drift` is None where it is not known."""

    facts: Facts
    objects: Objects | None
    desired: WantedState | None
    kernel: KernelState | None
    drift: Sequence[Change] | None = None


def survey(config: Config, cluster_domain: str, origin: str = "") -> SurveyResult:
    """Look at everything; `origin` is where the settings come from."""
    facts = Facts(settings=_settings(config, origin))
    kernel, around = _read_kernel(facts, config)
    objects = _read_objects(facts, config)
    wanted, found = None, None
    if objects is not None:
        wanted = _wanted(facts, config, objects, around)
        if kernel is not None:
            found = drift.differences(config, wanted, kernel)
            found = drift.confirmed(config, found) if facts.holder else found
            facts.drift = tuple(drift.words(found))
        else:
            facts.unread["drift"] = f"the kernel cannot be read: {facts.unread.get('state', 'it has no IPVS')}"
        facts.dns = _dns(wanted, objects, cluster_domain, facts.held_vips)
    facts.proxy = read_proxy(config)
    facts.kube_proxy = _kube_proxy(facts, config)
    return SurveyResult(facts, objects, wanted, kernel, found)


def _kube_proxy(facts: Facts, config: Config) -> KubeProxy:
    ours = (
        facts.proxy is not None and facts.proxy.health != 0 and facts.proxy.is_ours and bool(facts.proxy.metrics)
    )
    return signs(config, facts.processes, ours_runs=bool(facts.holder) or ours)


def _settings(config: Config, origin: str) -> SettingsFacts:
    return SettingsFacts(
        node=config.node_name,
        version=version("ipvsproxy"),
        source=f"the folder {config.manifests}" if config.manifests else "the API server",
        cluster_cidrs=tuple(config.cluster_cidrs),
        mark=config.masquerade_mark,
        scheduler=config.scheduler,
        sync_period=config.sync_period,
        sysctls=dict(host.wanted_sysctls(config)),
        origin=origin,
        flags={name: value for name, value in config.flags if BY_FLAG[name].decides},
    )


def _tried(facts: Facts, what: str, read: Callable[[], T]) -> T | None:
    try:
        return read()
    except READING as error:
        facts.unread[what] = str(error)
        return None


def _read_kernel(facts: Facts, config: Config) -> tuple[KernelState | None, Surroundings]:
    """Read what belongs to the kernel; return its state, and what else the plan depends on."""
    holder = InstanceLock().look()
    facts.holder = str(holder or "")
    with KernelReader() as view:
        state = _read_servers(facts, view)
        others = _tried(facts, "links", view.other_addresses) or frozenset()
        around = _tried(facts, "links", lambda: Surroundings.of(view)) or UNKNOWN
        has_ipvs = view.has_ipvs
    facts.chains = _tried(facts, "chains", lambda: (*read_chains(), *read_legacy()))
    facts.our_rules = _our_rules(config, facts.chains or (), state)
    facts.legacy_leftovers = tuple(legacy_leftovers())
    seen = _tried(facts, "processes", lambda: read_processes(holder=holder.pid if holder else 0))
    facts.processes = seen or ()
    if state is not None:
        facts.servers = tuple(as_fact(key, s.server, s.destinations) for key, s in sorted(state.servers.items()))
        facts.vips = tuple(sorted({s.address for s in facts.servers} - set(map(format_ip, others))))
    facts.host = _tried(facts, "host", lambda: _host(facts, config, has_ipvs=has_ipvs))
    return state, around


def _our_rules(
    config: Config, chains: Iterable[FilterChain], state: KernelState | None
) -> dict[str, tuple[str, ...]]:
    """Return the rules that must be there; of a part, if elements need it or some of its chains are there."""
    here = {chain.name for chain in chains if is_ours(chain)}
    needed = needed_parts(state.elements if state else ())
    found = rules_by_chain(ruleset(config.masquerade_mark, quiet_arp=False, parts=()))
    for name in PARTS:
        rules = rules_by_chain(part(name, config.masquerade_mark))
        if name in needed or not here.isdisjoint(rules):
            found |= rules
    return found


def _read_servers(
    facts: Facts, view: KernelReader, pause: Callable[[float], None] = time.sleep
) -> KernelState | None:
    """Read servers and links; again while kube-ipvs0 has an address without a server, which may be on its way.

    None where the servers cannot be read.
    """
    for _ in range(drift.LOOKS):
        state = _read_both(facts, view)
        served = {format_ip(key.address) for key in state.servers} if state else set()
        if not (facts.holder and state and unserved(facts.links or (), served)):
            return state
        pause(drift.PAUSE_SECONDS)
    return _read_both(facts, view)


def _read_both(facts: Facts, view: KernelReader) -> KernelState | None:
    state = _tried(facts, "state", lambda: drift.state(view)) if view.has_ipvs else None
    facts.links = _tried(facts, "links", read_links)
    return state


def _host(facts: Facts, config: Config, *, has_ipvs: bool) -> Host:
    servers = facts.servers or ()
    found = read_host(config, len(servers), sum(len(server.backends) for server in servers))
    return replace(found, has_ipvs=has_ipvs, has_nftables=_has_nftables())


def _has_nftables() -> bool:
    """Whether the kernel has nf_tables; who may not ask is not told, and then other checks say so."""
    with closing(Ruleset(TABLE.name)) as table:
        try:
            table.stamp()
        except KernelError as error:
            return error.errno in (errno.EPERM, errno.EACCES)
    return True


# Objects


def _read_objects(facts: Facts, config: Config) -> Objects | None:
    began = time.monotonic()
    try:
        objects = read_objects(config)
    except Unavailable as error:
        facts.api = Api(facts.settings.source, str(error), named=are_named(config) or in_cluster())
        facts.unread["drift"] = facts.unread["dns"] = "objects cannot be read"
        return None
    seconds = time.monotonic() - began
    services, slices = (len(objects.items[kind]) for kind in (Kind.SERVICE, Kind.ENDPOINT_SLICE))
    left_out = (*objects.left_out, *objects.notes)
    facts.api = Api(objects.source, "", seconds, services, slices, tuple(objects.refused), left_out)
    return objects


def _wanted(facts: Facts, config: Config, objects: Objects, around: Surroundings) -> WantedState:
    """Plan everything as the proxy would, and note what of it concerns the node."""
    here = [parse_ip(a) for link in facts.links or () if link.name != LINK_NAME for a in link.addresses]
    wanted = desired(of_this_host(config), objects.listed(), here, around, objects.servers, objects.neighbours)
    facts.pod_cidrs = tuple(map(str, wanted.store.node.pod_cidrs)) if wanted.store.node else ()
    facts.node = own_node(wanted)
    held = set(map(format_ip, here))
    facts.held_vips = {
        format_ip(address): service.key
        for service in wanted.store.services.values()
        for address in service.cluster_ips
        if format_ip(address) in held
    }
    return wanted


def own_node(wanted: WantedState) -> OwnNode | None:
    """Return what is known of our Node; None for a folder that need not describe it."""
    node, absent = wanted.store.node, wanted.missing_node
    if absent is not None:
        shown = absent.others[:NODES_SHOWN]
        return OwnNode(absent.name, found=False, effect=absent.effect, others=shown, likely=absent.likely)
    return OwnNode(node.name, about_to_be_deleted=not node.eligible) if node else None


# DNS


def find_dns(services: Iterable[Service]) -> Service | None:
    """Return the Service of the cluster's DNS: by its usual names, or the only one with the UDP port 53."""
    serving = [s for s in services if any(p.port == DNS_PORT and p.protocol is Protocol.UDP for p in s.ports)]
    usual = [s for s in serving if s.namespace == DNS_NAMESPACE]
    return min(usual or serving, key=lambda s: (s.name not in DNS_NAMES, s.key), default=None)


def _dns(desired: WantedState, objects: Objects, domain: str, held: Collection[str]) -> Dns | None:
    services = desired.store.services
    service = find_dns(services.values())
    if service is None or not service.cluster_ips:
        return None
    server = format_ip(service.cluster_ips[0])
    kubernetes = services.get(API_SERVER)
    expected = tuple(map(format_ip, kubernetes.cluster_ips)) if kubernetes else ()
    kind = "AAAA" if expected and ":" in expected[0] else "A"
    answer = traced(resolve(server, f"{KUBERNETES}.{domain}", kind), held)
    names = list(objects.external_names())[:EXTERNAL_NAMES_ASKED] if not answer.error else []
    external = tuple(ExternalName(key, wanted, _ask_external(server, key, domain)) for key, wanted in names)
    return Dns(service.key, expected, answer, external)


def traced(answer: DnsAnswer, held: Collection[str]) -> DnsAnswer:
    """Return an answer with whether IPVS had the question.

    `held` are VIPs that are addresses of other links as well, such as those of a DNS cache on the node: who
    answers there is not ours to say.
    """
    address, _, port = answer.asked_from.rpartition(":")
    if answer.error or not address or answer.server in held:
        return answer
    asker = Asker(Protocol.UDP, Destination(parse_ip(address.strip("[]")), int(port)))
    try:
        found = trace([asker])
    except OSError:
        return answer
    return answer if found is None else replace(answer, by_ipvs=bool(found[asker]))


def _ask_external(server: str, service: str, domain: str) -> DnsAnswer:
    namespace, _, name = service.partition("/")
    return resolve(server, f"{name}.{namespace}.svc.{domain}", "CNAME")
