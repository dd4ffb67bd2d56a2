"""What must not leave a cluster is taken out of texts and objects before they go into a support bundle.

Of objects only what a service proxy reads stays. Texts (logs, metrics, flags) lose what looks like a secret.
"""

import re
from collections.abc import Mapping
from typing import Any

GONE = "[removed]"
SECRETS = (
    (re.compile(r"-----BEGIN [^-]+-----.*?(?:-----END [^-]+-----|\Z)", re.DOTALL), GONE),
    (re.compile(r"\beyJ[\w-]+\.[\w-]+\.[\w-]*"), GONE),  # a JSON web token
    (re.compile(r"\b([Bb]earer )[^\s\"',]+"), rf"\1{GONE}"),
    (re.compile(r"(://)[^/\s:@]+:[^/\s@]+(?=@)"), rf"\1{GONE}"),
    (re.compile(r"(?i)((?:token|password|secret|-data)[\"']?\s*[:=]\s*[\"']?)[^\s\"',}]+"), rf"\1{GONE}"),
)
"""What secrets look like, and what stays of each: the value goes, so that JSON and YAML stay what they are."""
OURS = "ipvsproxy.io/"
METADATA = ("name", "namespace", "uid", "creationTimestamp", "deletionTimestamp", "labels", "generation")
SPEC = {
    "Service": None,
    "Node": ("podCIDR", "podCIDRs", "taints", "unschedulable"),
    "Namespace": (),
    "Pod": ("nodeName", "hostNetwork"),
}
STATUS = {"Service": ("loadBalancer",), "Node": ("addresses",), "Pod": ("phase", "podIP", "podIPs")}
SLICE = ("addressType", "endpoints", "ports")


def redacted(text: str) -> str:
    """Return a text without what looks like a secret."""
    for pattern, rest in SECRETS:
        text = pattern.sub(rest, text)
    return text


def slimmed(kind: str, tree: Mapping[str, Any], api_version: str) -> dict[str, Any]:
    """Return an object with only what the proxy reads, of annotations only our own."""
    metadata = tree.get("metadata") or {}
    kept = {name: metadata[name] for name in METADATA if name in metadata}
    annotations = {k: v for k, v in (metadata.get("annotations") or {}).items() if k.startswith(OURS)}
    if annotations:
        kept["annotations"] = annotations
    found: dict[str, Any] = {"apiVersion": api_version, "kind": kind, "metadata": kept}
    if kind == "EndpointSlice":
        return found | {name: tree[name] for name in SLICE if name in tree}
    for part, names in (("spec", SPEC.get(kind)), ("status", STATUS.get(kind, ()))):
        whole = tree.get(part) or {}
        found[part] = {name: whole[name] for name in whole if names is None or name in names}
    return found
