"""A changed configuration file ends the process, so that its supervisor starts it with the new settings.

In: the files with the bytes that were read, and a way to ask what is wrong with them now. What counts is the
content, whatever event announced it: a write, a rename, or the swapped symbolic link of a mounted ConfigMap, for
which the folder has to be watched (contract 1.18). New content that cannot be used changes nothing: it is
logged once, and the process keeps its settings.
"""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.directory_watch import DirectoryWatcher

LOOK_SECONDS = 30.0
"""Files are looked at so often in any case, for file systems that announce nothing."""

log = structlog.get_logger()


class FileWatcher:
    """Calls `changed` once, when a file holds something else that can be used."""

    def __init__(
        self,
        files: Sequence[tuple[Path, bytes]],
        recheck: Callable[[], list[str]],
        changed: Callable[[Path], None],
    ) -> None:
        self._files = dict(files)
        self._used = dict(files)
        self._recheck = recheck
        self._changed = changed

    def start(self) -> None:
        """Watch in a thread; without files there is nothing to do."""
        if self._files:
            threading.Thread(target=self._run, name="config-files", daemon=True).start()

    def look(self) -> bool:
        """Compare all files with what was read from them; return whether `changed` was called."""
        for path, known in self._files.items():
            try:
                now = path.read_bytes()
            except OSError as error:
                log.debug("Could not read configuration file", file=str(path), err=error.strerror)
                continue
            if now == known:
                continue
            self._files[path] = now
            if now != self._used[path] and self._can_be_used(path):
                self._changed(path)
                return True
        return False

    def _can_be_used(self, path: Path) -> bool:
        problems = self._recheck()
        for problem in problems:
            log.error(
                messages.CONFIG_KEPT,
                file=str(path), err=problem,
            )  # fmt: skip
        return not problems

    def _run(self) -> None:
        for _ in DirectoryWatcher({path.absolute().parent for path in self._files}, LOOK_SECONDS).looks():
            if self.look():
                return
