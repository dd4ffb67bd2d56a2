"""Trials of the proxy in a real cluster, one for the whole session; KUBE names its programs."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.cluster import application, binaries, lifecycle, proxies
from tests.cluster.application import Running
from tests.cluster.binaries import Kube
from tests.cluster.kubectl import Kubectl
from tests.cluster.place import Cluster

NAME = "trials"


@pytest.fixture(scope="session")
def kube() -> Kube:
    if not os.environ.get("KUBE"):
        pytest.skip(binaries.NO_KUBE)
    return binaries.open_folder(os.environ["KUBE"])


@pytest.fixture(scope="session")
def running(kube: Kube) -> Iterator[Running]:
    """With our proxy; NAME is of one that is up and is to stay."""
    name = os.environ.get("NAME")
    cluster = lifecycle.remembered(name)[0] if name else Cluster(NAME)
    with contextlib.nullcontext() if name else lifecycle.temporary(cluster, kube, proxies.OURS, ""):
        kubectl = Kubectl(cluster, kube)
        yield Running(cluster, kube, kubectl, application.install(cluster, kubectl))
