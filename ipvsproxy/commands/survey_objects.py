"""The objects of the API, or of saved files, and what a node should have by them, into `diagnosis.facts`."""

import time
from collections.abc import Mapping, Sequence

from ipvsproxy.base.address import format_ip, parse_ip
from ipvsproxy.base.names import VIP_LINK
from ipvsproxy.commands.objects import Surroundings, are_named, desired, of_this_host
from ipvsproxy.config import Config
from ipvsproxy.diagnosis.facts import Api, Facts, OwnNode, TenantFacts
from ipvsproxy.exchange.inbox import Kind
from ipvsproxy.inspect.difference import Change
from ipvsproxy.kube.connection import in_cluster
from ipvsproxy.kube.once import Objects, Unavailable, read_objects
from ipvsproxy.plan.schedulers import ENGINE
from ipvsproxy.plan.state import FrontendKey, ServerState
from ipvsproxy.plan.tenants import SHARED
from ipvsproxy.reconciler.wanted_state import WantedState
from ipvsproxy.ruleset.elements import ElementOwner
from ipvsproxy.ruleset.schema import ADMITTED, AUDIENCES, RESTRICTED

NODES_SHOWN = 20
MEMBERS = frozenset(kind.name for kind in AUDIENCES.values())
ADMISSIONS = frozenset(kind.name for sets in (RESTRICTED, ADMITTED) for kind in sets.values())


def find_objects(facts: Facts, config: Config) -> Objects | None:
    """Read all objects and note where from; None if they cannot be read, and why not in `Facts.unread`."""
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


def plan_node(
    facts: Facts,
    config: Config,
    objects: Objects,
    around: Surroundings,
    present: Mapping[FrontendKey, ServerState] | None = None,
) -> WantedState:
    """Plan everything as the proxy would, with what IPVS has, and note what of it concerns the node."""
    here = [parse_ip(a) for link in facts.links or () if link.name != VIP_LINK for a in link.addresses]
    wanted = desired(
        of_this_host(config), objects.listed(), here, around, objects.servers, objects.neighbours, present
    )
    facts.schedulers = tuple(
        sorted(name for name in wanted.schedulers_of_services() if not name.startswith(ENGINE))
    )
    facts.pod_cidrs = tuple(map(str, wanted.node.pod_cidrs)) if wanted.node else ()
    facts.node = own_node(wanted)
    held = set(map(format_ip, here))
    facts.held_vips = {
        format_ip(address): service.key
        for service in wanted.services.values()
        for address in service.cluster_ips
        if format_ip(address) in held
    }
    return wanted


def tenants_seen(wanted: WantedState, differences: Sequence[Change] | None) -> TenantFacts | None:
    """Return the tenants, and what of them is another way in the kernel; None where there are to be none."""
    tenants = wanted.tenants
    if not tenants:
        return None
    named = [tenant for tenant in tenants.by_namespace().values() if tenant != SHARED]
    pods = services = None
    if differences is not None:
        pods = len(_owners(differences, MEMBERS))
        services = len(_owners(differences, ADMISSIONS))
    return TenantFacts(tenants.label, len(set(named)), len(named), len(tenants.members), pods, services)


def _owners(differences: Sequence[Change], sets: frozenset[str]) -> set[ElementOwner]:
    """Return what the differing elements of some sets are about."""
    return {found.owner for found in differences if found.object == "element" and found.name.split()[0] in sets}


def own_node(wanted: WantedState) -> OwnNode | None:
    """Return what is known of our Node; None for a folder that need not describe it."""
    node, absent = wanted.node, wanted.missing_node
    if absent is not None:
        shown = absent.others[:NODES_SHOWN]
        return OwnNode(absent.name, found=False, effect=absent.effect, others=shown, likely=absent.likely)
    return OwnNode(node.name, about_to_be_deleted=not node.eligible) if node else None
