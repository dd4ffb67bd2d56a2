"""What a machine runs out of (disk for logs, memory, descriptors), and what the kernel refuses.

It costs no connection and no Service but those it is about.
"""

from __future__ import annotations

import contextlib
import os
import pathlib
import resource
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from ipvsproxy.base import messages
from tests.lab import netns
from tests.lab.lab import Lab, LabHost
from tests.lab.manifests import ManifestFolder, endpoint, endpoint_slice, port, service
from tests.lab.probe import Conversation, ProbeQuestion, probe
from tests.lab.proxy import LabProxy
from tests.support.repository import REPO

pytestmark = pytest.mark.needs("ip_vs", "nf_tables")

RUN = (sys.executable, "-m", "ipvsproxy", "run")
REFUSING = (sys.executable, str(REPO / "tests/lab/refusing.py"))
TO_NOWHERE = ("sh", "-c", 'exec "$@" >/dev/full 2>&1', "sh", *RUN)
VIP, OTHER = "10.96.1.1", "10.96.1.2"
WEB = [port(80, 8080)]
SECONDS = 120.0


def serve(lab: Lab, manifests: ManifestFolder, vip: str, *pods: LabHost) -> None:
    name = f"web-{vip.rpartition('.')[2]}"
    ready = [endpoint(lab, pod) for pod in pods]
    manifests.write(name, service(name, WEB, [vip]), endpoint_slice(name, WEB, ready))


def answered(lab: Lab, vip: str, *pods: LabHost) -> bool:
    """Wait until one of the pods answers."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if probe(lab.nodes[0].netns, vip, 80).name in {pod.name for pod in pods}:
            return True
        time.sleep(0.2)
    return False


@pytest.fixture
def pods(lab: Lab, manifests: ManifestFolder) -> tuple[LabHost, ...]:
    for pod in lab.pods:
        lab.responder.listen(pod, 8080)
    manifests.write_nodes(lab)
    serve(lab, manifests, VIP, lab.pods[0])
    return lab.pods


def started(
    lab: Lab, manifests: ManifestFolder, pods: tuple[LabHost, ...], command: tuple[str, ...] = RUN
) -> LabProxy:
    proxy = lab.proxy(lab.nodes[0], manifests.path, command=command, wait=False)
    assert answered(lab, VIP, pods[0]), proxy.text()
    return proxy


def test_a_full_disk_for_logs(lab: Lab, manifests: ManifestFolder, pods: tuple[LabHost, ...]) -> None:
    proxy = started(lab, manifests, pods, TO_NOWHERE)
    for round_ in range(5):
        manifests.write("broken", {"kind": "Service", "metadata": {"name": f"bad{round_}"}})
        serve(lab, manifests, VIP, pods[round_ % 4])
        assert answered(lab, VIP, pods[round_ % 4])
    assert proxy.is_running()


def test_no_descriptors_left(lab: Lab, manifests: ManifestFolder, pods: tuple[LabHost, ...]) -> None:
    proxy = started(lab, manifests, pods)
    _, hard = resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE)
    used = max(int(path.name) for path in pathlib.Path(f"/proc/{proxy.pid}/fd").iterdir()) + 1
    # One is left, by which the folder is read; no socket and no thread gets another one.
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (used + 1, hard))
    serve(lab, manifests, OTHER, pods[1])
    assert answered(lab, OTHER, pods[1])
    netns.run(lab.nodes[0].netns, ["nft", "delete", "table", "inet", "ipvsproxy"])
    netns.run(lab.nodes[0].netns, ["ip", "link", "del", "kube-ipvs0"])
    assert answered(lab, VIP, pods[0])
    assert answered(lab, OTHER, pods[1])
    assert proxy.is_running()
    resource.prlimit(proxy.pid, resource.RLIMIT_NOFILE, (hard, hard))
    serve(lab, manifests, OTHER, pods[2])
    assert answered(lab, OTHER, pods[2])


@pytest.fixture
def memory_group() -> Iterator[pathlib.Path]:
    """A cgroup of our own, where this kernel counts memory."""
    top = pathlib.Path("/run/ipvsproxy-cgroup")
    top.mkdir(exist_ok=True)
    made = subprocess.run(["mount", "-t", "cgroup2", "none", top], capture_output=True, text=True, check=False)
    if made.returncode != 0:
        pytest.skip(f"no cgroups: {made.stderr}")
    group = top / f"lab{os.getpid()}"
    try:
        group.mkdir()
        with contextlib.suppress(OSError):
            (top / "cgroup.subtree_control").write_text("+memory")
        if not (group / "memory.max").exists():
            pytest.skip("this kernel does not count memory by cgroup")
        yield group
    finally:
        with contextlib.suppress(OSError):
            group.rmdir()
        subprocess.run(["umount", top], check=False)


def test_the_memory_limit_is_reached(
    lab: Lab, manifests: ManifestFolder, pods: tuple[LabHost, ...], memory_group: pathlib.Path
) -> None:
    proxy = started(lab, manifests, pods)
    with Conversation(ProbeQuestion(lab.nodes[0].netns, VIP, 80)) as conversation:
        # What it has counts for its old group: the limit is reached with the next few pages.
        with contextlib.suppress(OSError):
            (memory_group / "memory.swap.max").write_text("0")
        (memory_group / "cgroup.procs").write_text(str(proxy.pid))
        (memory_group / "memory.max").write_text("256K")
        for number in range(3, 50):
            serve(lab, manifests, f"10.96.1.{number}", *pods)
        deadline = time.monotonic() + SECONDS
        while proxy.is_running() and time.monotonic() < deadline:
            time.sleep(0.1)
        assert not proxy.is_running()
        assert conversation.ask().name == pods[0].name
        assert probe(lab.nodes[0].netns, VIP, 80).name == pods[0].name
        proxy.start()
        assert answered(lab, "10.96.1.49", *pods)
        assert conversation.ask().name == pods[0].name


@pytest.mark.parametrize("adopted", [False, True], ids=["on an empty node", "with open connections"])
def test_nftables_refuses_an_element_in_the_first_loading(
    lab: Lab, manifests: ManifestFolder, pods: tuple[LabHost, ...], tmp_path: pathlib.Path, adopted: bool
) -> None:
    node, refused = lab.nodes[0].netns, tmp_path / "refused"
    serve(lab, manifests, OTHER, pods[1])
    with contextlib.ExitStack() as open_ones:
        if adopted:
            first = started(lab, manifests, pods)
            assert answered(lab, OTHER, pods[1])
            talks = [open_ones.enter_context(Conversation(ProbeQuestion(node, vip, 80))) for vip in (VIP, OTHER)]
            first.kill()
        refused.write_text(f"{OTHER} . tcp . 80")
        proxy = started(lab, manifests, pods, (*REFUSING, str(refused), "run"))
        said = proxy.wait_for(messages.NFTABLES_REFUSED)
        assert (said["address"], said["frontends"]) == (OTHER, [refused.read_text()])
        assert probe(node, OTHER, 80, timeout=1).outcome != "answered"
        if adopted:
            assert [talk.ask().name for talk in talks] == [pods[0].name, pods[1].name]
        refused.unlink()
        assert answered(lab, OTHER, pods[1])
        assert answered(lab, VIP, pods[0])
