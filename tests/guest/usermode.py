"""User-mode Linux: a kernel that is an ordinary program, made by tools/usermode-setup.

Its network stack is that of any other kernel of its version (Documentation/virt/uml). No right and no KVM is
needed. Programs compute at the speed of this machine, on one processor; system calls are slow. Where neither this
machine's kernel nor KVM will do, starting programs is several times faster than under emulation, and computing ten
times or more.
"""

from __future__ import annotations

import hashlib
import os
import pathlib
import platform
import random
import re
import subprocess
import sys

from tests.guest.guest import CACHE, GUEST_INIT, REPO, Guest, wanted_kernel

PROBE_SECONDS = 60
# What of a processor decides whether programs run on it (/proc/cpuinfo).
CPUINFO = pathlib.Path("/proc/cpuinfo")
PROCESSOR = re.compile(r"^(?:vendor_id|cpu family|model|model name|flags)\s*:.*$", re.MULTILINE)

FAILURE = re.compile(r"errno|panic|failed|denied|cannot", re.IGNORECASE)


def prepare() -> None:
    """Make the kernel; some minutes, once."""
    wanted = wanted_kernel()
    subprocess.run([REPO / "tools/usermode-setup", *([wanted] if wanted else [])], check=True)


def why_not() -> str | None:
    """Why the kernel does not boot on this machine; None if it does.

    That it does is kept, for this kernel on this processor under the machine's kernel. That it does not is
    found out again each time, which takes a moment.
    """
    booted = CACHE / f"usermode-boots-{_key()}"
    if booted.exists():
        return None
    print("trying whether the user-mode kernel boots here", file=sys.stderr, flush=True)
    with Guest(["true"], argv) as guest:
        if guest.wait(PROBE_SECONDS) == 0:
            booted.touch()
            return None
        silence = f"no answer within {PROBE_SECONDS} s" if guest.is_running() else "it ended without a message"
        return _cause(guest.last_output()) or silence


def _key() -> str:
    """Names the kernel file, the processor and the kernel that runs here."""
    cpu = "\n".join(PROCESSOR.findall(CPUINFO.read_text().split("\n\n")[0]))
    parts = (kernel().read_bytes(), cpu.encode(), platform.release().encode())
    return hashlib.sha256(b"".join(hashlib.sha256(part).digest() for part in parts)).hexdigest()[:16]


def _cause(text: str) -> str:
    """The first line that tells of a failure, otherwise the first that says something."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return next(filter(FAILURE.search, lines), lines[0] if lines else "")


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
