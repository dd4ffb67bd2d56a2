"""who.py, both ends of it, on the loopback address."""

from __future__ import annotations

import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import pytest

from tests.support.ports import held_port

WHO = pathlib.Path(__file__).resolve().parents[2] / "vagrant/who.py"


PATIENT = """
import runpy, sys
script = runpy.run_path(sys.argv[1])
script["ask_once"].__globals__["TIMEOUT"] = 60
script["COMMANDS"][sys.argv[2]](*sys.argv[3:])
"""
"""Waits for a server on a busy machine."""


def who(*words: str, program: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    argv = [sys.executable, *program, WHO, *words]
    return subprocess.run(argv, capture_output=True, text=True, check=False, timeout=240)


@pytest.fixture(scope="module")
def port() -> Iterator[str]:
    with held_port() as number:
        process = subprocess.Popen([sys.executable, WHO, "serve", "me", str(number)])
        while not answers(number):
            assert process.poll() is None
            time.sleep(0.01)
        yield str(number)
        process.kill()
        process.wait()


@pytest.fixture
def silent_port() -> Iterator[str]:
    """Nobody listens there."""
    with held_port() as number:
        yield str(number)


def answers(number: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", number)) == 0


@pytest.mark.parametrize("address", ["127.0.0.1", "::1"])
def test_each_request_reports_who_answered_and_whom_it_saw(port: str, address: str) -> None:
    assert who("ask", address, port, "3", program=("-c", PATIENT)).stdout.splitlines() == [f"me {address}"] * 3


def test_what_does_not_answer_is_distinguished(silent_port: str) -> None:
    assert who("ask", "127.0.0.1", silent_port, "1").stdout == "refused\n"


def test_latencies_are_two_numbers(port: str) -> None:
    median, high = map(float, who("time", "127.0.0.1", port, "5", program=("-c", PATIENT)).stdout.split())
    assert 0 < median <= high


def test_latencies_of_what_fails_are_none(silent_port: str) -> None:
    done = who("time", "127.0.0.1", silent_port, "5")
    assert done.returncode == 1
    assert "refused" in done.stderr


def test_a_name_without_an_answer_is_an_error() -> None:
    assert who("name", "localhost").stdout.split()[0] == "localhost"
    assert "Traceback" not in (done := who("name", "no.such.invalid")).stderr
    assert done.returncode == 1


def test_wrong_words_get_the_help() -> None:
    assert "who ask ADDRESS PORT" in who("sing").stderr
