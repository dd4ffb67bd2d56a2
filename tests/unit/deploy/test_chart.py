"""Values of the chart: each has its effect, impossible ones and typos are refused, and Helm says what to know."""

from __future__ import annotations

import json
from typing import Any

import pytest
import yaml

from ipvsproxy.config import document
from ipvsproxy.config.table import FIELD_ALIASES, KUBE_PROXY_FIELDS, OUR_FIELDS
from tests.support.api_object import ApiObject
from tests.support.chart_values import API_SERVER, EVERYTHING, VARIANTS, by_kind, installed
from tests.support.deploy_tools import CHART, helm, is_hook, notes, render

SCHEMA = json.loads((CHART / "values.schema.json").read_text())


def config_of(objects: dict[str, ApiObject]) -> dict[str, Any]:
    return yaml.safe_load(objects["ConfigMap"]["data"]["config.conf"])


def hooks(values: ApiObject) -> dict[str, ApiObject]:
    """Return what Helm makes after the release is deleted, by kind."""
    made = [item for item in render(values) if is_hook(item)]
    return by_kind([i for i in made if i["metadata"]["annotations"]["helm.sh/hook"] == "post-delete"])


def fields(tree: ApiObject, path: str = "") -> set[str]:
    """Return the dotted names of the leaves of a schema of settings."""
    found = set()
    for name, below in tree["properties"].items():
        found |= fields(below, f"{path}{name}.") if below.get("properties") else {path + name}
    return found


def test_helm_accepts_the_chart_without_warnings() -> None:
    report = helm().lint(CHART, EVERYTHING, strict=True)
    assert report["errors"] == []
    assert [found["error"] for found in report["messages"] if found["severity"] > 1] == []


def test_every_value_is_explained_by_the_schema_and_the_reverse() -> None:
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    assert SCHEMA["properties"].keys() - {"global"} == values.keys()
    for name in ("image", "uninstall", "podMonitor", "prometheusRule", "dashboard"):
        assert SCHEMA["properties"][name]["properties"].keys() == values[name].keys()


def test_the_schema_knows_exactly_the_fields_that_the_proxy_reads() -> None:
    # Where the kubeconfig is follows from where the chart mounts it.
    assert fields(SCHEMA["properties"]["config"]) == KUBE_PROXY_FIELDS.keys() - {"clientConnection.kubeconfig"}
    assert fields(SCHEMA["properties"]["extraConfig"]) == OUR_FIELDS.keys() | FIELD_ALIASES.keys()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"apiServr": "https://192.0.2.1:6443"}, "'apiServr' not allowed"),
        ({"apiServer": "192.0.2.1:6443"}, "/apiServer"),
        ({"apiServer": "https://"}, "/apiServer"),
        ({"apiServer": ""}, "apiServer: must be the API server's URL, or existingConfigMap be given"),
        ({"existingConfigMap": "kube-proxy"}, "apiServer: has no effect with existingConfigMap"),
        ({"existingConfigMap": "Kube_Proxy"}, "/existingConfigMap"),
        ({"config": {"clusterCidr": ["10.0.0.0/8"]}}, "'clusterCidr' not allowed"),
        ({"config": {"clusterCIDR": ["10.0.0.0"]}}, "/config/clusterCIDR"),
        ({"config": {"clusterCIDR": "10.0.0.0/33"}}, "/config/clusterCIDR"),
        ({"config": {"clusterCIDR": ["10.0.0.256/8"]}}, "/config/clusterCIDR"),
        ({"config": {"clusterCIDR": ["fd00::/129"]}}, "/config/clusterCIDR"),
        ({"config": {"clusterCIDR": ["10.0.0.0/8", "fd00::/48", "fd01::/48"]}}, "/config/clusterCIDR"),
        ({"config": {"mode": "iptables"}}, "/config/mode"),
        ({"config": {"mode": None}}, "mode"),
        ({"config": {"metricsBindAddress": "0.0.0.0:http"}}, "/config/metricsBindAddress"),
        ({"config": {"metricsBindAddress": ":10249"}}, "/config/metricsBindAddress"),
        ({"config": {"detectLocalMode": "clusterCIDR"}}, "/config/detectLocalMode"),
        ({"config": {"ipvs": {"sheduler": "rr"}}}, "'sheduler' not allowed"),
        ({"config": {"ipvs": {"scheduler": "Round Robin"}}}, "/config/ipvs/scheduler"),
        ({"config": {"ipvs": {"syncPeriod": 30}}}, "/config/ipvs/syncPeriod"),
        ({"config": {"ipvs": {"syncPeriod": "30 seconds"}}}, "/config/ipvs/syncPeriod"),
        ({"config": {"ipvs": {"excludeCIDRs": "192.0.2.0/24"}}}, "/config/ipvs/excludeCIDRs"),
        ({"config": {"ipvs": {"strictARP": "true"}}}, "/config/ipvs/strictARP"),
        ({"config": {"conntrack": {"maxPerCore": -1}}}, "/config/conntrack/maxPerCore"),
        ({"config": {"oomScoreAdj": -1001}}, "/config/oomScoreAdj"),
        ({"config": {"clientConnection": {"kubeconfig": "/x"}}}, "'kubeconfig' not allowed"),
        ({"extraConfig": {"drainTimeOut": "1h"}}, "'drainTimeOut' not allowed"),
        ({"extraConfig": {"vipMode": "routes"}}, "/extraConfig/vipMode"),
        ({"extraConfig": {"serviceMetrics": "some"}}, "/extraConfig/serviceMetrics"),
        ({"extraConfig": {"kind": "IPVSProxyConfiguration"}}, "'kind' not allowed"),
        ({"extraArgs": "--v=2"}, "/extraArgs"),
        ({"extraArgs": ["v=2"]}, "/extraArgs/0"),
        ({"image": {"name": "ipvsproxy"}}, "'name' not allowed"),
        ({"image": {"repository": "ipvsproxy:0.1.0"}}, "/image/repository"),
        ({"image": {"tag": 1.0}}, "/image/tag"),
        ({"image": {"digest": "0a" * 32}}, "/image/digest"),
        ({"image": {"pullPolicy": "always"}}, "/image/pullPolicy"),
        ({"imagePullSecrets": ["registry"]}, "/imagePullSecrets/0"),
        ({"privilegedInit": "no"}, "/privilegedInit"),
        ({"resources": {"request": {"cpu": 1}}}, "'request' not allowed"),
        ({"resources": {"requests": {"memory": "100 MB"}}}, "/resources/requests/memory"),
        ({"updateStrategy": {"type": "Recreate"}}, "/updateStrategy/type"),
        ({"updateStrategy": {"rollingUpdate": {"maxSurge": "150%"}}}, "/updateStrategy/rollingUpdate/maxSurge"),
        ({"updateStrategy": {"rollingUpdate": {"maxSurge": 1}}}, "one of maxSurge and maxUnavailable must be 0"),
        (
            {"updateStrategy": {"rollingUpdate": {"maxUnavailable": 0}}},
            "one of maxSurge and maxUnavailable must be",
        ),
        ({"podLabels": {"app.kubernetes.io/name": "other"}}, "/podLabels/app.kubernetes.io~1name"),
        ({"podLabels": {"tier": 1}}, "/podLabels/tier"),
        ({"podAnnotations": {"a": True}}, "/podAnnotations/a"),
        ({"nodeSelector": {"moved": True}}, "/nodeSelector/moved"),
        ({"affinity": {"nodeAfinity": {}}}, "'nodeAfinity' not allowed"),
        ({"tolerations": [{"operator": "exists"}]}, "/tolerations/0/operator"),
        ({"tolerations": [{"effect": "NoRun"}]}, "/tolerations/0/effect"),
        ({"uninstall": {"timeoutSeconds": 0}}, "/uninstall/timeoutSeconds"),
        ({"podMonitor": {"enabled": True}}, "Prometheus cannot reach metrics on the loopback"),
        ({"podMonitor": {"enabled": True}, "config": {"metricsBindAddress": "127.0.0.1:9"}}, "on the loopback"),
        ({"podMonitor": {"enabled": True}, "config": {"metricsBindAddress": "[::1]:10249"}}, "on the loopback"),
        ({"podMonitor": {"interval": "30"}}, "/podMonitor/interval"),
        ({"prometheusRule": {"enabled": "yes"}}, "/prometheusRule/enabled"),
        ({"prometheusRule": {"job": 'a"b'}}, "/prometheusRule/job"),
        ({"serviceMonitor": {"enabled": True}}, "'serviceMonitor' not allowed"),
    ],
    ids=lambda value: json.dumps(value)[:70] if isinstance(value, dict) else "",
)
def test_impossible_values_and_typos_are_refused(values: ApiObject, words: str) -> None:
    with pytest.raises(helm().HelmError) as refused:
        render(API_SERVER | values)
    assert words in str(refused.value)


@pytest.mark.parametrize(
    "values",
    [
        {"config": {"clusterCIDR": "10.244.0.0/16,fd00:10:244::/48"}},
        {"config": {"clusterCIDR": ["fd00::/8"]}},
        {
            "config": {
                "bindAddress": "::",
                "metricsBindAddress": "0.0.0.0",
                "healthzBindAddress": "[::1]:10256",
            }
        },
        {"config": {"ipvs": {"syncPeriod": "1m30s", "minSyncPeriod": "0s", "excludeCIDRs": None}}},
        {"config": {"nodePortAddresses": ["10.0.0.0/8", "fd00::/8"], "featureGates": {"ComponentFlagz": False}}},
        {"config": {"logging": {"format": "json", "flushFrequency": "5s", "verbosity": 4}}},
        {"config": {"detectLocalMode": "BridgeInterface", "detectLocal": {"bridgeInterface": "cni0"}}},
        {"image": {"repository": "registry.example.com:5000/a/b-c", "tag": "0.1.0-debian13"}},
        {"updateStrategy": {"rollingUpdate": {"maxUnavailable": 1, "maxSurge": 0}}},
        {"resources": {"limits": {"cpu": 1.5, "memory": "0.5Gi"}}},
        {"global": {"imageRegistry": "of a parent chart"}},
    ],
    ids=json.dumps,
)
def test_values_that_people_have_are_accepted(values: ApiObject) -> None:
    data = by_kind(installed(API_SERVER | values))["ConfigMap"]["data"]
    assert document.decode(data["config.conf"].encode(), document.KUBE_PROXY).complaints == []


def test_dual_stack_ranges_are_a_list_and_the_file_has_them_as_kube_proxy_does() -> None:
    for given in (["10.244.0.0/16", "fd00:10:244::/48"], "10.244.0.0/16,fd00:10:244::/48"):
        objects = by_kind(installed(API_SERVER | {"config": {"clusterCIDR": given}}))
        assert config_of(objects)["clusterCIDR"] == "10.244.0.0/16,fd00:10:244::/48"


def test_everything_on_has_its_effect() -> None:
    objects = by_kind([item for item in installed(EVERYTHING) if "dashboard" not in item["metadata"]["name"]])
    config = config_of(objects)
    assert config["clientConnection"] == {"qps": 50, "kubeconfig": "/var/lib/kube-proxy/kubeconfig.conf"}
    assert (config["mode"], config["ipvs"]["scheduler"]) == ("ipvs", "mh")
    extra = document.decode(objects["ConfigMap"]["data"]["extra.conf"].encode(), document.OURS)
    assert (extra.complaints, extra.values["serviceMetrics"]) == ([], "100")

    spec = objects["DaemonSet"]["spec"]
    assert spec["updateStrategy"]["rollingUpdate"] == {"maxSurge": "10%", "maxUnavailable": 0}
    assert spec["template"]["metadata"]["labels"] == {"app.kubernetes.io/name": "ipvsproxy", "team": "network"}
    assert spec["template"]["metadata"]["annotations"] == EVERYTHING["podAnnotations"]
    pod = spec["template"]["spec"]
    for name in ("affinity", "tolerations", "imagePullSecrets", "priorityClassName"):
        assert pod[name] == EVERYTHING[name]
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux", "pool": "a"}
    for container in pod["containers"] + pod["initContainers"]:
        assert container["image"] == "registry.example.com:5000/net/ipvsproxy@sha256:" + "0a" * 32
        assert container["args"][-1] == "--v=2"
        assert "--extra-config=/etc/ipvsproxy/extra.conf" in container["args"]
        assert "ports" not in container  # they would be host ports, which a second pod could not have
    main = pod["containers"][0]
    assert main["resources"] == {"requests": {"cpu": "50m", "memory": "100Mi"}, "limits": {"memory": "1Gi"}}
    assert {main[probe]["httpGet"]["port"] for probe in ("livenessProbe", "readinessProbe")} == {9256}


def test_prometheus_finds_the_port_where_the_proxy_listens() -> None:
    for address, port in (("0.0.0.0", 10249), ("[::]:9249", 9249), ("192.0.2.1:80", 80), ("::", 10249)):
        values = API_SERVER | {"podMonitor": {"enabled": True}, "config": {"metricsBindAddress": address}}
        monitor = by_kind(installed(values))["PodMonitor"]["spec"]
        rules = monitor["podMetricsEndpoints"][0]["relabelings"]
        assert [rule.get("replacement") for rule in rules] == [None, f"$1:{port}", f"[$1]:{port}", None]
    # The job's name is what the alerts select.
    daemon_set = by_kind(installed(API_SERVER))["DaemonSet"]
    assert daemon_set["spec"]["template"]["metadata"]["labels"][monitor["jobLabel"]] == "ipvsproxy"
    assert monitor["selector"]["matchLabels"] == daemon_set["spec"]["selector"]["matchLabels"]


def test_the_chart_has_the_alerts_and_the_dashboard_as_they_are() -> None:
    objects = installed(EVERYTHING)
    alerts = yaml.safe_load(
        (CHART / "files/alerts.yaml").read_text().replace('job="ipvsproxy"', 'job="kube-proxy"')
    )
    assert [item["spec"] for item in objects if item["kind"] == "PrometheusRule"] == [alerts]
    (board,) = [item for item in objects if item["metadata"]["name"] == "ipvsproxy-dashboard"]
    assert board["metadata"]["labels"]["grafana_dashboard"] == "1"
    assert json.loads(board["data"]["ipvsproxy.json"]) == json.loads((CHART / "files/dashboard.json").read_text())


@pytest.mark.parametrize("name", ["existing ConfigMap", "existing ConfigMap and more"])
def test_an_existing_config_map_is_read_in_place_of_ours(name: str) -> None:
    objects = by_kind(installed(VARIANTS[name]))
    volumes = objects["DaemonSet"]["spec"]["template"]["spec"]["volumes"]
    named = {volume["name"]: volume["configMap"]["name"] for volume in volumes if "configMap" in volume}
    if "extraConfig" in VARIANTS[name]:
        assert named == {"config": "kube-proxy", "extra": "ipvsproxy"}
        assert objects["ConfigMap"]["data"].keys() == {"extra.conf"}
    else:
        assert named == {"config": "kube-proxy"}
        assert "ConfigMap" not in objects


def test_after_an_uninstall_cleanup_runs_where_a_proxy_was() -> None:
    made = hooks(EVERYTHING)
    proxy = by_kind([i for i in installed(EVERYTHING) if i["kind"] == "DaemonSet"])["DaemonSet"]["spec"][
        "template"
    ]
    template = made["DaemonSet"]["spec"]["template"]
    for name in ("nodeSelector", "affinity", "tolerations", "hostNetwork", "imagePullSecrets"):
        assert template["spec"][name] == proxy["spec"][name]
    # Not a pod that the DaemonSet of the next installation, its monitor or its users take for a proxy.
    assert not template["metadata"]["labels"].items() & proxy["metadata"]["labels"].items()
    (cleanup,) = template["spec"]["initContainers"]
    assert cleanup["command"] == ["/usr/local/bin/ipvsproxy", "cleanup"]
    # Reserved ports are below /proc/sys, and a kube-proxy that runs is seen by its process.
    assert cleanup["securityContext"] == {"privileged": True, "readOnlyRootFilesystem": True}
    assert template["spec"]["hostPID"]
    # The file has the ranges of virtual servers that stay.
    assert cleanup["args"] == ["--config=/var/lib/kube-proxy/config.conf"]
    assert config_of(made)["ipvs"]["excludeCIDRs"] == ["192.0.2.0/24"]
    assert template["spec"]["volumes"][0]["configMap"]["name"] == made["ConfigMap"]["metadata"]["name"]


def test_helm_waits_for_the_job_last_and_it_needs_neither_services_nor_a_node_with_a_proxy() -> None:
    made = hooks(EVERYTHING)
    weights = {kind: int(i["metadata"]["annotations"].get("helm.sh/hook-weight", "0")) for kind, i in made.items()}
    assert max(weights.values()) == weights.pop("Job")
    assert max(weights.values()) == weights.pop("DaemonSet")
    assert set(weights.values()) == {-2}
    pod = made["Job"]["spec"]["template"]["spec"]
    assert pod["hostNetwork"]
    assert "affinity" not in pod
    assert pod["nodeSelector"] == {"kubernetes.io/os": "linux"}
    allowed = [(rule["resources"], rule["verbs"]) for rule in made["Role"]["rules"]]
    assert allowed == [(["daemonsets"], ["get"]), (["pods"], ["list"])]
    assert made["Job"]["spec"]["activeDeadlineSeconds"] < 300  # helm's own limit is 5 minutes


def test_an_existing_config_map_is_used_to_clean_up_too() -> None:
    made = hooks(VARIANTS["existing ConfigMap"])
    for kind in ("DaemonSet", "Job"):
        volume = made[kind]["spec"]["template"]["spec"]["volumes"][0]
        assert volume == {"name": "config", "configMap": {"name": "kube-proxy"}}
    assert made["ConfigMap"]["data"].keys() == {"cleaned.py"}


def test_without_a_privileged_container_cleanup_does_what_it_can() -> None:
    made = hooks(API_SERVER | {"privilegedInit": False})
    (cleanup,) = made["DaemonSet"]["spec"]["template"]["spec"]["initContainers"]
    assert cleanup["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN"]}
    assert not cleanup["securityContext"]["allowPrivilegeEscalation"]


def test_cleaning_up_can_be_declined() -> None:
    assert hooks(VARIANTS["least"]) == {}


def test_the_notes_report_what_does_not_work_as_it_is() -> None:
    plain = notes(API_SERVER)
    assert "names no registry" in plain
    assert "config.clusterCIDR is empty" in plain
    assert "METRICS are served on the loopback of each node, port 10249: Prometheus does not reach them" in plain
    assert "removes all Services from the nodes' kernels" in plain
    shared = notes(VARIANTS["existing ConfigMap"])
    assert "the ConfigMap kube-proxy is not the chart's own" in shared
    full = notes(EVERYTHING)
    for heading in ("IMAGE", "CONFIGURATION", "loopback"):
        assert heading not in full
    assert "METRICS are served on [::]:9249 of each node, without credentials" in full
    assert "leaves the Services in the nodes' kernels" in notes(VARIANTS["least"])


def test_tenants_come_with_their_further_rights_as_the_manifests_have_them() -> None:
    values = {**API_SERVER, "extraConfig": {"tenantLabel": "ipvsproxy.io/tenant"}}
    made = [item for item in render(values) if item["metadata"]["name"] == "ipvsproxy-tenants"]
    assert [item["kind"] for item in made] == ["ClusterRole", "ClusterRoleBinding"]
    assert made == list(yaml.safe_load_all((CHART.parents[1] / "kustomize/tenants/rbac.yaml").read_text()))
    assert not [item for item in render(API_SERVER) if item["metadata"]["name"] == "ipvsproxy-tenants"]
