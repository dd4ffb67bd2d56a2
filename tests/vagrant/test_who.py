"""who.py, both ends of it, on the loopback address."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import sys
from collections.abc import Iterator

import pytest

WHO = pathlib.Path(__file__).resolve().parents[2] / "vagrant/who.py"


def who(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, WHO, *words], capture_output=True, text=True, check=False, timeout=60)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    number = free_port()
    process = subprocess.Popen([sys.executable, WHO, "serve", "me", str(number)])
    while not answers(number):
        assert process.poll() is None
    yield str(number)
    process.kill()
    process.wait()


def answers(number: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", number)) == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_each_request_reports_who_answered_and_whom_it_saw(port: str, address: str) -> None:
    assert who("ask", address, port, "3").stdout.splitlines() == [f"me {address}"] * 3


def test_what_does_not_answer_is_distinguished() -> None:
    assert who("ask", "127.0.0.1", str(free_port()), "1").stdout == "refused\n"


def test_latencies_are_two_numbers(port: str) -> None:
    median, high = map(float, who("time", "127.0.0.1", port, "5").stdout.split())
    assert 0 < median <= high


def test_latencies_of_what_fails_are_none() -> None:
    done = who("time", "127.0.0.1", str(free_port()), "5")
    assert done.returncode == 1
    assert "refused" in done.stderr


def test_a_name_without_an_answer_is_an_error() -> None:
    assert who("name", "localhost").stdout.split()[0] == "localhost"
    assert "Traceback" not in (done := who("name", "no.such.invalid")).stderr
    assert done.returncode == 1


def test_wrong_words_get_the_help() -> None:
    assert "who ask ADDRESS PORT" in who("sing").stderr
