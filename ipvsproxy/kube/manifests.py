"""A folder of manifests as a source of objects.

In: the files of one folder and of those in it (`kube.tree` describes which). Out: one `Listed` a kind at the
start, then again for each kind in which something changed. An empty folder is valid, but one in which nothing can
be used is logged with what is there.

What cannot be used is refused object by object, in one log line that states where (`kube.manifest_file`). Where
two files hold the same object, the first by file name wins; a file wins only with a version that can be used.
A folder that goes away changes nothing until it is back.

`Folder` decides and needs no thread; `ManifestSource` only watches and calls it.
"""

import errno
import os
import threading
from collections import Counter
from collections.abc import Collection, Iterator
from pathlib import Path

import structlog

from ipvsproxy.base import messages
from ipvsproxy.base.directory_watch import DirectoryWatcher
from ipvsproxy.base.errors import plain
from ipvsproxy.exchange.inbox import ALWAYS, Inbox, Kind, Listed, Object, SourceFailed
from ipvsproxy.kube.hints import NOTHING, unread_endpoints, what_is_there
from ipvsproxy.kube.manifest_file import File, Ident
from ipvsproxy.kube.tree import FoundFiles, look
from ipvsproxy.plan.model import EndpointSlice

# Looked at so often in any case, for file systems that announce nothing.
LOOK_SECONDS = 2.0
MOST_WATCHED = 100
"""Folders whose changes are seen at once; the others are looked at as often as all are."""

log = structlog.get_logger()


class Folder:
    """The objects in a folder, remembered from one `load` to the next."""

    def __init__(self, path: Path, kinds: Collection[Kind] = ALWAYS) -> None:
        self._kinds = kinds
        self._path = path
        self._files: dict[str, File] = {}
        self._device: int | None = None
        self._away = ""
        self._sent: dict[Kind, Listed] = {}
        self._clashes: set[tuple[Ident, str, str]] = set()
        self._hinted: set[str] = set()
        self._problems: set[tuple[str, str]] = set()
        self.folders: tuple[Path, ...] = (path,)

    def load(self) -> list[Listed]:
        """Look at the folder and return a `Listed` for each kind that changed, at first for all.

        Raises OSError when the folder cannot be read and never could.
        """
        try:
            found = self._look()
        except OSError as error:
            if not self._sent:
                raise
            self._note_away(plain(error))
            return []
        self._note_away("")
        for gone in self._files.keys() - found.files.keys() - self._unreadable(found):
            log.info(messages.MANIFEST_FILE_REMOVED, file=gone, objects=len(self._files.pop(gone).content.good))
        for name, path in sorted(found.files.items()):
            self._files.setdefault(name, File(name, path, self._kinds)).refresh()
        self._note_lacks(found)
        return self._changes()

    def _look(self) -> FoundFiles:
        device = self._path.stat().st_dev
        found = look(self._path)
        if not found.files and self._files and device != self._device:
            # An unmounted volume leaves an empty folder behind: that is not the wish to remove everything.
            raise OSError(errno.ENODEV, "another file system is there now, and it is empty")
        self._device = device
        self.folders = tuple(found.folders)
        return found

    def _unreadable(self, found: FoundFiles) -> set[str]:
        """Return the files that were in folders that cannot be read now: what they held stays."""
        for name, reason in sorted(found.problems.items() - self._problems):
            log.warning("Could not read subdirectory of manifest directory", directory=name, err=reason)
        self._problems = set(found.problems.items())
        return {name for name in self._files if not found.problems.keys().isdisjoint(_folders(name))}

    def _note_lacks(self, found: FoundFiles) -> None:
        """Log what is missing in the folder as a whole, each once."""
        contents = [file.content for file in self._files.values()]
        slices = (value for content in contents for value in content.good.values())
        services = {value.service for value in slices if isinstance(value, EndpointSlice)}
        hints = set(unread_endpoints({key for content in contents for key in content.endpoints}, services))
        if not any(file.problem or file.content.good or file.content.refused for file in self._files.values()):
            kinds: Counter[str] = Counter()
            for content in contents:
                kinds.update(content.unread)
            hints.add(f"{NOTHING}: {what_is_there(kinds, found.others)}")
        for hint in sorted(hints - self._hinted):
            log.warning("Manifest directory lacked objects", directory=str(self._path), reason=hint)
        self._hinted = hints

    def _note_away(self, reason: str) -> None:
        if reason and not self._away:
            log.warning(messages.MANIFESTS_UNAVAILABLE, directory=str(self._path), err=reason)
        elif self._away and not reason:
            log.info("Read manifest directory again", directory=str(self._path))
        self._away = reason

    def _changes(self) -> list[Listed]:
        owners = self._owners()
        objects: dict[Kind, dict[str, Object]] = {kind: {} for kind in self._kinds}
        kept: dict[Kind, set[str]] = {kind: set() for kind in self._kinds}
        for (kind, key), file in owners.items():
            value = file.content.good[kind, key]
            if value is not None:
                objects[kind][key] = value
        for kind, key in self._refused() - owners.keys():
            kept[kind].add(key)
        new = {kind: Listed(kind, objects[kind], frozenset(kept[kind])) for kind in self._kinds}
        # Nodes come first, so that no Service gets the address of one for a moment.
        order = sorted(new, key=lambda kind: kind is not Kind.NODE)
        changed = [new[kind] for kind in order if self._sent.get(kind) != new[kind]]
        self._sent = new
        return changed

    def _refused(self) -> set[Ident]:
        return {r.ident for file in self._files.values() for r in file.content.refused if r.ident}

    def _owners(self) -> dict[Ident, File]:
        """Return which file each object is taken from."""
        owners: dict[Ident, File] = {}
        clashes = set()
        for _, file in sorted(self._files.items()):
            for ident in file.content.good:
                owner = owners.setdefault(ident, file)
                if owner is not file:
                    clashes.add((ident, owner.name, file.name))
        self._note_clashes(clashes)
        return owners

    def _note_clashes(self, clashes: set[tuple[Ident, str, str]]) -> None:
        for (kind, key), winner, loser in sorted(clashes - self._clashes):
            reason = f"{winner} has this object already"
            log.warning(
                messages.MANIFEST_REFUSED, file=loser, kind=kind, object=key, field="metadata.name", err=reason
            )
        for (kind, key), _, loser in sorted(self._clashes - clashes):
            log.info("Resolved duplicate manifest object", file=loser, kind=kind, object=key)
        self._clashes = clashes


def _folders(name: str) -> Iterator[str]:
    """Yield the folders that a file is in, each with a slash at its end."""
    at = name.find("/")
    while at >= 0:
        yield name[: at + 1]
        at = name.find("/", at + 1)


class ManifestSource:
    """Watches a folder and delivers its objects."""

    def __init__(self, folder: Path, kinds: Collection[Kind] = ALWAYS) -> None:
        self._path = folder
        self._folder = Folder(folder, kinds)
        self._news = DirectoryWatcher([folder], LOOK_SECONDS)
        self._thread: threading.Thread | None = None

    def check(self) -> str:
        """Return why the folder cannot be read, or an empty text."""
        try:
            with os.scandir(self._path):
                pass
        except OSError as error:
            return self._unusable(error)
        return ""

    def _unusable(self, error: OSError) -> str:
        return f"manifests folder {self._path}: {plain(error)}"

    def start(self, inbox: Inbox) -> None:
        """Begin to deliver; a folder that cannot be read is a `SourceFailed`."""
        self._thread = threading.Thread(target=self._run, args=(inbox,), name="manifests", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Stop watching and wait for the thread; what was delivered stays as it is."""
        self._news.stop()
        if self._thread is not None:
            self._thread.join()

    def _run(self, inbox: Inbox) -> None:
        try:
            self._deliver(inbox)
        except OSError as error:
            inbox.put(SourceFailed(self._unusable(error)))
            return
        logged = ""
        for _ in self._news.looks():
            try:
                self._deliver(inbox)
            except Exception as error:  # the top of a thread: nothing may end it
                if logged != (logged := str(error)):
                    log.exception(messages.MANIFESTS_CRASHED, directory=str(self._path))

    def _deliver(self, inbox: Inbox) -> None:
        for event in self._folder.load():
            inbox.put(event)
        self._news.follow(self._folder.folders[:MOST_WATCHED])
