"""`ipvsproxy plan --from DUMP`: the wanted state from saved objects, with no cluster, no kernel and no root.

A dump is what `kubectl get services,endpointslices,nodes -A -o yaml` prints, in files, folders or on stdin
(`kube.saved`). The addresses of the node come from its Node object, since there is no host to look at. So a bug
report can be replayed. Status 1 if a part of the dump could not be used.
"""

import sys
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ipvsproxy.base.address import format_endpoint
from ipvsproxy.commands.command_table import EXIT_FINDINGS, EXIT_OK
from ipvsproxy.commands.invocation import CommandFailed, Invocation, WrongUsage
from ipvsproxy.commands.objects import desired, named_nodes
from ipvsproxy.commands.output import Grid, Marked, OutputParts, Style, emit, note
from ipvsproxy.commands.rows import MASQUERADES, NEVER, SHORT, VERDICTS
from ipvsproxy.config import Config
from ipvsproxy.config.settle import NODE_NAME
from ipvsproxy.exchange.inbox import Kind, kinds
from ipvsproxy.inspect.difference import server_text
from ipvsproxy.inspect.short_path import by_rules
from ipvsproxy.kube.objects import Objects, Unavailable
from ipvsproxy.kube.saved import read_saved
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.node import NAMES_SHOWN
from ipvsproxy.plan.state import USUAL, Destination, DestinationAttributes, Frontend, Path, Vip
from ipvsproxy.reconciler.wanted_state import WantedState
from ipvsproxy.ruleset.codec import rest_text, texts
from ipvsproxy.ruleset.schema import LOCAL, Field


def run(invocation: Invocation) -> int:
    """Plan once."""
    if invocation.arguments or not invocation.flags["from"]:
        raise WrongUsage(
            "--from FILE is needed, and no arguments" if invocation.arguments else "--from FILE is needed"
        )
    try:
        wanted_kinds = kinds(tenants=bool(invocation.config.tenant_label))
        found = read_saved(invocation.flags["from"], sys.stdin.buffer, wanted_kinds)
    except Unavailable as error:
        raise CommandFailed(str(error)) from None
    nodes = found.of(Kind.NODE)
    name_is_given = NODE_NAME in invocation.settings.origins
    config = _of_node(invocation.config, nodes, name_is_given=name_is_given)
    if name_is_given and config.node_name != invocation.config.node_name:
        note(f"no Node {invocation.config.node_name} in it: planned for {config.node_name}, the only one there is")
    node = nodes.get(config.node_name)
    addresses = node.addresses if isinstance(node, Node) else ()
    wanted = desired(config, found.listed(), addresses)
    if node is None:
        known = named_nodes(wanted)
        lost = "NodePorts, and what depends on the node's place, are missing"
        note(f"no Node {config.node_name} in it: {lost}{known}")
    for text in found.notes:
        note(text)
    document = _document(config, wanted, found)
    emit(invocation.flags["output"], "Plan", document, _parts(document))
    return EXIT_FINDINGS if document["complaints"] else EXIT_OK


def _of_node(config: Config, nodes: Mapping[str, object], *, name_is_given: bool) -> Config:
    """Plan for the node that was named, or for the only one there is. Raises WrongUsage."""
    if config.node_name in nodes or not nodes:
        return config
    if len(nodes) == 1:
        return replace(config, node_name=next(iter(nodes)))
    shown, more = sorted(nodes)[:NAMES_SHOWN], len(nodes) - NAMES_SHOWN
    there = ", ".join(shown) + (f" and {more} more" if more > 0 else "")
    what = f"there is no Node {config.node_name} in the dump, which" if name_is_given else "it is needed: the dump"
    raise WrongUsage(f"--hostname-override: {what} has {there}")


def _document(config: Config, wanted: WantedState, found: Objects) -> dict[str, Any]:
    elements: dict[str, dict[str, str]] = {}
    for kind, key, value in sorted(texts(wanted.elements.items())):
        elements.setdefault(kind, {})[key] = value
    return {
        "node": config.node_name,
        "frontends": [
            _frontend(wanted.owner(key), frontend, wanted.vip(key.address))
            for key, frontend in sorted(wanted.frontends.items())
        ],
        "elements": elements,
        "notProxied": [_left(kind, key, reason) for (kind, key), reason in sorted(found.skipped.items())],
        "complaints": [*found.refused, *found.left_out],
    }


def _left(kind: Kind, key: str, reason: str) -> dict[str, str]:
    namespace, _, name = key.rpartition("/")
    return {"kind": kind, "namespace": namespace, "name": name, "reason": reason}


def _frontend(owner: str, frontend: Frontend, vip: Vip | None) -> dict[str, Any]:
    namespace, _, name = owner.partition("/")
    inside = frontend.server_for(LOCAL)
    return {
        "namespace": namespace,
        "service": name,
        "frontend": str(frontend.key),
        "verdict": VERDICTS[frontend.verdict.value],
        "masquerade": MASQUERADES.get(frontend.masquerade.value, NEVER),
        "inside": format_endpoint(inside.address, inside.port) if inside else by_rules(len(frontend.internal)),
        "sourceRanges": [str(cidr) for cidr in frontend.ranges],
        "portRanges": [rest_text(ports, Field.PORT) for ports in frontend.port_ranges],
        "vip": vip.form.value if vip else None,
        "server": server_text(frontend.server) if frontend.path is Path.IPVS else SHORT,
        "path": frontend.path.value,
        "pathReason": frontend.path_reason,
        "endpoints": [_endpoint(*pair) for pair in frontend.destinations.items()],
    }


def _endpoint(destination: Destination, attributes: DestinationAttributes) -> str:
    return str(destination) if attributes == USUAL else f"{destination} ({attributes})"


def _parts(document: dict[str, Any]) -> OutputParts:
    yield Marked(f"Node {document['node']}", Style.TITLE)
    yield ""
    heads = ("NAMESPACE", "SERVICE", "FRONTEND", "VERDICT", "MASQUERADE", "INSIDE", "SERVER", "ENDPOINTS")
    names = [head.lower() for head in heads]
    yield Grid(
        heads,
        [[row[name] or "-" for name in names] for row in document["frontends"]],
        ("INSIDE", "MASQUERADE", "SERVER"),
    )
    yield ""
    elements = document["elements"]
    yield Grid(
        ("SET", "ELEMENT", "VALUE"), [(s, k, v or "-") for s, found in elements.items() for k, v in found.items()]
    )
    if document["notProxied"]:
        yield ""
        left_heads = ("KIND", "NAMESPACE", "NAME", "NOT PROXIED, BECAUSE")
        yield Grid(left_heads, [list(left.values()) for left in document["notProxied"]])
    yield from (Marked(f"Warning: {complaint}", Style.WARNING) for complaint in document["complaints"])
