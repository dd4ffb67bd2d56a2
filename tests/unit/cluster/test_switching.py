"""The steps of deploy/switch.md, as the trials make them."""

from __future__ import annotations

import re

from tests.cluster import proxies, switching
from tests.cluster.place import REPO
from tests.support.repository import VERSION

PAGE = (REPO / "deploy/switch.md").read_text()


def test_the_configuration_is_kube_proxys_with_mode_ipvs():
    theirs = {each["kind"]: each for each in proxies.kube_proxy("v1.36.2", "nftables")}["ConfigMap"]
    ours = switching.configuration(theirs)
    assert ours["metadata"]["name"] == "ipvsproxy-config"
    assert "mode: ipvs\n" in ours["data"]["config.conf"]
    assert ours["data"]["config.conf"].replace("mode: ipvs", "mode: nftables") == theirs["data"]["config.conf"]
    assert ours["data"]["kubeconfig.conf"] == theirs["data"]["kubeconfig.conf"]


def test_the_chart_gets_the_values_that_the_page_names():
    for value in ("existingConfigMap=ipvsproxy-config", "nodeSelector.ipvsproxy=yes"):
        assert f"--set {value}" in PAGE
    daemonset = next(each for each in switching.chart() if each["kind"] == "DaemonSet")
    pod = daemonset["spec"]["template"]["spec"]
    assert pod["nodeSelector"]["ipvsproxy"] == "yes"
    assert {each["name"] for each in pod["volumes"] if "configMap" in each} == {"config"}
    assert pod["containers"][0]["image"] == f"registry.example.com/ipvsproxy:{VERSION}"


def test_services_of_all_kinds_are_among_those_that_are_there_beside():
    specs = [each["spec"] for each in switching.kinds(10)]
    assert sum(spec.get("type") == "NodePort" for spec in specs) == 2
    assert sum(spec.get("sessionAffinity") == "ClientIP" for spec in specs) == 2
    assert sum(len(spec["ports"]) == 2 for spec in specs) == 2
    assert sum(spec.get("internalTrafficPolicy") == "Local" for spec in specs) == 2
    assert len({each["metadata"]["name"] for each in switching.kinds(10)}) == 10


def test_the_script_of_the_page_moves_a_node():
    assert re.search(r"deploy/switch/node\.sh to NODE", PAGE)
    assert (switching.SWITCH / "node.sh").exists()
