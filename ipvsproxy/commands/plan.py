"""`ipvsproxy plan --from DUMP`: the wanted state from saved objects, with no cluster, no kernel and no root.

A dump is what `kubectl get services,endpointslices,nodes -A -o yaml` prints, in files, folders or on stdin.
The addresses of the node come from its Node object, since there is no host to look at. So a bug report can be
replayed. Status 1 if a part of the dump could not be used.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from ipvsproxy.commands.given import Failed, Given, WrongUsage
from ipvsproxy.commands.objects import desired
from ipvsproxy.commands.output import Grid, Marked, Mood, Parts, emit, note
from ipvsproxy.commands.rows import MASQUERADES, NEVER, VERDICTS
from ipvsproxy.commands.table import FINE, FOUND
from ipvsproxy.config import Config
from ipvsproxy.config.settle import NODE_NAME
from ipvsproxy.desired import Desired
from ipvsproxy.inspect.difference import server_text
from ipvsproxy.kube.documents import Unreadable
from ipvsproxy.kube.inbox import Kind, Listed, Object
from ipvsproxy.kube.manifest_file import Content, parse
from ipvsproxy.kube.manifests import SUFFIXES
from ipvsproxy.plan.model import Node
from ipvsproxy.plan.state import Frontend, Vip


class Dump(NamedTuple):
    """The objects of all files by kind and key, and what could not be used, one line each."""

    objects: dict[Kind, dict[str, Object]]
    complaints: list[str]


def run(given: Given) -> int:
    """Plan once."""
    if given.words or not given.flags["from"]:
        raise WrongUsage("--from FILE is needed, and no words" if given.words else "--from FILE is needed")
    dump = read(given.flags["from"])
    config = _of_node(given.config, dump)
    if NODE_NAME in given.settings.origins and config.node_name != given.config.node_name:
        note(f"no Node {given.config.node_name} in it: planned for {config.node_name}, the only one there is")
    node = dump.objects[Kind.NODE].get(config.node_name)
    addresses = node.addresses if isinstance(node, Node) else ()
    if node is None:
        note(f"no Node {config.node_name} in it: NodePorts, and what depends on the node's place, are missing")
    wanted = desired(config, [Listed(kind, found) for kind, found in dump.objects.items()], addresses)
    document = _document(config, wanted, dump)
    emit(given.flags["output"], "Plan", document, _parts(document))
    return FOUND if dump.complaints else FINE


def read(names: list[str]) -> Dump:
    """Read all files. Raises Failed when one of them cannot be read at all."""
    dump = Dump({kind: {} for kind in Kind}, [])
    for name, data in _files(names):
        try:
            content = parse(name, data)
        except Unreadable as error:
            raise Failed(f"{name}:{error.line}:{error.column}: {error.reason}") from error
        _merge(name, content, dump)
    return dump


def _files(names: list[str]) -> Iterator[tuple[str, bytes]]:
    for name in names:
        if name == "-":
            yield "<stdin>", sys.stdin.buffer.read()
            continue
        path = Path(name)
        try:
            inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES) if path.is_dir() else [path]
            yield from ((str(file), file.read_bytes()) for file in inside)
        except OSError as error:
            raise Failed(f"{name}: {error.strerror or error}") from error


def _merge(name: str, content: Content, dump: Dump) -> None:
    for refusal in content.refused:
        kind, key = refusal.ident or ("object", f"{refusal.document}.{refusal.place}")
        dump.complaints.append(f"{name}: {kind} {key} refused: {refusal.field}: {refusal.reason}")
    for (kind, key), reasons in content.complaints.items():
        dump.complaints.extend(f"{name}: {kind} {key}: left out: {reason}" for reason in reasons)
    for (kind, key), value in content.good.items():
        if key in dump.objects[kind]:
            dump.complaints.append(f"{name}: {kind} {key}: another file has it already")
        elif value is not None:
            dump.objects[kind][key] = value


def _of_node(config: Config, dump: Dump) -> Config:
    """Plan for the node that was named, or for the only one there is. Raises WrongUsage."""
    nodes = dump.objects[Kind.NODE]
    if config.node_name in nodes or not nodes:
        return config
    if len(nodes) > 1:
        raise WrongUsage(f"--hostname-override is needed: the dump has the nodes {', '.join(sorted(nodes))}")
    return replace(config, node_name=next(iter(nodes)))


def _document(config: Config, wanted: Desired, dump: Dump) -> dict[str, Any]:
    ledger = wanted.ledger
    elements: dict[str, dict[str, str]] = {}
    for slot, value in sorted(ledger.elements.items()):
        elements.setdefault(slot.set, {})[slot.key] = value
    return {
        "node": config.node_name,
        "frontends": [
            _frontend(ledger.owner(key), frontend, ledger.vip(key.address))
            for key, frontend in sorted(ledger.frontends.items())
        ],
        "elements": elements,
        "complaints": dump.complaints,
    }


def _frontend(owner: str, frontend: Frontend, vip: Vip | None) -> dict[str, Any]:
    namespace, _, name = owner.partition("/")
    return {
        "namespace": namespace,
        "service": name,
        "frontend": str(frontend.key),
        "verdict": VERDICTS[frontend.verdict.value],
        "masquerade": MASQUERADES.get(frontend.masquerade.value, NEVER),
        "inside": str(frontend.inside or ""),
        "sourceRanges": [str(cidr) for cidr in frontend.ranges],
        "vip": vip.form.value if vip else None,
        "server": server_text(frontend.server),
        "endpoints": [str(destination) for destination in frontend.destinations],
    }


def _parts(document: dict[str, Any]) -> Parts:
    yield Marked(f"Node {document['node']}", Mood.TITLE)
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
    yield from (Marked(f"Warning: {complaint}", Mood.DOUBTFUL) for complaint in document["complaints"])
