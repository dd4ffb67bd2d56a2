"""Pack a folder as a container image of one layer, in the form of `docker save`, which containerd imports.

    image-archive.py ROOT NAME:TAG ARCHIVE

ROOT holds the files, as tools/image-root leaves them. Needs root, to keep owners and modes, and nothing else.
"""

import hashlib
import io
import json
import platform
import sys
import tarfile
import tempfile
from typing import IO

ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}
PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def main(root: str, name: str, archive: str) -> None:
    """Write the archive: the layer, a configuration that names its digest, and the list of both."""
    with tempfile.TemporaryFile() as layer:
        with tarfile.open(fileobj=layer, mode="w") as tar:
            tar.add(root, arcname=".")
        layer.seek(0)
        digest = hashlib.file_digest(layer, "sha256").hexdigest()
        size = layer.tell()
        layer.seek(0)
        with tarfile.open(archive, "w") as tar:
            _add(tar, "layer.tar", layer, size)
            _add_json(tar, "config.json", _config(digest))
            image = {"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}
            _add_json(tar, "manifest.json", [image])


def _config(digest: str) -> dict[str, object]:
    """The configuration in deploy/Dockerfile, and the digest of the uncompressed layer."""
    return {
        "architecture": ARCHITECTURES[platform.machine()],
        "os": "linux",
        "config": {"Entrypoint": ["/usr/local/bin/ipvsproxy"], "Env": [PATH, "PYTHONDONTWRITEBYTECODE=1"]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
    }


def _add(tar: tarfile.TarFile, name: str, content: IO[bytes], size: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = size
    tar.addfile(entry, content)


def _add_json(tar: tarfile.TarFile, name: str, value: object) -> None:
    text = json.dumps(value).encode()
    _add(tar, name, io.BytesIO(text), len(text))


if __name__ == "__main__":
    main(*sys.argv[1:])
