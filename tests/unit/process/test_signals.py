"""Signals to whole processes, which are busy with something."""

import contextlib
import os
import signal
import subprocess
import sys

import pytest

PROGRAM = """
import sys, structlog, threading
from ipvsproxy.process import signals
structlog.configure(logger_factory=structlog.PrintLoggerFactory(sys.stderr))
signals.end_at_once()
threading.Thread(target=threading.Event().wait).start()
print("up", flush=True)
{work}
"""
STUCK = "import ctypes; ctypes.CDLL(None).pause()"  # the kernel gives nothing back to the interpreter
QUIET = "threading.Event().wait()"


@contextlib.contextmanager
def running(work, **options):
    argv = [sys.executable, "-c", PROGRAM.format(work=work)]
    with subprocess.Popen(argv, stdout=subprocess.PIPE, **options) as process:
        try:
            assert process.stdout.readline() == b"up\n"
            yield process
        finally:
            process.kill()


@pytest.mark.parametrize("work", [STUCK, QUIET])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_ends_the_process_at_once(work, number):
    with running(work, stderr=subprocess.PIPE) as process:
        process.send_signal(number)
        assert process.wait(60) == 128 + number
        assert number.name.encode() in process.stderr.read()


@pytest.mark.parametrize("ignored", [signal.SIGINT, signal.SIGHUP])
def test_what_the_parent_process_has_ignored_stays_ignored(ignored):
    with running(QUIET, preexec_fn=lambda: signal.signal(ignored, signal.SIG_IGN)) as process:
        process.send_signal(ignored)
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


def test_a_reader_of_the_log_that_has_stopped_reading_keeps_no_one_alive():
    read, write = os.pipe()
    os.set_blocking(write, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(write, b"x" * 4096)
    os.set_blocking(write, True)
    with running(QUIET, stderr=write) as process:
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM
    os.close(read)
    os.close(write)


def test_the_second_signal_changes_nothing():
    with running(QUIET) as process:
        process.send_signal(signal.SIGTERM)
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 128 + signal.SIGTERM


CHILD = """
import subprocess
child = subprocess.Popen(["sleep", "60"])
child.terminate()
print(child.wait(30), flush=True)
"""


def test_programs_that_are_started_heed_signals_as_ever():
    """A plugin for credentials may be a script that kills what takes too long."""
    with running(CHILD + QUIET) as process:
        assert process.stdout.readline() == b"-15\n"
