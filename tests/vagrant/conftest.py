"""What these tests need and this machine may lack: skipped then, and failed where nothing may be skipped."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator

import pytest

from tests.vagrant import scratch


def _require(*reasons: str) -> None:
    found = [reason for reason in reasons if reason]
    if found and os.environ.get("IPVSPROXY_REQUIRE") == "1":
        pytest.fail("; ".join(found), pytrace=False)
    if found:
        pytest.skip("; ".join(found))


def _program(name: str) -> str:
    return "" if shutil.which(name) else f"{name} is not installed"


@pytest.fixture(scope="session")
def vagrant() -> str:
    _require(_program("vagrant"), _program("ruby"))
    return "vagrant"


@pytest.fixture(scope="session")
def node(vagrant: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[scratch.ScratchDebian]:
    """A Debian on which the set-up of node1 has run once, packages and all."""
    _require("" if os.geteuid() == 0 else "not root")
    scratch.make_base()
    machine = scratch.ScratchDebian(tmp_path_factory.mktemp("node"))
    scripts = f"{scratch.PROVISION}/network.sh; {scratch.PROVISION}/node.sh"
    machine.first_output = machine.run(scripts, scratch.environment("node1"))
    machine.first_calls = machine.calls()
    return machine
