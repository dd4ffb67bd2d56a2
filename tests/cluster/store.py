"""The images as containerd keeps them, made once on this machine: nodes use the files in place, import nothing."""

from __future__ import annotations

import hashlib
import pathlib
import shutil
import subprocess
import tempfile

from tests.cluster import programs

NAMESPACE = "k8s.io"
START_SECONDS = 60
CONFIG = """
version = 2
root = "{root}"
state = "{state}"
disabled_plugins = ["io.containerd.grpc.v1.cri"]
[grpc]
  address = "{socket}"
"""


def path(folder: pathlib.Path) -> pathlib.Path:
    """Where the store of the archives in a folder is, or is to be."""
    names = "\n".join(sorted(archive.name for archive in folder.glob("*.tar")))
    return folder / f"store-{hashlib.sha256(names.encode()).hexdigest()[:12]}"


def make(folder: pathlib.Path, kept: str = "") -> pathlib.Path:
    """Make the store, and remove others but those that `kept` names, which clusters that run use.

    Raises CalledProcessError, and programs.Failed where containerd does not start.
    """
    wanted = path(folder)
    for old in set(folder.glob("store-*")) - {wanted}:
        if old.name not in kept:
            shutil.rmtree(old)
    if not wanted.exists():
        made = folder / "store-part"
        with tempfile.TemporaryDirectory() as scratch:
            _fill(made, sorted(folder.glob("*.tar")), pathlib.Path(scratch))
        made.rename(wanted)
    return wanted


def _fill(root: pathlib.Path, archives: list[pathlib.Path], scratch: pathlib.Path) -> None:
    socket, config = scratch / "socket", scratch / "config.toml"
    config.write_text(CONFIG.format(root=root, state=scratch / "state", socket=socket))
    ctr = ["ctr", "--address", socket, "--namespace", NAMESPACE]
    with (scratch / "log").open("w") as log:
        process = subprocess.Popen(["containerd", "--config", config], stdout=log, stderr=log)
    try:
        programs.wait("containerd does not answer", lambda: _answers([*ctr, "version"]), START_SECONDS)
        for archive in archives:
            subprocess.run([*ctr, "images", "import", archive], capture_output=True, text=True, check=True)
    finally:
        process.terminate()
        process.wait()


def _answers(words: list[object]) -> bool:
    return subprocess.run([*map(str, words)], capture_output=True, check=False).returncode == 0
