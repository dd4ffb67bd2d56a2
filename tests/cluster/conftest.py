"""Trials of the proxy in a real cluster, one for the whole session; KUBE names its programs."""

from __future__ import annotations

import contextlib
import os
import pathlib
from collections.abc import Iterator

import pytest

from tests.cluster import application, binaries, lifecycle, proxies
from tests.cluster.application import RunningApplication
from tests.cluster.binaries import Kube
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import Cluster

NAME = "trials"
TRIAL_SECONDS = 7200
"""A cluster comes up within a trial, and all of it may wait for others on the machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.is_relative_to(pathlib.Path(__file__).parent):
            item.add_marker(pytest.mark.timeout(TRIAL_SECONDS))


@pytest.fixture(scope="session")
def kube() -> Kube:
    if not os.environ.get("KUBE"):
        pytest.skip(binaries.NO_KUBE)
    return binaries.open_folder(os.environ["KUBE"])


@pytest.fixture(scope="session")
def running(kube: Kube) -> Iterator[RunningApplication]:
    """With our proxy; NAME is of one that is up and is to stay."""
    name = os.environ.get("NAME")
    cluster = lifecycle.remembered(name)[0] if name else Cluster(NAME)
    with contextlib.nullcontext() if name else lifecycle.temporary(cluster, kube, proxies.OURS, ""):
        kubectl = Kubectl(cluster, kube)
        yield RunningApplication(cluster, kube, kubectl, application.install(cluster, kubectl))
