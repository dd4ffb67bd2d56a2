"""Which processes are service proxies, by their command line and program."""

import platform
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from ipvsproxy.kernel.read import survey
from ipvsproxy.kernel.read.survey import PROGRAMS, program_of, read_processes, sees_host_processes


@pytest.mark.parametrize(
    ("words", "is_python", "program"),
    [
        ("/usr/local/bin/kube-proxy --config=/x", False, "kube-proxy"),
        ("kube-proxy --hostname-override n", False, "kube-proxy"),
        # The link in the image, as the kernel starts a script with an interpreter.
        ("/venv/bin/python3 /usr/local/bin/kube-proxy --config=/x", True, "ipvsproxy"),
        # `exec -a kube-proxy python ...`
        ("kube-proxy -m ipvsproxy run", True, "ipvsproxy"),
        ("/venv/bin/python /usr/bin/ipvsproxy run", True, "ipvsproxy"),
        ("python3 -m ipvsproxy --config=/x", True, "ipvsproxy"),
        ("python3 -m ipvsproxy doctor", True, ""),
        ("/venv/bin/python /usr/bin/ipvsproxy show services", True, ""),
        ("kube-router --run-service-proxy=false", False, ""),
        ("kube-router", False, "kube-router"),
        ("sleep 1", False, ""),
        ("", False, ""),
    ],
)
def test_a_service_proxy_is_known_by_its_command_line(words, is_python, program):
    assert program_of(words.split(" "), PROGRAMS, is_python=is_python) == program


@pytest.fixture
def proc(tmp_path, monkeypatch):
    """A /proc with processes, by number: command line and program; all in this network namespace."""
    here = Path("/proc/thread-self/ns/net").readlink()

    def make(**processes):
        for name, (words, program) in processes.items():
            folder = tmp_path / name.removeprefix("p")
            (folder / "ns").mkdir(parents=True)
            (folder / "ns/net").symlink_to(here)
            (folder / "exe").symlink_to(program)
            (folder / "cmdline").write_bytes("\0".join(words.split()).encode() + b"\0")
        monkeypatch.setattr(survey, "PROC", tmp_path)
        return tmp_path

    return make


def test_the_proxy_started_under_the_name_of_kube_proxy_is_no_kube_proxy(proc):
    proc(
        p1=("/usr/bin/python3 /usr/local/bin/kube-proxy --config=/x", "/usr/bin/python3.13"),
        p2=("/usr/local/bin/kube-proxy --config=/x", "/usr/local/bin/kube-proxy"),
        p3=("/usr/local/bin/kube-proxy --config=/x", "/opt/frozen"),
    )
    found = {process.pid: process.program for process in read_processes(holder=3)}
    assert found == {1: "ipvsproxy", 2: "kube-proxy", 3: "ipvsproxy"}  # 3 holds the lock


@pytest.mark.parametrize(
    ("namespace", "init", "sees"),
    [
        ("pid:[4026531836]", "x", True),
        ("pid:[4026532001]", "systemd", True),
        ("pid:[4026532001]", "kube-proxy", False),
    ],
)
def test_the_processes_of_the_host_are_seen_in_its_namespace_or_beside_its_init(proc, namespace, init, sees):
    folder = proc(p1=("init", "/sbin/init"))
    (folder / "1/comm").write_text(f"{init}\n")
    (folder / "self/ns").mkdir(parents=True)
    (folder / "self/ns/pid").symlink_to(namespace)
    assert sees_host_processes() is sees


def test_what_cannot_be_read_is_not_seen(proc):
    proc()
    assert sees_host_processes() is False


@pytest.fixture
def started():
    """Start processes that end with the test."""
    running = []

    def start(*words, program):
        process = subprocess.Popen(words, executable=program)
        running.append(process)
        return process.pid

    yield start
    for process in running:
        process.kill()
        process.wait()


def test_real_processes_are_known_by_what_they_are(started, tmp_path):
    """A script under the name of kube-proxy, as in the image; Python under that name; and another program."""
    script = tmp_path / "kube-proxy"
    script.write_text("import time\ntime.sleep(600)\n")
    link = started(sys.executable, str(script), "--config=/x", program=sys.executable)
    renamed = started("kube-proxy", str(script), program=sys.executable)
    other = started("kube-proxy", "600", program=shutil.which("sleep"))
    deadline = time.monotonic() + 30
    while not {link, renamed, other} <= (found := {p.pid: p.program for p in read_processes()}).keys():
        assert time.monotonic() < deadline, found
        time.sleep(0.05)
    assert {pid: found[pid] for pid in (link, renamed, other)} == {
        link: "ipvsproxy", renamed: "ipvsproxy", other: "kube-proxy"
    }  # fmt: skip


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        (("modules/modules.dep", "loaded/ip_vs/initstate"), {"ip_vs", "ip_vs_mh"}),
        (("loaded/ip_vs/initstate", "loaded/ip_vs_sh/initstate"), {"ip_vs", "ip_vs_sh"}),
        (("loaded/ip_vs/parameters",), None),
        ((), None),
    ],
    ids=["folder of modules", "loaded, no folder", "built in", "not loaded, no folder"],
)
def test_schedulers_are_taken_to_be_there_where_that_is_not_to_be_seen(monkeypatch, tmp_path, files, expected):
    release = tmp_path / "modules" / platform.release()
    for name in files:
        path = release / "modules.dep" if name == "modules/modules.dep" else tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("kernel/net/netfilter/ipvs/ip_vs_mh.ko.xz: \n")
    monkeypatch.setattr(survey, "MODULES", tmp_path / "modules")
    monkeypatch.setattr(survey.host, "SYS_MODULE", tmp_path / "loaded")
    assert survey.ipvs_modules() == expected
