"""What the kernel of this node has, and which programs run on it, into `diagnosis.facts`.

Nothing is changed. What cannot be read (no rights, no such module) is left out: `Facts.unread` states why.
"""

import errno
import time
from collections import Counter
from collections.abc import Callable, Iterable
from contextlib import closing
from typing import TypeVar

from msgspec.structs import replace

from ipvsproxy.base.address import format_ip
from ipvsproxy.commands import drift
from ipvsproxy.commands.objects import UNKNOWN, Surroundings
from ipvsproxy.config import Config
from ipvsproxy.diagnosis.facts import Facts, KernelFacts
from ipvsproxy.diagnosis.foreign import is_ours
from ipvsproxy.diagnosis.links import unserved
from ipvsproxy.diagnosis.shape import in_order, rules_by_chain
from ipvsproxy.inspect.short_path import short_paths
from ipvsproxy.kernel.filters.legacy import read_legacy
from ipvsproxy.kernel.filters.nf_tables import read_chains
from ipvsproxy.kernel.filters.xtables import legacy_leftovers
from ipvsproxy.kernel.instance_lock import InstanceLock
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.kernel.read.survey import as_fact, read_host, read_links, read_processes
from ipvsproxy.kernel.ruleset import Ruleset
from ipvsproxy.kernel.scripts import PARTS, Scripts
from ipvsproxy.kernel.tables import TABLE
from ipvsproxy.kernel.wire.netlink import KernelError
from ipvsproxy.plan.state import DestinationAttributes, KernelState, ServerAttributes
from ipvsproxy.ruleset.elements import needed_parts
from ipvsproxy.ruleset.filters import FilterChain

T = TypeVar("T")
READING = (KernelError, OSError)


NO_SERVER = ServerAttributes("", 0, 0)
"""What a frontend on the short path has of IPVS."""


def _tried(facts: Facts, what: str, read: Callable[[], T]) -> T | None:
    try:
        return read()
    except READING as error:
        facts.unread[what] = str(error)
        return None


def read_kernel(facts: Facts, config: Config) -> tuple[KernelState | None, Surroundings]:
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
        servers = [as_fact(key, s.server, s.destinations) for key, s in sorted(state.servers.items())]
        short = [
            as_fact(s.key, NO_SERVER, {d: DestinationAttributes(places) for d, places in s.endpoints.items()})
            for s in short_paths(state.elements)
        ]
        facts.servers = (*servers, *short)
        facts.vips = tuple(sorted({s.address for s in facts.servers} - set(map(format_ip, others))))
    facts.host = _tried(facts, "host", lambda: _host(facts, config, has_ipvs=has_ipvs))
    return state, around


def _our_rules(
    config: Config, chains: Iterable[FilterChain], state: KernelState | None
) -> dict[str, tuple[str, ...]]:
    """Return the rules that must be there; of a part, if elements need it or chains are there that only it has."""
    here = {chain.name: chain.rules for chain in chains if is_ours(chain)}
    needed = needed_parts(state.elements if state else ())
    scripts = Scripts(config.masquerade_mark, quiet_arp=False, is_liberal=config.conntrack.tcp_be_liberal)
    parts = {name: rules_by_chain(scripts.part(name)) for name in PARTS}
    owners = Counter(chain for rules in parts.values() for chain in rules)
    found = rules_by_chain(scripts.whole(()))
    for name, rules in parts.items():
        if name in needed or any(owners[chain] == 1 and chain in here for chain in rules):
            found |= {chain: (*found.get(chain, ()), *ends) for chain, ends in rules.items()}
    return {name: in_order(ends, here.get(name, ())) if owners[name] > 1 else ends for name, ends in found.items()}


def _read_servers(
    facts: Facts, view: KernelReader, pause: Callable[[float], None] = time.sleep
) -> KernelState | None:
    """Read servers and links; again while kube-ipvs0 has an address without a server, which may be on its way.

    None where the servers cannot be read.
    """
    for _ in range(drift.LOOKS):
        state = _read_both(facts, view)
        keys = [*state.servers, *(s.key for s in short_paths(state.elements))] if state else []
        served = {format_ip(key.address) for key in keys}
        if not (facts.holder and state and unserved(facts.links or (), served)):
            return state
        pause(drift.PAUSE_SECONDS)
    return _read_both(facts, view)


def _read_both(facts: Facts, view: KernelReader) -> KernelState | None:
    state = _tried(facts, "state", lambda: drift.state(view)) if view.has_ipvs else None
    facts.links = _tried(facts, "links", read_links)
    return state


def _host(facts: Facts, config: Config, *, has_ipvs: bool) -> KernelFacts:
    servers = facts.servers or ()
    found = read_host(config, len(servers), sum(len(server.backends) for server in servers))
    return replace(found, has_ipvs=has_ipvs, has_nftables=_has_nftables())


def _has_nftables() -> bool:
    """Whether the kernel has nf_tables; without the right to ask this is unknown, and other checks report it."""
    with closing(Ruleset(TABLE.name)) as table:
        try:
            table.stamp()
        except KernelError as error:
            return error.errno in (errno.EPERM, errno.EACCES)
    return True
