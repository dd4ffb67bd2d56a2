"""The files of a folder that may hold manifests, also those in folders within it.

Read are the endings .yaml, .yml and .json in any case, and files without an ending or with .txt whose beginning
looks like an object. Names with a dot in front are left aside, and with them what a mounted ConfigMap, git and
editors keep to themselves, and copies such as web.yaml~ or web.yaml.bak. Links are followed; a folder that is
reached twice is read once, so links may form a circle.
"""

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import NamedTuple

from ipvsproxy.base.errors import plain

SUFFIXES = (".yaml", ".yml", ".json")
DOUBTFUL_SUFFIXES = ("", ".txt")
BEGINNING_BYTES = 4096
BEGINNING = re.compile(
    rb"\A(?:\s|#[^\n]*\n|---[^\n]*\n|%[^\n]*\n)*+[-{\[\"' \t\r\n]*+(?:apiVersion|kind|items|metadata)[\"']?[ \t]*:"
)


class FoundFiles(NamedTuple):
    """What is in a folder: files by their path within it, names of files of another kind, and folders.

    `problems` are folders within it that cannot be read, with the reason; their names end with a slash.
    """

    files: dict[str, Path]
    others: list[str]
    folders: list[Path]
    problems: dict[str, str]


def look(folder: Path) -> FoundFiles:
    """Look at a folder and those in it. Raises OSError when it cannot be read itself."""
    found = FoundFiles({}, [], [], {})
    seen: set[tuple[int, int]] = set()
    waiting = [("", folder)]
    while waiting:
        prefix, place = waiting.pop()
        try:
            status = place.stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            inside = sorted(os.scandir(place), key=lambda entry: entry.name)
        except OSError as error:
            if not prefix:
                raise
            found.problems[prefix] = plain(error)
            continue
        found.folders.append(place)
        waiting.extend(_sort(prefix, inside, found))
    return found


def _sort(prefix: str, inside: list[os.DirEntry[str]], found: FoundFiles) -> Iterator[tuple[str, Path]]:
    """Add the files of a folder to what was found; yield the folders in it."""
    for entry in inside:
        if entry.name[0] in ".#":
            continue
        name = f"{prefix}{entry.name}"
        if _is_folder(entry):
            yield f"{name}/", Path(entry.path)
        elif _may_hold_objects(entry):
            found.files[name] = Path(entry.path)
        else:
            found.others.append(name)


def _is_folder(entry: os.DirEntry[str]) -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a circle of links
        return False


def _may_hold_objects(entry: os.DirEntry[str]) -> bool:
    suffix = PurePath(entry.name).suffix.casefold()
    if suffix in SUFFIXES:
        return True
    return suffix in DOUBTFUL_SUFFIXES and entry.name[-1] not in "~#" and _looks_like_objects(Path(entry.path))


def _looks_like_objects(path: Path) -> bool:
    """Whether a file begins like an object. UTF-16 looks like ASCII without its zero bytes."""
    try:
        if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would hang
            return False
        with path.open("rb") as file:
            beginning = file.read(BEGINNING_BYTES)
    except OSError:
        return False
    return BEGINNING.match(beginning.lstrip(b"\xef\xbb\xbf\xff\xfe").replace(b"\0", b"")) is not None
