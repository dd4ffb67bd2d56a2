"""When a folder is looked at again."""

import errno
import select
import threading
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import pytest
import structlog

from ipvsproxy.base import directory_watch
from ipvsproxy.base.directory_watch import DirectoryWatcher

DESCRIPTORS = Path("/proc/self/fd")


class Looking:
    """A thread that looks; `looked` counts, `wait_for` waits until it has looked once more."""

    def __init__(self, *paths, seconds=60.0):
        self.news = DirectoryWatcher(paths, seconds)
        self.looked = threading.Semaphore(0)
        self.thread = threading.Thread(target=self._run)
        self.thread.start()

    def _run(self):
        for _ in self.news.looks():
            self.looked.release()

    def wait_for(self):
        assert self.looked.acquire(timeout=60)

    def end(self):
        self.news.stop()
        self.thread.join(60)
        assert not self.thread.is_alive()


@pytest.fixture
def looking():
    all_ = []

    def start(*paths, **options):
        all_.append(Looking(*paths, **options))
        all_[-1].wait_for()  # at once, for the first time
        return all_[-1]

    yield start
    for one in all_:
        one.end()


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "new").touch(),
        lambda path: (path / "old").write_bytes(b"2"),
        lambda path: (path / "old").chmod(0o600),
        lambda path: (path / "old").unlink(),
        lambda path: (path / "old").rename(path / "other"),
        lambda path: (path / "old").rename(path.parent / "other"),
        lambda path: (path.parent / "outside").rename(path / "old"),
        lambda path: path.rename(path.with_name("away")),
    ],
)
def test_each_kind_of_change_is_a_reason_to_look(tmp_path, looking, change):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "old").write_bytes(b"1")
    (tmp_path / "outside").write_bytes(b"1")
    watched = looking(tmp_path / "folder")
    change(folder)
    watched.wait_for()


def test_a_folder_that_was_replaced_is_watched(tmp_path, looking):
    folder = tmp_path / "folder"
    folder.mkdir()
    watched = looking(folder)
    folder.rename(tmp_path / "old")
    folder.mkdir()
    watched.wait_for()
    while watched.looked.acquire(timeout=0.3):
        pass
    (folder / "new").touch()
    watched.wait_for()


def test_a_change_during_a_look_is_not_missed(tmp_path):
    looks = DirectoryWatcher([tmp_path], 3600.0).looks()
    next(looks)
    (tmp_path / "new").touch()
    again = threading.Thread(target=next, args=(looks,), daemon=True)
    again.start()
    again.join(60)
    assert not again.is_alive()
    looks.close()


def test_who_waits_does_nothing_else(tmp_path, monkeypatch):
    asked = []

    class Poll:
        def register(self, *_):
            pass

        def poll(self, milliseconds):
            asked.append(milliseconds)
            return []

    monkeypatch.setattr(directory_watch, "select", SimpleNamespace(poll=Poll, POLLIN=select.POLLIN))
    looks = DirectoryWatcher([tmp_path], 30.0).looks()
    for _ in range(4):
        next(looks)
    looks.close()
    assert asked == [30_000] * 3


@pytest.mark.parametrize(("code", "said"), [(errno.EMFILE, 1), (errno.ENOSPC, 1), (errno.ENOENT, 0)])
def test_without_inotify_the_clock_must_do(tmp_path, monkeypatch, code, said):
    def refused(_):
        raise OSError(code, "no")

    monkeypatch.setattr(directory_watch, "_watch", refused)
    monkeypatch.setattr(directory_watch, "BLIND_SECONDS", 0.001)
    with structlog.testing.capture_logs() as logs:
        looks = DirectoryWatcher([tmp_path], 60.0).looks()
        for _ in range(3):
            next(looks)
        looks.close()
    assert len(logs) == said


def watching():
    """How many descriptors of this process are of the kinds that a watcher has; other threads have others."""
    found = 0
    for link in DESCRIPTORS.iterdir():
        with suppress(OSError):  # another thread may have closed it
            found += str(link.readlink()) in ("anon_inode:inotify", "anon_inode:[eventfd]")
    return found


@pytest.mark.parametrize("names", [(), ("none",)])
def test_no_descriptor_is_left_open(tmp_path, names):
    before = watching()
    news = DirectoryWatcher([tmp_path, *(tmp_path / name for name in names)], 0.001)
    looks = news.looks()
    for _ in range(5):
        next(looks)
    looks.close()
    assert watching() == before + 1  # the way to stop it
