"""Print, as on a terminal, what the pictures of docs/ show: real commands in the lab. Run by `make picture`."""

from __future__ import annotations

import os
import pathlib
import pty
import subprocess
import sys
import tempfile

import netns
from lab import CLUSTER_CIDRS, Lab
from manifests import Folder
from probe import probe
from sick_node import HOST_PORT, NODE_PORT, PODS, WEB, healthy_node, table

CUT = "---8<---"
TERMINAL = {**os.environ, "TERM": "xterm-256color", "COLORTERM": "", "NO_COLOR": "", "PYTHONUNBUFFERED": "1"}


def on_terminal(where: str, argv: list[str]) -> str:
    """Run a program as on a terminal and return what it prints, colours and all."""
    ours, theirs = pty.openpty()
    environment = {name: value for name, value in TERMINAL.items() if value}
    with netns.inside(where):
        process = subprocess.Popen(argv, stdin=theirs, stdout=theirs, stderr=theirs, env=environment)
    os.close(theirs)
    parts = []
    while True:
        try:
            part = os.read(ours, 1 << 16)
        except OSError:  # the other end is closed
            break
        if not part:
            break
        parts.append(part)
    process.wait()
    os.close(ours)
    return b"".join(parts).decode()


def main() -> None:
    with (
        tempfile.TemporaryDirectory() as folder,
        Lab() as lab,
        healthy_node(lab, Folder(pathlib.Path(folder))) as world,
    ):
        for name in PODS * 4:
            probe(lab.host(name).netns, WEB, 80)
            probe(lab.client.netns, world.node.ipv4, NODE_PORT)
        settings = [f"--manifests={folder}", "--hostname-override=node1", f"--cluster-cidr={CLUSTER_CIDRS}",
                    "--ipvs-sync-period=1h"]  # fmt: skip
        shown = {"show": ["show", "endpoints"], "doctor": ["doctor"]}
        with table(HOST_PORT)(world):
            for name, words in shown.items():
                command = [sys.executable, "-m", "ipvsproxy", *words, *settings]
                text = on_terminal(world.node.netns, command)
                print(f"{CUT} {name}\n# ipvsproxy {' '.join(words)}\n{text.rstrip()}", flush=True)
    print(f"{CUT} end")


if __name__ == "__main__":
    main()
