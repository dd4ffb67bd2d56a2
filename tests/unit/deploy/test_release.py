"""What Helm does with the chart in a cluster: the order in which a release and its hooks are made and deleted."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from tests.support.api_object import ApiObject
from tests.support.chart_values import API_SERVER, EVERYTHING
from tests.support.deploy_tools import CHART, helm
from tests.support.helm_cluster import HelmApiServer

OURS = {(kind, "ipvsproxy") for kind in ("ServiceAccount", "ClusterRoleBinding", "ConfigMap", "DaemonSet")}
HOOKS = ("ServiceAccount", "ConfigMap", "Role", "RoleBinding", "DaemonSet", "Job")
OPERATOR = ("podMonitor", "prometheusRule")  # kinds that this cluster does not have


@contextlib.contextmanager
def released(cluster: HelmApiServer, values: ApiObject) -> Iterator[Any]:
    """Install the chart and forget that it was made."""
    with (
        cluster,
        helm().Config(
            kubeconfig_content=cluster.kubeconfig, namespace="kube-system", storage_driver="memory"
        ) as config,
    ):
        config.install(CHART, "ipvsproxy", values)
        assert cluster.names() >= OURS
        cluster.history.clear()
        yield config


def test_an_uninstall_waits_for_the_job_after_everything_of_the_release_is_gone_and_leaves_nothing() -> None:
    cluster = HelmApiServer()
    values = {name: value for name, value in EVERYTHING.items() if name not in OPERATOR}
    with released(cluster, values) as config:
        config.uninstall("ipvsproxy", timeout=60)
    assert cluster.names() == set()
    happened = cluster.history
    first = happened.index(("made", "ServiceAccount", "ipvsproxy-cleanup"))
    assert {("deleted", *name) for name in OURS} <= set(happened[:first])
    made = [kind for what, kind, _ in happened if what == "made"]
    assert made[-2:] == ["DaemonSet", "Job"]
    assert sorted(made) == sorted(HOOKS)
    assert happened[-len(HOOKS) - 1] == ("ended", "Job", "ipvsproxy-cleanup")
    assert {what for what, *_ in happened[-len(HOOKS) :]} == {"deleted"}


def test_when_a_node_is_not_clean_helm_reports_it_and_the_job_stays_for_its_log() -> None:
    cluster = HelmApiServer(well=False)
    with released(cluster, API_SERVER) as config:
        with pytest.raises(helm().HelmError, match="Job/kube-system/ipvsproxy-cleanup not ready"):
            config.uninstall("ipvsproxy", timeout=60)
        assert cluster.names() == {("Job", "ipvsproxy-cleanup")}
        # It is in nobody's way afterwards.
        cluster.well = True
        config.install(CHART, "ipvsproxy", API_SERVER)
        config.uninstall("ipvsproxy", timeout=60)
    assert cluster.names() == set()


def test_cleaning_up_can_be_declined_in_the_values() -> None:
    cluster = HelmApiServer()
    with released(cluster, API_SERVER | {"uninstall": {"cleanup": False}}) as config:
        config.uninstall("ipvsproxy", timeout=60)
    assert cluster.names() == set()
    assert {what for what, *_ in cluster.history} == {"deleted"}
