"""What `kubectl patch`, kustomize and the scheduler of DaemonSets do, as far as deploy/ needs it."""

from __future__ import annotations

import copy
from typing import Any


def merged(target: Any, patch: Any) -> Any:
    """Apply a merge patch (RFC 7396)."""
    if not isinstance(patch, dict):
        return patch
    result = copy.deepcopy(target) if isinstance(target, dict) else {}
    for key, value in patch.items():
        if value is None:
            result.pop(key, None)
        else:
            result[key] = merged(result.get(key), value)
    return result


def patched(target: Any, operations: list[dict[str, Any]]) -> Any:
    """Apply a JSON patch (RFC 6902) of `add` and `replace`; what is to be replaced must be there."""
    result = copy.deepcopy(target)
    for operation in operations:
        *way, last = operation["path"].strip("/").split("/")
        place = result
        for step in way:
            place = place[int(step) if isinstance(place, list) else step]
        key = int(last) if isinstance(place, list) else last
        assert operation["op"] in ("add", "replace")
        if operation["op"] == "replace":
            place[key]
        place[key] = operation["value"]
    return result


def runs_on(daemon_set: dict[str, Any], labels: dict[str, str]) -> bool:
    """Whether a DaemonSet has a pod on a node with these labels: node selector and required affinity."""
    pod = daemon_set["spec"]["template"]["spec"]
    if not pod.get("nodeSelector", {}).items() <= labels.items():
        return False
    required = (
        pod.get("affinity", {}).get("nodeAffinity", {}).get("requiredDuringSchedulingIgnoredDuringExecution")
    )
    terms = required["nodeSelectorTerms"] if required else [{"matchExpressions": []}]
    return any(all(_matches(expression, labels) for expression in term["matchExpressions"]) for term in terms)


def _matches(expression: dict[str, Any], labels: dict[str, str]) -> bool:
    value, values = labels.get(expression["key"]), expression.get("values", [])
    return {
        "In": value in values,
        "NotIn": value not in values,
        "Exists": value is not None,
        "DoesNotExist": value is None,
    }[expression["operator"]]
