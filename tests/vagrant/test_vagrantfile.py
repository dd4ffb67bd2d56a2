"""The Vagrantfile: valid for Vagrant itself, and what it asks for hangs together."""

from __future__ import annotations

import ipaddress
import os
import re
import shutil
import subprocess

import pytest

from tests.vagrant import scratch

pytestmark = pytest.mark.usefixtures("vagrant")


def test_vagrant_finds_it_valid(tmp_path) -> None:
    # A copy, since Vagrant keeps its state beside the file.
    shutil.copy(scratch.VAGRANTFILE, tmp_path)
    done = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | {"HOME": str(tmp_path), "VAGRANT_CHECKPOINT_DISABLE": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "validated successfully" in done.stdout


def addresses(machine: str) -> tuple[str, str]:
    env = scratch.environment(machine)
    return env["ADDRESS4"], env["ADDRESS6"]


def routes(machine: str) -> dict[str, str]:
    return dict(word.split("=") for word in scratch.environment(machine)["ROUTES"].split())


def test_machines_and_scripts() -> None:
    machines = scratch.asked_for()
    machines.pop("*")
    scripts = {
        name: [call["options"]["inline"] for call in calls if call["name"] == "provision"]
        for name, calls in machines.items()
    }
    assert list(scripts) == ["node1", "node2", "node3", "client"]
    for lines in scripts.values():
        assert lines.pop() == "systemctl restart lab-network"
        for line in lines:
            assert os.access(line.replace("/ipvsproxy", str(scratch.REPO)), os.X_OK), line


@pytest.mark.parametrize(("count", "fine"), [("2", True), ("9", True), ("1", False), ("10", False)])
def test_the_number_of_nodes_is_a_setting(count: str, fine: bool) -> None:
    if not fine:
        with pytest.raises(AssertionError, match="NODES must be"):
            scratch.asked_for(NODES=count)
    else:
        assert len(scratch.asked_for(NODES=count)) == int(count) + 2


@pytest.mark.parametrize("version", ["1.31", "1.36", "1.37"])
def test_kubernetes_versions_that_the_lab_is_for(version: str) -> None:
    assert scratch.environment("node1", KUBERNETES=version)["KUBERNETES"] == version


@pytest.mark.parametrize("version", ["1.30", "1.38", "v1.36", "1.36.2", "latest", ""])
def test_other_kubernetes_versions_are_refused_with_a_sentence(version: str) -> None:
    with pytest.raises(
        AssertionError, match=rf"KUBERNETES must be a minor version from 1\.31 to 1\.37, not {version}"
    ):
        scratch.asked_for(KUBERNETES=version)


def test_every_setting_comes_from_the_environment() -> None:
    names = re.findall(r'^  "(\w+)" => "', scratch.VAGRANTFILE.read_text(), re.MULTILINE)
    assert len(names) > 10
    told = scratch.asked_for(NODES="2", LAN4="10.1.2.0/24", PODS4="10.9.0.0/16", BOX="some/box")
    env = next(call["options"]["env"] for call in told["node2"] if call["name"] == "provision")
    assert set(names) <= set(env)
    assert (env["ADDRESS4"], env["POD_CIDR4"]) == ("10.1.2.12", "10.9.2.0/24")
    assert next(call["words"] for call in told["*"] if call["name"] == "box=") == ["some/box"]


def test_node_networks_lie_in_the_cluster_and_have_routes_on_the_other_nodes() -> None:
    own = {name: scratch.environment(name) for name in ("node1", "node2", "node3")}
    for name, env in own.items():
        for family in ("4", "6"):
            pods = ipaddress.ip_network(env[f"POD_CIDR{family}"])
            assert pods.subnet_of(ipaddress.ip_network(env[f"PODS{family}"]))
            assert ipaddress.ip_address(env[f"ADDRESS{family}"]) in ipaddress.ip_network(env[f"LAN{family}"])
            assert str(pods) not in routes(name)
            for other in own.keys() - {name}:
                assert routes(other)[str(pods)] == env[f"ADDRESS{family}"]
    # A node that is added later is known already.
    assert len(routes("node1")) == 2 * 8


def test_the_client_reaches_vips_through_a_worker() -> None:
    env = scratch.environment("client")
    via4, via6 = addresses("node2")
    assert routes("client") == {env["VIPS4"]: via4, env["EXTERNAL4"]: via4, env["VIPS6"]: via6}
    assert "POD_CIDR4" not in env
