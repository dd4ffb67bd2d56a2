"""Values for the chart that tests choose, and what the chart makes of them."""

from __future__ import annotations

from tests.support.api_object import ApiObject
from tests.support.deploy_tools import is_hook, render

API_SERVER = {"apiServer": "https://control-plane.invalid:6443"}
EVERYTHING = {
    **API_SERVER,
    "config": {
        "clusterCIDR": ["10.244.0.0/16", "fd00:10:244::/48"],
        "clientConnection": {"qps": 50},
        "metricsBindAddress": "[::]:9249",
        "healthzBindAddress": "0.0.0.0:9256",
        "ipvs": {"scheduler": "mh", "excludeCIDRs": ["192.0.2.0/24"]},
        "nodePortAddresses": ["primary"],
        "conntrack": {"maxPerCore": None},
    },
    "extraConfig": {"drainTimeout": "1h", "serviceMetrics": "100"},
    "extraArgs": ["--v=2"],
    "image": {"repository": "registry.example.com:5000/net/ipvsproxy", "digest": "sha256:" + "0a" * 32},
    "imagePullSecrets": [{"name": "registry"}],
    "updateStrategy": {"rollingUpdate": {"maxSurge": "10%", "maxUnavailable": 0}},
    "podLabels": {"team": "network"},
    "podAnnotations": {"example.com/reason": "1"},
    "priorityClassName": "system-cluster-critical",
    "nodeSelector": {"pool": "a"},
    "affinity": {
        "nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {
                "nodeSelectorTerms": [{"matchExpressions": [{"key": "moved", "operator": "Exists"}]}]
            }
        }
    },
    "tolerations": [{"key": "a", "operator": "Equal", "value": "b", "effect": "NoSchedule"}],
    "resources": {"limits": {"memory": "1Gi"}},
    "podMonitor": {"enabled": True, "interval": "1m", "labels": {"release": "prometheus"}},
    "prometheusRule": {"enabled": True, "labels": {"release": "prometheus"}, "job": "kube-proxy"},
    "dashboard": {"enabled": True, "annotations": {"grafana_folder": "Network"}},
}
VARIANTS = {
    "defaults": API_SERVER,
    "everything": EVERYTHING,
    "existing ConfigMap": {"existingConfigMap": "kube-proxy"},
    "existing ConfigMap and more": {"existingConfigMap": "kube-proxy", "extraConfig": {"vipMode": "route"}},
    "least": {
        **API_SERVER, "privilegedInit": False, "uninstall": {"cleanup": False}, "tolerations": [],
        "nodeSelector": {"kubernetes.io/os": None}, "priorityClassName": "", "resources": {"requests": None},
        "updateStrategy": {"type": "OnDelete", "rollingUpdate": None},
    },
}  # fmt: skip


def installed(values: ApiObject) -> list[ApiObject]:
    """Return the objects of a release, without hooks and tests."""
    return [item for item in render(values) if not is_hook(item)]


def by_kind(objects: list[ApiObject]) -> dict[str, ApiObject]:
    found = {item["kind"]: item for item in objects}
    assert len(found) == len(objects)
    return found
