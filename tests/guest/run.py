"""Run a command where it finds a kernel with IPVS: here, or in a guest.

    python -m tests.guest.run [--direct | --vm | --usermode | --counting] [--timeout SECONDS] -- COMMAND...
    python -m tests.guest.run --prepare

Root on a kernel with IPVS, dummy and veth links: the command simply runs. Otherwise a guest kernel boots with this
machine's files and the command runs there; its output is streamed and its exit code returned. The guest is a
micro-VM with the distribution's kernel (microvm.py), or, where KVM does not work and there is one that boots here,
a user-mode kernel (usermode.py); `--prepare` makes it where it will be needed. IPVSPROXY_KERNEL and
IPVSPROXY_USERLAND ask for a guest with the kernel, and the files, of another release of Debian (guest.py).
Everything is stdlib: this must work before anything is installed.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from tests.guest import guest, microvm, usermode
from tests.guest.guest import REPO

LOAD_MODULES = pathlib.Path(__file__).with_name("load-modules")


def why_not_direct() -> str | None:
    """What this machine lacks to run the lab itself, or None."""
    if os.geteuid() != 0:
        return "not root"
    subprocess.run([LOAD_MODULES], check=False)
    if not pathlib.Path("/proc/net/ip_vs").exists():
        return "the running kernel has no IPVS"
    links = "ip link add probe0 type dummy && ip link add probe1 type veth peer name probe2"
    made = subprocess.run(["unshare", "--net", "sh", "-c", links], capture_output=True, check=False)
    return None if made.returncode == 0 else "network namespaces, dummy or veth links cannot be made"


def parse(argv: list[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--direct", action="store_true", help="on this kernel, come what may")
    where.add_argument("--vm", action="store_true", help="in a micro-VM even if this kernel would do")
    where.add_argument("--usermode", action="store_true", help="in a user-mode kernel even if this one would do")
    where.add_argument("--counting", action="store_true", help="in a micro-VM whose clock counts instructions")
    where.add_argument("--prepare", action="store_true", help="download and make what running many tests takes")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds until a guest is killed")
    parser.add_argument("command", nargs="*")
    return parser.parse_args(argv)


def main(argv: list[str]) -> int:
    options = parse(argv)
    if options.prepare:
        return prepare()
    reason = None if options.direct else "asked to" if asks_for_a_guest(options) else why_not_direct()
    if reason is None:
        print("running on this machine's kernel", file=sys.stderr, flush=True)
        os.execvp(options.command[0], options.command)  # noqa: S606
    guest.prepare_userland()
    where = choose(options)
    print(f"{reason}: running in {where[0]}", file=sys.stderr, flush=True)
    return guest.run(options.command, where[1], options.timeout)


def asks_for_a_guest(options: argparse.Namespace) -> bool:
    return bool(options.vm or options.usermode or options.counting or guest.wanted_kernel() or guest.userland())


def prepare() -> int:
    """Get ready what running many tests will need; what does not depend on each other side by side."""
    if not (guest.wanted_kernel() or guest.userland() or why_not_direct()):
        return 0
    jobs = [guest.prepare_userland, prepare_kernel]
    if os.environ.get("IPVSPROXY_REQUIRE") == "1":  # a build server tests both
        jobs.append(microvm.prepare)
    with ThreadPoolExecutor() as pool:
        running = [pool.submit(job) for job in jobs]
    for job in running:
        job.result()
    return 0


def prepare_kernel() -> None:
    """Many tests take too long under emulation: where KVM does not work, make a user-mode kernel."""
    if microvm.may_use_kvm():
        microvm.prepare()
        if microvm.kvm_works():
            return
    try:
        usermode.prepare()
    except subprocess.CalledProcessError:
        print("no user-mode kernel could be made", file=sys.stderr, flush=True)
    # One of an earlier run may be left.
    if not (usermode.kernel().exists() and usermode_boots()):
        print("tests will run under emulation", file=sys.stderr, flush=True)
        microvm.prepare()


def choose(options: argparse.Namespace) -> tuple[str, guest.Boot]:
    if options.usermode:
        usermode.prepare()
        return usermode_guest() if usermode_boots() else sys.exit(1)
    if options.counting:
        return counting_guest()
    if not options.vm and prefers_usermode() and usermode_boots():
        return usermode_guest()
    return microvm_guest()


def prefers_usermode() -> bool:
    if not usermode.kernel().exists():
        return False
    return not (microvm.kernel().exists() and microvm.kvm_works())


def usermode_boots() -> bool:
    """Whether it does; if not, one line says why."""
    reason = usermode.why_not()
    if reason:
        name = usermode.kernel().relative_to(REPO)
        print(f"the user-mode kernel {name} does not boot on this machine: {reason}", file=sys.stderr, flush=True)
    return reason is None


def usermode_guest() -> tuple[str, guest.Boot]:
    return f"a user-mode kernel ({usermode.release()})", usermode.argv


def microvm_guest() -> tuple[str, guest.Boot]:
    microvm.prepare()
    kvm = microvm.kvm_works()
    how = "KVM" if kvm else "software emulation, KVM does not work here"
    return f"a micro-VM ({microvm.kernel().name}, {how})", partial(microvm.argv, kvm=kvm)


def counting_guest() -> tuple[str, guest.Boot]:
    microvm.prepare()
    how = "software emulation, one CPU, a nanosecond for each instruction"
    return f"a micro-VM ({microvm.kernel().name}, {how})", partial(microvm.argv, kvm=False, counting=True)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except subprocess.CalledProcessError as failed:  # which has said why
        sys.exit(f"{failed.cmd[0]} failed")
