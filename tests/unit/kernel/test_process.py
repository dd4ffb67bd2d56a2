"""What /proc says of a process, and who listens at a port."""

import os
import socket
from pathlib import Path

import pytest

from ipvsproxy.kernel import process
from ipvsproxy.kernel.process import (
    arguments_of,
    environment,
    listening_users,
    path_from_here,
    without_interpreter,
)


def test_the_words_and_the_environment_of_a_process():
    assert arguments_of(Path("/proc/self"))[0]
    assert environment(os.getpid()).keys() >= {"PATH"} - ({"PATH"} - os.environ.keys())
    assert environment(0) == {}


@pytest.mark.parametrize(
    ("words", "program"),
    [
        ("python3 -m ipvsproxy run --v=2", "ipvsproxy run --v=2"),
        ("/venv/bin/python /usr/local/bin/kube-proxy --v=2", "/usr/local/bin/kube-proxy --v=2"),
        ("kube-proxy -m ipvsproxy --v=2", "ipvsproxy --v=2"),
        ("/opt/ipvsproxy --v=2", "/opt/ipvsproxy --v=2"),
    ],
)
def test_a_command_line_begins_with_its_program(words, program):
    assert without_interpreter(words.split()) == program.split()


def test_paths_are_those_of_the_other_process(tmp_path, monkeypatch):
    here = os.getpid()
    assert path_from_here(here, "/etc/x") == "/etc/x"
    assert path_from_here(here, "x") == f"/proc/{here}/cwd/x"
    for name, target in (("7", "mnt:[1]"), ("thread-self", "mnt:[2]")):
        (tmp_path / name / "ns").mkdir(parents=True)
        (tmp_path / name / "ns/mnt").symlink_to(target)
    monkeypatch.setattr(process, "PROC", tmp_path)
    assert path_from_here(7, "/etc/x") == f"{tmp_path}/7/root/etc/x"
    assert path_from_here(8, "/etc/x") == "/etc/x"  # it has ended


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (socket.AF_INET6, "::1")])
def test_who_listens_is_known_by_the_port(family, address):
    with socket.socket(family) as listening:
        try:
            listening.bind((address, 0))
        except OSError:
            pytest.skip("this host has no IPv6")
        port = listening.getsockname()[1]
        assert listening_users(port) == set()
        listening.listen()
        assert listening_users(port) == {os.geteuid()}
