"""User-mode Linux: a kernel that is an ordinary program, made by tools/usermode-setup.

Its network stack is that of any other kernel of its version (Documentation/virt/uml). No right and no KVM is
needed. Programs compute at the speed of this machine, on one processor; system calls are slow. Where neither this
machine's kernel nor KVM will do, starting programs is several times faster than under emulation, and computing ten
times or more.
"""

from __future__ import annotations

import os
import pathlib
import random
import subprocess

from guest import GUEST_INIT, REPO, wanted_kernel


def prepare() -> None:
    """Make the kernel; some minutes, once."""
    wanted = wanted_kernel()
    subprocess.run([REPO / "tools/usermode-setup", *([wanted] if wanted else [])], check=True)


def kernel() -> pathlib.Path:
    """The program: from this distribution's source, or from that of the wanted suite."""
    wanted = wanted_kernel()
    return REPO / (f".cache/usermode-{wanted}" if wanted else ".cache/usermode") / "linux"


def release() -> str:
    """The version of the kernel."""
    said = subprocess.run([kernel(), "--version"], capture_output=True, text=True, check=True)
    return said.stdout.split()[-1]


def argv(folder: pathlib.Path) -> list[str]:
    """The words that boot it, with this machine's root, which guest-init covers before anything is written."""
    memory = os.environ.get("IPVSPROXY_VM_MEMORY") or "4G"
    # It runs one program at a time, but is several processes, which would wake each other across processors.
    cpu = str(random.choice(sorted(os.sched_getaffinity(0))))
    words = ["taskset", "--cpu-list", cpu, str(kernel())]
    words += ["root=/dev/root", "rootfstype=hostfs", "rootflags=/", "ro"]
    words += [f"mem={memory}", "con=null", "con0=null,fd:2", f"uml_dir={folder}", "quiet"]
    return [*words, f"init={GUEST_INIT}", "--", str(folder)]
