"""A micro-VM: the distribution's kernel under QEMU, booted by virtme-ng.

KVM is used when a short probe boot shows that it works (a KVM that cannot run this kernel hangs without a word),
software emulation otherwise.
"""

from __future__ import annotations

import os
import pathlib
import platform
import shlex
import subprocess
import sys
import time
from functools import partial

from tests.guest.guest import CACHE, GUEST_INIT, REPO, Guest, wanted_kernel

PROBE_SECONDS = 20


def prepare() -> None:
    """Install or download what it takes."""
    wanted = wanted_kernel()
    suite = [wanted] if wanted and "/" not in wanted else []
    subprocess.run([REPO / "tools/vm-setup", *suite], check=True)


def kernel() -> pathlib.Path:
    """The kernel to boot: the distribution's, or the wanted one, …/boot/vmlinuz-VERSION of an unpacked package."""
    wanted = wanted_kernel()
    if wanted and "/" in wanted:
        return (REPO / wanted).resolve()
    return (REPO / (f".cache/kernel-{wanted}" if wanted else ".cache/kernel") / "vmlinuz").resolve()


def argv(folder: pathlib.Path, *, kvm: bool, counting: bool = False) -> list[str]:
    """The words that boot it; with `counting`, as a machine of one CPU whose clock counts instructions.

    QEMU's `-icount shift=0` lets a nanosecond pass for each instruction of the guest, whatever the host does.
    """
    cpus = "1" if counting else os.environ.get("IPVSPROXY_VM_CPUS") or str(min(4, len(os.sched_getaffinity(0))))
    words = ["vng", "--run", str(kernel()), "--force-9p", "--user", "root", "--cpus", cpus]
    words += ["--memory", os.environ.get("IPVSPROXY_VM_MEMORY") or "4G"]
    if not kvm:
        # A kernel under emulation on a busy machine finds its timer late, takes it for broken and panics.
        words += ["--disable-kvm", "--disable-microvm", "--append=no_timer_check"]
    if counting:
        words += ["--qemu-opts=-icount shift=0"]
    # /mnt is only a place to hang the second, cached view of the root on; guest-init takes it from there.
    words += [f"--rwdir={folder}", "--rodir=/mnt=/"]
    return [*words, "--exec", shlex.join([str(GUEST_INIT), str(folder)])]


def may_use_kvm() -> bool:
    """Whether there is a KVM here that we may use; whether it works is another question."""
    return os.access("/dev/kvm", os.R_OK | os.W_OK)


def kvm_works() -> bool:
    """Whether KVM boots our kernel; the answer is kept until either kernel changes."""
    if not may_use_kvm():
        return False
    answer = CACHE / f"kvm-{platform.release()}-{kernel().name}"
    if answer.exists():
        return answer.read_text() == "yes"
    print("trying whether KVM boots a guest", file=sys.stderr, flush=True)
    began = time.monotonic()
    with Guest(["true"], partial(argv, kvm=True)) as guest:
        works = guest.wait(PROBE_SECONDS) == 0
    # A guest that ends early has told us nothing about KVM that the next run could rely on.
    if works or time.monotonic() - began >= PROBE_SECONDS:
        answer.write_text("yes" if works else "no")
    return works
