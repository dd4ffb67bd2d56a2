"""One holder of a name for each network namespace; the names here are the test's own."""

import os
import re
import socket
import threading
import time
from contextlib import ExitStack, suppress

import pytest
from structlog.testing import capture_logs

from ipvsproxy.kernel import instance_lock
from ipvsproxy.kernel.instance_lock import InstanceLock


@pytest.fixture
def name():
    return f"ipvsproxy/test-{os.getpid()}-{os.urandom(4).hex()}"


@pytest.fixture
def locks(name, monkeypatch):
    # A thread of this process answers, and may be late.
    monkeypatch.setattr(instance_lock, "ANSWER_SECONDS", 60.0)
    made = [InstanceLock(name) for _ in range(3)]
    yield made
    for lock in made:
        lock.close()


def test_the_second_learns_who_has_it(locks):
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
    assert done.acquire(timeout=60)
    assert not done.acquire(timeout=0.2)
    (holder,) = [lock for lock in others if lock._held]
    holder.close()
    assert done.acquire(timeout=60)
    for thread in threads:
        thread.join()


def test_many_who_ask_cost_the_holder_a_few_descriptors(locks, name):
    assert locks[0].take() is None
    askers = []
    for _ in range(3 * instance_lock.MAX_WAITING):
        asker = socket.socket(socket.AF_UNIX)
        asker.connect(f"\0{name}")
        askers.append(asker)
    assert locks[1].take() is not None
    assert b"".join(iter(lambda: askers[0].recv(1000), b"")).startswith(b"ipvsproxy v")
    for asker in askers:
        asker.close()


def test_a_stranger_who_takes_the_name_stops_no_one(locks, name, monkeypatch):
    monkeypatch.setattr(instance_lock, "ANSWER_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as stranger, capture_logs() as logs:
        stranger.bind(f"\0{name}")
        assert locks[0].take() is None  # it does not even listen
        stranger.listen()
        monkeypatch.setattr(instance_lock, "_credentials", lambda _: instance_lock.Holder(4711, 1000, ""))
        assert locks[0].take() is None
    assert [line["holder"] for line in logs] == [None, "process 4711, user 1000"]
    assert {line["log_level"] for line in logs} == {"error"}


class LockNamespace:
    """What a network namespace has of sockets that take CAP_NET_ADMIN, without the kernel."""

    def __init__(self, monkeypatch):
        self.proofs, self.follows_rules, self.now = [], False, 0.0
        monkeypatch.setattr(instance_lock, "Proof", self.prove)
        monkeypatch.setattr(instance_lock.proof, "challenge", self.challenge)
        monkeypatch.setattr(instance_lock.proof, "others_follow_rules", lambda: self.follows_rules)
        monkeypatch.setattr(instance_lock, "time", self)

    def monotonic(self):
        return self.now

    def sleep(self, seconds):
        time.sleep(seconds)

    def prove(self):
        self.proofs.append(FakeProof())
        return self.proofs[-1]

    def challenge(self, number):
        for proof in self.proofs:
            proof.inbox[1].send(number)
        return bool(self.proofs)


class FakeProof:
    def __init__(self):
        self.inbox = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)

    def fileno(self):
        return self.inbox[0].fileno()

    def numbers(self):
        yield self.inbox[0].recv(100)

    def close(self):
        for end in self.inbox:
            end.close()


@pytest.fixture
def namespace(monkeypatch):
    made = LockNamespace(monkeypatch)
    yield made
    for proof in made.proofs:
        proof.close()


@pytest.fixture
def stranger(name):
    """A process of root's that has the name, says what a proxy says, and can do nothing."""
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()

        def serve():
            with suppress(OSError), ExitStack() as kept:
                while True:
                    asker = kept.enter_context(listener.accept()[0])
                    asker.send(b"ipvsproxy v0.1.0, started 2026-01-01T00:00:00Z")

        thread = threading.Thread(target=serve)
        thread.start()
        yield
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()


def test_the_holder_shows_that_it_may_change_the_network(locks, namespace):
    assert locks[0].take() is None
    assert [lock.take().is_proven for lock in locks[1:]] == [True, True]
    assert locks[2].look().is_proven


@pytest.mark.usefixtures("stranger")
def test_a_holder_that_may_change_nothing_is_not_waited_for(locks, namespace):
    with capture_logs() as logs:
        assert locks[0].take() is None
        assert locks[1].look() is None
    (said,) = logs
    assert said["log_level"] == "error"
    assert "ipvsproxy v0.1.0" in said["holder"]


@pytest.mark.usefixtures("stranger")
def test_a_holder_of_version_0_1_is_waited_for_no_longer_than_an_update_takes(locks, namespace):
    namespace.follows_rules = True
    with capture_logs() as logs:
        assert locks[0].take().is_proven is False
        namespace.now = instance_lock.OLDER_SECONDS - 1
        assert locks[0].take() is not None
        assert not logs
        namespace.now += 2
        assert locks[0].take() is None
    assert len(logs) == 1


@pytest.mark.usefixtures("stranger")
def test_the_proof_of_another_process_proves_nothing(locks, namespace, monkeypatch):
    monkeypatch.setattr(instance_lock, "ANSWER_SECONDS", 0.2)
    namespace.prove()  # of a proxy that works without the name
    namespace.monotonic = time.monotonic
    assert locks[0]._ask(0.2).is_proven is False


def test_a_holder_that_ends_while_it_is_asked_leaves_the_name(locks, name, namespace, monkeypatch):
    """It has lost what it would show, and not yet the name: a process that ends closes one after the other."""
    monkeypatch.setattr(instance_lock, "ENDING_SECONDS", 60.0)
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"\0{name}")
        listener.listen()

        def end():
            asker = listener.accept()[0]
            asker.send(b"ipvsproxy v0.1.0, started 2026-01-01T00:00:00Z")
            time.sleep(0.2)
            listener.close()
            asker.close()

        thread = threading.Thread(target=end)
        thread.start()
        with capture_logs() as logs:
            assert locks[0].take() is None
        thread.join()
    assert not logs
    assert locks[0]._held is not None


def test_a_stranger_who_hangs_up_each_time_stops_no_one(locks, name, monkeypatch):
    monkeypatch.setattr(instance_lock, "ANSWER_SECONDS", 0.2)
    with socket.socket(socket.AF_UNIX) as listener, capture_logs() as logs:
        listener.bind(f"\0{name}")
        listener.listen()

        def serve():
            with suppress(OSError):
                while True:
                    listener.accept()[0].close()

        thread = threading.Thread(target=serve)
        thread.start()
        monkeypatch.setattr(instance_lock, "_credentials", lambda _: instance_lock.Holder(4711, 1000, ""))
        assert locks[0].take() is None
        listener.shutdown(socket.SHUT_RDWR)
        thread.join()
    assert [line["log_level"] for line in logs] == ["error"]
    assert locks[0]._held is None
