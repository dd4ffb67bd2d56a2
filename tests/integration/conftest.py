"""Fixtures of the integration tests: one lab for the session, a manifests folder for each test.

The lab is shared because building it takes seconds; what a test serves, starts or routes in it is
taken back after the test. A failing test shows the logs of the proxies it started.
"""

from __future__ import annotations

import os
import pathlib
from collections.abc import Iterator

import pytest

from tests.conformance.proxy import Zygote
from tests.lab.capabilities import missing
from tests.lab.kube_proxy_state import Served
from tests.lab.lab import Lab, LabNode
from tests.lab.manifests import ManifestFolder
from tests.lab.rolling import add_addresses
from tests.lab.takeover import others_node, serve
from tests.support import surroundings

surroundings.without_proxies()
LAB_NEEDS = ("root", "namespaces", "br_netfilter")


def _require(*names: str) -> None:
    reasons = [reason for reason in map(missing, names) if reason]
    if reasons and os.environ.get("IPVSPROXY_REQUIRE") == "1":
        pytest.fail(f"required here, but missing: {'; '.join(reasons)}", pytrace=False)
    if reasons:
        pytest.skip("; ".join(reasons))


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        _require(*mark.args)


@pytest.fixture(scope="session")
def session_lab() -> Iterator[Lab]:
    _require(*LAB_NEEDS)
    with Lab() as lab:
        yield lab


@pytest.fixture(scope="module")
def lab_of_three() -> Iterator[Lab]:
    """A lab with three nodes, for a whole module."""
    _require(*LAB_NEEDS)
    with Lab(nodes=3) as lab:
        yield lab


@pytest.fixture
def lab(session_lab: Lab) -> Iterator[Lab]:
    """The session's lab, as new: no listener, no proxy, no route of another test."""
    yield session_lab
    session_lab.take_back()


@pytest.fixture(scope="session")
def zygote() -> Iterator[Zygote]:
    """What quickly started proxies are forked from."""
    _require(*LAB_NEEDS)
    with Zygote() as zygote:
        yield zygote


@pytest.fixture(scope="module")
def spacious_lab(session_lab: Lab) -> Iterator[Lab]:
    """The session's lab with further addresses for pods, for a whole module."""
    add_addresses(session_lab)
    yield session_lab
    session_lab.take_back()
    add_addresses(session_lab, "del")


@pytest.fixture
def folder(spacious_lab: Lab, manifests: ManifestFolder) -> Iterator[ManifestFolder]:
    """The manifests of one test in the spacious lab, with its nodes."""
    manifests.write_nodes(spacious_lab)
    yield manifests
    spacious_lab.take_back()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Show the proxies' logs with a failure."""
    report = yield
    args = getattr(item, "funcargs", {})
    if report.failed and (used := args.get("lab") or args.get("spacious_lab") or args.get("session_lab")):
        report.sections += [(f"log of {proxy.log.name}", proxy.text()) for proxy in used.proxies]
    return report


@pytest.fixture
def manifests(tmp_path: pathlib.Path) -> ManifestFolder:
    """An empty manifests folder of the test's own."""
    folder = tmp_path / "manifests"
    folder.mkdir()
    return ManifestFolder(folder)


@pytest.fixture
def served(lab: Lab, manifests: ManifestFolder) -> tuple[Served, ...]:
    """The Services of a node that a kube-proxy had, and their endpoints."""
    return serve(lab, manifests)


@pytest.fixture
def node(lab: Lab) -> Iterator[LabNode]:
    """A node of the lab on which other programs have rules and virtual servers of their own."""
    with others_node(lab) as node:
        yield node
