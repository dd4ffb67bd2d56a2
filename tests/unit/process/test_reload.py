import os
import threading

import pytest

from ipvsproxy.process.reload import FileWatcher


class WatchedFile:
    def __init__(self, folder):
        self.path = folder / "config.conf"
        self.path.write_bytes(b"one")
        self.problems = []
        self.asked = 0
        self.changed = []
        self.done = threading.Event()
        self.watcher = FileWatcher([(self.path, b"one")], self.recheck, self.note)

    def recheck(self):
        self.asked += 1
        return self.problems

    def note(self, path):
        self.changed.append(path)
        self.done.set()


@pytest.fixture
def case(tmp_path):
    return WatchedFile(tmp_path)


def test_only_content_counts(case):
    os.utime(case.path, (1, 1))
    case.path.write_bytes(b"one")
    assert not case.watcher.look()
    case.path.write_bytes(b"two")
    assert case.watcher.look()
    assert case.changed == [case.path]


def test_what_cannot_be_used_changes_nothing_and_is_reported_once(case):
    case.problems = ["line 1: nonsense"]
    case.path.write_bytes(b"bad")
    assert not case.watcher.look()
    assert not case.watcher.look()
    assert (case.asked, case.changed) == (1, [])
    case.path.write_bytes(b"one")
    case.problems = []
    assert not case.watcher.look()
    case.path.write_bytes(b"two")
    assert case.watcher.look()


def test_a_file_that_is_away_changes_nothing(case):
    case.path.unlink()
    assert not case.watcher.look()
    case.path.write_bytes(b"two")
    assert case.watcher.look()


def test_a_change_is_noticed_by_itself(case):
    case.watcher.start()
    case.path.write_bytes(b"two")
    assert case.done.wait(30)


def test_a_swapped_link_is_noticed(tmp_path):
    for name, data in (("v1", b"one"), ("v2", b"two")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.conf").write_bytes(data)
    (tmp_path / "..data").symlink_to("v1")
    case = WatchedFile(tmp_path / "v1")
    case.path = tmp_path / "config.conf"
    case.path.symlink_to("..data/config.conf")
    case.watcher = FileWatcher([(case.path, b"one")], case.recheck, case.note)
    case.watcher.start()
    (tmp_path / "..new").symlink_to("v2")
    (tmp_path / "..new").rename(tmp_path / "..data")
    assert case.done.wait(30)
    assert case.changed == [case.path]


def test_without_files_nothing_is_watched():
    before = set(threading.enumerate())
    FileWatcher([], list, print).start()
    assert set(threading.enumerate()) <= before
