"""Which guest runs the integration tests, and on which processors the user-mode kernel boots."""

from __future__ import annotations

import hashlib
import os
import pathlib
import shutil
import subprocess
import time

import pytest

from tests.guest import guest, microvm, usermode
from tests.guest import run as guest_run
from tests.support.programs import REPO, require, run

HERE = pathlib.Path(__file__).parent
# The words that user-mode kernels end with are the folder shared with the guest.
BOOTS = 'for folder; do :; done; echo boot >>"$0.boots"; echo 0 >"$folder/code"; sleep 60'
DIES = "echo Core dump limits; echo userspace - ptrace set fp regs failed, errno = 14; echo Call Trace; exit 1"
WORK = """
import ctypes, math, os, signal
caught = []
signal.signal(signal.SIGUSR1, lambda *_: caught.append(1))
total = 0.0
for number in range(300):
    total += math.sqrt(number)
    os.kill(os.getpid(), signal.SIGUSR1)
    if number % 30 == 0 and os.fork() == 0:
        os._exit(0)
assert len(caught) == 300, caught
print(f"{total:.6f}")
"""


@pytest.fixture(scope="session")
def long_xstate(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    require("gcc")
    library = tmp_path_factory.mktemp("xstate") / "long_xstate.so"
    run("gcc", "-shared", "-fPIC", "-Wall", "-Werror", "-O2", "-o", library, HERE / "long_xstate.c")
    return library


def test_the_user_mode_kernel_boots_where_the_processor_has_amx(
    long_xstate: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    """Floating point numbers come through system calls, signals, page faults and new processes."""
    if not usermode.kernel().exists():
        pytest.skip("there is no user-mode kernel: make guest")

    def argv(folder: pathlib.Path) -> list[str]:
        return ["env", f"LD_PRELOAD={long_xstate}", *usermode.argv(folder)]

    with guest.Guest(["/usr/bin/python3", "-c", WORK], argv) as booted:
        assert booted.wait(240) == 0, booted.last_output()
    total = sum(number**0.5 for number in range(300))
    assert f"{total:.6f}" in capfd.readouterr().out


@pytest.fixture
def machine(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> pathlib.Path:
    """A machine with a user-mode kernel of the test's own, without KVM and without a micro-VM yet."""
    (tmp_path / "linux").write_text(f"#!/bin/sh\n{BOOTS}\n")
    (tmp_path / "linux").chmod(0o755)
    (tmp_path / "cpuinfo").write_text("model name\t: A\nflags\t\t: fpu\nbogomips\t: 1\n\nmodel name\t: A\n")
    monkeypatch.setattr(usermode, "kernel", lambda: tmp_path / "linux")
    monkeypatch.setattr(usermode, "release", lambda: "6.1")
    monkeypatch.setattr(guest_run, "REPO", tmp_path)
    monkeypatch.setattr(usermode, "CPUINFO", tmp_path / "cpuinfo")
    monkeypatch.setattr(usermode, "CACHE", tmp_path)
    monkeypatch.setattr(microvm, "kernel", lambda: tmp_path / "vmlinuz")
    monkeypatch.setattr(microvm, "prepare", lambda: None)
    monkeypatch.setattr(microvm, "kvm_works", lambda: False)
    return tmp_path


def boots(machine: pathlib.Path) -> int:
    return len((machine / "linux.boots").read_text().splitlines())


def test_that_a_kernel_boots_is_tried_once_for_a_processor_and_a_kernel(machine: pathlib.Path) -> None:
    assert usermode.why_not() is None
    (machine / "cpuinfo").write_text("model name\t: A\nflags\t\t: fpu\nbogomips\t: 2\n")
    assert usermode.why_not() is None
    assert boots(machine) == 1
    (machine / "cpuinfo").write_text("model name\t: A\nflags\t\t: fpu amx_tile\n")
    assert usermode.why_not() is None
    assert boots(machine) == 2
    with (machine / "linux").open("a") as kernel:
        kernel.write("# another one\n")
    assert usermode.why_not() is None
    assert boots(machine) == 3


def chosen(*words: str) -> str:
    return guest_run.choose(guest_run.parse([*words, "--", "true"]))[0]


def test_a_user_mode_kernel_that_boots_is_used(machine: pathlib.Path) -> None:
    assert chosen() == "a user-mode kernel (6.1)"


def test_the_micro_vm_is_used_where_the_user_mode_kernel_does_not_boot_and_one_line_reports_why(
    machine: pathlib.Path, capfd: pytest.CaptureFixture[str]
) -> None:
    (machine / "linux").write_text(f"#!/bin/sh\n{DIES}\n")
    assert chosen().startswith("a micro-VM")
    lines = [line for line in capfd.readouterr().err.splitlines() if "does not boot" in line]
    why = "userspace - ptrace set fp regs failed, errno = 14"
    assert lines == [f"the user-mode kernel linux does not boot on this machine: {why}"]


def test_what_a_kernel_wrote_before_it_ended_is_read_however_late_the_console_is(
    machine: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = guest.Guest._record_console

    def late(self: guest.Guest) -> None:
        time.sleep(1)
        record(self)

    monkeypatch.setattr(guest.Guest, "_record_console", late)
    (machine / "linux").write_text(f"#!/bin/sh\n{DIES}\n")
    assert usermode.why_not() == "userspace - ptrace set fp regs failed, errno = 14"


def test_a_kernel_that_ends_in_silence_is_not_called_slow(machine: pathlib.Path) -> None:
    (machine / "linux").write_text("#!/bin/sh\nexit 1\n")
    assert usermode.why_not() == "it ended without a message"


def test_the_machine_that_counts_has_one_cpu_and_a_clock_of_instructions_even_where_kvm_works(
    machine: pathlib.Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(microvm, "kvm_works", lambda: True)
    monkeypatch.setenv("IPVSPROXY_VM_CPUS", "4")
    assert "a nanosecond for each instruction" in chosen("--counting")
    words = microvm.argv(machine, kvm=False, counting=True)
    assert words[words.index("--cpus") + 1] == "1"
    assert {"--disable-kvm", "--qemu-opts=-icount shift=0"} <= set(words)


def test_a_kernel_of_former_sources_is_made_anew_and_stays_until_then(tmp_path: pathlib.Path) -> None:
    shutil.copytree(REPO / "tools", tmp_path / "tools")
    cache = tmp_path / ".cache/usermode"
    cache.mkdir(parents=True)
    (cache / "linux").write_text("former")
    for name, text in {"dpkg-query": "echo ii", "apt-cache": "exit 1", "apt-get": "echo tried; exit 1"}.items():
        (tmp_path / name).write_text(f"#!/bin/sh\n{text}\n")
        (tmp_path / name).chmod(0o755)

    def setup() -> subprocess.CompletedProcess[str]:
        env = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
        script = tmp_path / "tools/usermode-setup"
        return subprocess.run([script], env=env, capture_output=True, text=True, check=False)

    done = setup()
    assert done.returncode != 0
    assert "refreshing the package lists" in done.stdout
    assert (cache / "linux").read_text() == "former"
    sources = b"".join(
        (REPO / "tools" / name).read_bytes() for name in ("usermode.config", "usermode-xstate.patch")
    )
    (cache / "made-of").write_text(f"{hashlib.sha256(sources).hexdigest()}  -\n")
    done = setup()
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_a_booting_guest_reports_that_it_goes_on(
    machine: pathlib.Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(guest, "PROGRESS_SECONDS", 0.5)
    gate = machine / "gate"
    os.mkfifo(gate)
    program = ["sh", "-c", f'read line <{gate}; echo 0 >"$0/code"; sleep 60']
    with guest.Guest(["true"], lambda folder: [*program, str(folder)]) as booting:
        while "the guest is booting: " not in capfd.readouterr().err:
            assert booting.wait(1.2) is None
        gate.write_text("go on\n")
        assert booting.wait(60) == 0
