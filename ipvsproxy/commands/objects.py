"""What this node should have by the objects as they are now; read once, from where the proxy would read them."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from dataclasses import replace
from types import MappingProxyType
from typing import NamedTuple, Self

from ipvsproxy.commands.invocation import CommandFailed
from ipvsproxy.commands.output import note
from ipvsproxy.config import Config
from ipvsproxy.exchange.inbox import Listed
from ipvsproxy.exchange.report import Report
from ipvsproxy.kernel import host
from ipvsproxy.kernel.read.reader import KernelReader
from ipvsproxy.kernel.read.survey import ipvs_modules
from ipvsproxy.kernel.tables import TABLE
from ipvsproxy.kube.once import Objects, Unavailable, read_objects
from ipvsproxy.plan.addresses import OtherNodeAddresses
from ipvsproxy.plan.host_ports import Port
from ipvsproxy.plan.node import Reserved
from ipvsproxy.plan.schedulers import in_use
from ipvsproxy.plan.state import FrontendKey, ServerState
from ipvsproxy.reconciler.wanted_state import WantedState

NO_IPVS = "this kernel has no IPVS"


def read(config: Config) -> Objects:
    """Return all objects of the folder or the API server that the settings name. Raises CommandFailed."""
    try:
        return read_objects(config)
    except Unavailable as error:
        where = f"the folder {config.manifests}" if config.manifests else "the API server"
        raise CommandFailed(f"objects cannot be read from {where}: {error}") from error


def are_named(config: Config) -> bool:
    """Whether the settings state where objects are, so that the running proxy need not be asked."""
    return config.manifests is not None or config.kubeconfig is not None or bool(config.master)


class Surroundings(NamedTuple):
    """What is known of the host besides its addresses.

    Addresses it depends on, links with their first IPv4 address, ports on which its programs listen, and kernel
    modules that are there or can be; None where no kernel is looked at.
    """

    reserved: Sequence[Reserved] = ()
    senders: Mapping[str, bytes] = MappingProxyType({})
    listening: frozenset[Port] = frozenset()
    modules: frozenset[str] | None = None

    @classmethod
    def of(cls, view: KernelReader) -> Self:
        """Read them. Raises KernelError."""
        return cls(tuple(view.reserved()), view.senders(), view.listening(), ipvs_modules())


def named_nodes(wanted: WantedState) -> str:
    """Return what to add to a sentence that our Node is missing: the nodes that there are, empty if none are."""
    absent = wanted.missing_node
    return f" (nodes that objects name: {', '.join(absent.shown)})" if absent and absent.others else ""


UNKNOWN = Surroundings()
NOT_ASKED = OtherNodeAddresses(None)


def desired(  # noqa: PLR0913
    config: Config,
    objects: Iterable[Listed],
    link_addresses: Iterable[bytes],
    around: Surroundings = UNKNOWN,
    servers: Iterable[tuple[bytes, int]] = (),
    neighbours: OtherNodeAddresses = NOT_ASKED,
    present: Mapping[FrontendKey, ServerState] | None = None,
) -> WantedState:
    """Return what a node with these addresses and surroundings should have.

    `servers` are the addresses and ports by which the API server is reached, `neighbours` what it reported of
    nodes, `present` what IPVS has, by which endpoints are known that have not their whole weight yet.
    """
    # The callers report themselves that the Node is missing, or judge it.
    wanted = WantedState(config, Report(), on_missing=lambda _: None)
    for listed in objects:
        wanted.apply(listed)
    wanted.other_nodes(neighbours)
    wanted.api_servers(servers)
    wanted.listening(around.listening)
    wanted.look_at_node(link_addresses, around.reserved, around.senders)
    if around.modules is not None:
        servers_there = present.values() if present else ()
        wanted.schedulers_found(dict.fromkeys(_lacking_schedulers(wanted, around.modules, servers_there), False))
    wanted.remember_weights(present)
    wanted.join_groups(settled=True)
    wanted.plan_everything()
    return wanted


def _lacking_schedulers(
    wanted: WantedState, modules: AbstractSet[str], servers: Iterable[ServerState]
) -> set[str]:
    """Return those that Services ask for and the kernel does not have: the proxy uses others in their place."""
    asked = wanted.schedulers_of_services() - in_use(servers)
    return {name for name in asked if f"ip_vs_{name}" not in modules and name != wanted.schedulers.default}


def desired_here(config: Config, objects: Objects, view: KernelReader) -> WantedState:
    """Return what this node should have, and report which objects cannot be used. Raises KernelError."""
    here, around = view.other_addresses(), Surroundings.of(view)
    wanted = desired(
        of_this_host(config), objects.listed(), here, around, objects.servers, objects.neighbours,
        view.server_states(),
    )  # fmt: skip
    for complaint in (*objects.refused, *objects.left_out):
        note(f"left out: {complaint}")
    for text in objects.notes:
        note(text)
    if absent := wanted.missing_node:
        note(f"{absent}: {absent.effect}{named_nodes(wanted)}; see --hostname-override")
    return wanted


def lacking(view: KernelReader) -> Iterator[str]:
    """Say what is not there and makes every answer an empty one."""
    if not view.has_ipvs:
        yield NO_IPVS
    if not view.has_table():
        yield f"there is no nft table {TABLE}: no proxy of ours is at work in this network namespace"


def of_this_host(config: Config) -> Config:
    """Return the settings with the IP families of this host, as `run` has them."""
    return replace(config, families=host.families())
