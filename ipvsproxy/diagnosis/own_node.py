"""Checks of the Node of this host, and of a proxy that is well though its health server answers 503, or waits."""

import json
from collections.abc import Iterator
from typing import Any

from ipvsproxy.diagnosis.facts import Facts, Proxy
from ipvsproxy.diagnosis.finding import Finding, fine, problem


def check_node(facts: Facts) -> Iterator[Finding]:
    """The Node object has the name under which the proxy looks for it."""
    node = facts.node
    if node is None:
        return
    if node.found:
        state = "about to be deleted: load balancers send nothing here" if node.about_to_be_deleted else ""
        yield fine("node", f"Node {node.name} was found", state)
        return
    names = [*node.likely, *(name for name in node.others if name not in node.likely)]
    meant = f"if this host is {node.likely[0]}: --hostname-override={node.likely[0]}" if node.likely else ""
    yield problem(
        "node",
        f"there is no Node {node.name}: {node.effect}",
        f"nodes that objects name: {', '.join(names)}" if names else "no object names a node",
        step=meant or "give the name that `kubectl get nodes` shows for this host: --hostname-override",
    )


def reported(proxy: Proxy) -> dict[str, Any]:
    """Return what the health server answered, empty when that is no object."""
    try:
        body = json.loads(proxy.health_body)
    except (ValueError, RecursionError):
        return {}
    return body if isinstance(body, dict) else {}


def holder_waited_for(proxy: Proxy) -> str:
    """Return the proxy that this one waits for, empty if it is at work itself."""
    return str(reported(proxy).get("waitingFor") or "")


def refuses_traffic(proxy: Proxy) -> str:
    """Return why a healthy proxy tells load balancers to send nothing to this node, empty when it does not."""
    body = reported(proxy)
    if proxy.health == 200 or body.get("healthy") is not True or body.get("nodeEligible") is not False:
        return ""
    return str(body.get("reason") or "its Node was not found, or is about to be deleted")


def has_never_synced(proxy: Proxy) -> bool:
    """Whether an ill proxy reports nothing of any IP family, which it does before its first sync."""
    body = reported(proxy)
    return "healthy" in body and "status" not in body and not holder_waited_for(proxy)
