"""One holder of a name for each network namespace; the names here are the test's own."""

import os
import re
import socket
import threading

import pytest
from structlog.testing import capture_logs

from ipvsproxy.kernel import alone
from ipvsproxy.kernel.alone import Lock


@pytest.fixture
def name():
    return f"ipvsproxy/test-{os.getpid()}-{os.urandom(4).hex()}"


@pytest.fixture
def locks(name):
    made = [Lock(name) for _ in range(3)]
    yield made
    for lock in made:
        lock.close()


def test_the_second_is_told_who_has_it(locks):
    first, second, _ = locks
    assert first.take() is None
    holder = second.take()
    assert (holder.pid, holder.user) == (os.getpid(), os.geteuid())
    assert re.search(
        rf"process {os.getpid()}, .*ipvsproxy v[\d.]+, started \d{{4}}-\d\d-\d\dT\d\d:\d\d:\d\dZ$", f"{holder}"
    )


def test_the_end_of_the_first_lets_one_of_the_others_go_on(locks):
    first, *others = locks
    assert first.take() is None
    done = threading.Semaphore(0)
    threads = [threading.Thread(target=lambda lock=lock: (lock.wait(), done.release())) for lock in others]
    for thread in threads:
        thread.start()
    assert not done.acquire(timeout=0.2)
    first.close()
    assert done.acquire(timeout=10)
    assert not done.acquire(timeout=0.2)
    (holder,) = [lock for lock in others if lock._held]
    holder.close()
    assert done.acquire(timeout=10)
    for thread in threads:
        thread.join()


def test_many_who_ask_cost_the_holder_a_few_descriptors(locks, name):
    assert locks[0].take() is None
    askers = []
    for _ in range(3 * alone.MAX_WAITING):
        asker = socket.socket(socket.AF_UNIX)
        asker.connect(f"\0{name}")
        askers.append(asker)
    assert locks[1].take() is not None
    assert askers[0].recv(1000)
    assert askers[0].recv(1000) == b""
    for asker in askers:
        asker.close()


def test_a_stranger_who_takes_the_name_stops_nobody(locks, name, monkeypatch):
    monkeypatch.setattr(alone, "ANSWER_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as stranger, capture_logs() as logs:
        stranger.bind(f"\0{name}")
        assert locks[0].take() is None  # it does not even listen
        stranger.listen()
        monkeypatch.setattr(alone, "_credentials", lambda _: alone.Holder(4711, 1000, ""))
        assert locks[0].take() is None
    assert [line["holder"] for line in logs] == [None, "process 4711, user 1000"]
    assert {line["log_level"] for line in logs} == {"error"}
