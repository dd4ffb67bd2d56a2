"""The programs that are not of the distribution: what the folder KUBE must hold, and what it may.

Official ones, of one version of Kubernetes; docs/cluster.md says where they are found.
"""

from __future__ import annotations

import os
import pathlib
import subprocess
from dataclasses import dataclass

CONTROL = ("kube-apiserver", "kube-controller-manager", "kube-scheduler", "kubectl")
NEEDED = (*CONTROL, "kubelet")
NO_KUBE = "KUBE names no folder with the programs of Kubernetes: the cluster is left out (docs/cluster.md)"


class BinaryMissing(Exception):
    """What was asked for cannot be had; the text is for people."""


@dataclass(frozen=True, slots=True)
class Kube:
    """The folder with the programs."""

    folder: pathlib.Path

    def __getitem__(self, program: str) -> pathlib.Path:
        """The path of a program; Missing where there is none."""
        path = self.folder / program
        if not is_program(path):
            message = f"{self.folder} has no program {program} (docs/cluster.md)"
            raise BinaryMissing(message)
        return path

    def has(self, program: str) -> bool:
        return is_program(self.folder / program)

    def archives(self) -> list[pathlib.Path]:
        """Images that were given as archives."""
        return sorted((self.folder / "images").glob("*.tar"))

    def version(self, program: str = "kube-apiserver") -> str:
        """Such as v1.36.2."""
        done = subprocess.run([self[program], "--version"], capture_output=True, text=True, check=True)
        return done.stdout.split()[-1]


def is_program(path: pathlib.Path) -> bool:
    return path.is_file() and os.access(path, os.X_OK)


def open_folder(name: str, needed: tuple[str, ...] = NEEDED) -> Kube:
    """The folder that KUBE names; Missing with one sentence where it, or a program in it, is not there."""
    folder = pathlib.Path(name).expanduser().resolve()
    if not folder.is_dir():
        message = f"KUBE={name}: no such folder (docs/cluster.md)"
        raise BinaryMissing(message)
    if lacking := [program for program in needed if not is_program(folder / program)]:
        message = f"KUBE={name} lacks {', '.join(lacking)} (docs/cluster.md)"
        raise BinaryMissing(message)
    return Kube(folder)
