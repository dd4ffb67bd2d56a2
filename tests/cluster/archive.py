"""Image archives in docker's format, which `ctr images import` reads, out of files of this machine.

The same files give the same archive: no time and no owner is in it.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pathlib
import subprocess
import tarfile
from dataclasses import dataclass, field

PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
EPOCH = "1970-01-01T00:00:00Z"


class Layer:
    """Files of an image; the first of a name stays."""

    def __init__(self, path: pathlib.Path) -> None:
        self._tar = tarfile.open(path, "w")  # noqa: SIM115
        self._have: set[str] = set()

    def close(self) -> None:
        self._tar.close()

    def directory(self, name: str, mode: int = 0o755) -> None:
        if name and name not in self._have:
            self.directory(os.path.dirname(name))  # noqa: PTH120
            self._add(_info(name, tarfile.DIRTYPE, mode))

    def link(self, name: str, target: str) -> None:
        info = _info(name, tarfile.SYMTYPE, 0o777)
        info.linkname = target
        self._in_its_directory(info)

    def text(self, name: str, text: str, mode: int = 0o644) -> None:
        self.data(name, text.encode(), mode)

    def data(self, name: str, data: bytes, mode: int = 0o644) -> None:
        info = _info(name, tarfile.REGTYPE, mode)
        info.size = len(data)
        self._in_its_directory(info, data)

    def file(self, source: pathlib.Path, name: str, mode: int = 0o755) -> None:
        """A copy; where the source is a link, of what it leads to."""
        self.data(name, source.resolve().read_bytes(), mode)

    def program(self, source: pathlib.Path, name: str) -> None:
        """A program with the libraries that it is linked to."""
        for library in libraries(source):
            self.file(library, _below_usr(library))
        self.file(source, name)

    def tree(self, root: pathlib.Path) -> None:
        """Everything below a folder, with owners, links and modes as they are."""
        for path in sorted(root.iterdir()):
            self._tar.add(path, path.name, filter=_without_time)

    def _in_its_directory(self, info: tarfile.TarInfo, data: bytes | None = None) -> None:
        self.directory(os.path.dirname(info.name))  # noqa: PTH120
        if info.name not in self._have:
            self._add(info, data)

    def _add(self, info: tarfile.TarInfo, data: bytes | None = None) -> None:
        self._have.add(info.name)
        self._tar.addfile(info, io.BytesIO(data) if data is not None else None)


@dataclass(frozen=True, slots=True)
class Image:
    """What an image says of itself beside its files."""

    tags: tuple[str, ...]
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()
    env: tuple[str, ...] = field(default=(PATH,))
    ports: tuple[int, ...] = ()


def write(image: Image, layer: pathlib.Path, path: pathlib.Path) -> None:
    """Put a closed layer into an archive; a file that was half written is never left under that path."""
    digest = hashlib.sha256(layer.read_bytes()).hexdigest()
    config = json.dumps(_config(image, digest)).encode()
    name = f"{hashlib.sha256(config).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": list(image.tags), "Layers": [f"{digest}/layer.tar"]}]
    made = path.with_suffix(".made")
    with tarfile.open(made, "w") as archive:
        _member(archive, name, config)
        _member(archive, "manifest.json", json.dumps(manifest).encode())
        info = _info(f"{digest}/layer.tar", tarfile.REGTYPE, 0o644)
        info.size = layer.stat().st_size
        with layer.open("rb") as content:
            archive.addfile(info, content)
    made.rename(path)


def libraries(program: pathlib.Path) -> list[pathlib.Path]:
    """The shared libraries of a program and its loader; none if it is static."""
    said = subprocess.run(["ldd", program], capture_output=True, text=True, check=False).stdout
    words = [word for line in said.splitlines() for word in line.split()]
    return sorted({pathlib.Path(word) for word in words if word.startswith("/")})


def _below_usr(path: pathlib.Path) -> str:
    name = str(path).lstrip("/")
    return name if name.startswith("usr/") else f"usr/{name}"


def _config(image: Image, digest: str) -> dict[str, object]:
    ports: dict[str, object] = {f"{port}/tcp": {} for port in image.ports}
    runs = {
        "Env": list(image.env),
        "Entrypoint": list(image.entrypoint) or None,
        "Cmd": list(image.command) or None,
        "WorkingDir": "/",
        "ExposedPorts": ports,
    }
    rootfs = {"type": "layers", "diff_ids": [f"sha256:{digest}"]}
    return {"architecture": "amd64", "os": "linux", "created": EPOCH, "config": runs, "rootfs": rootfs}


def _member(archive: tarfile.TarFile, name: str, data: bytes) -> None:
    info = _info(name, tarfile.REGTYPE, 0o644)
    info.size = len(data)
    archive.addfile(info, io.BytesIO(data))


def _info(name: str, kind: bytes, mode: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.mode = kind, mode
    return info


def _without_time(info: tarfile.TarInfo) -> tarfile.TarInfo:
    info.mtime = 0
    return info
