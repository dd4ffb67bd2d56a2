"""A command in the files of the image, run as a container engine would, by mounts and capabilities alone.

`make image-root` makes the files. The root is mounted read-only; one folder of the host is seen at VOLUME. A
privileged container has all capabilities and may write below /proc/sys; any other one has the capabilities it is
given and sees /proc/sys read-only.
"""

from __future__ import annotations

import pathlib
from collections.abc import Iterator, Sequence

REPO = pathlib.Path(__file__).resolve().parents[2]
ROOT = REPO / ".cache/image/root"
MADE = REPO / ".cache/image/root.made"
VOLUME = "/var/lib/kube-proxy"
PRIVILEGED = "all"
NET_ADMIN = "-all,+net_admin"
NOTHING = "-all"

# The shell's own mount namespace: nothing is left behind when the command ends.
_ENTER = f"""
root=$1 folder=$2 capabilities=$3
shift 3
mount --bind "$root" "$root"
mount -o remount,bind,ro "$root"
mount -t proc proc "$root/proc"
mount --rbind /sys "$root/sys"
mount --rbind /dev "$root/dev"
if [ -n "$folder" ]; then
    mount -t tmpfs tmpfs "$root/var/lib"
    mkdir "$root{VOLUME}"
    mount --bind "$folder" "$root{VOLUME}"
    mount -o remount,ro "$root/var/lib"
fi
[ "$capabilities" != {PRIVILEGED} ] || exec chroot "$root" "$@"
mount --bind "$root/proc/sys" "$root/proc/sys"
mount -o remount,bind,ro "$root/proc/sys"
exec chroot "$root" setpriv --no-new-privs --inh-caps=-all --bounding-set="$capabilities" "$@"
"""
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_ENV = ("env", "-i", _PATH, "PYTHONDONTWRITEBYTECODE=1")


def contained(argv: Sequence[str], capabilities: str = NET_ADMIN, folder: pathlib.Path | None = None) -> list[str]:
    """Return the command line that runs argv in the image; `folder` is what it sees at VOLUME."""
    enter = ["unshare", "--mount", "--propagation=private", "sh", "-euc", _ENTER, "sh"]
    return [*enter, str(ROOT), str(folder or ""), capabilities, *_ENV, *argv]


CONTENT = ("Dockerfile", "install.sh", "sbom.py", "requirements.lock", "build.lock")


def why_no_root() -> str:
    """Why the files of the image cannot be used; empty if they can."""
    if not MADE.exists():
        return "no files of the image: make image-root"
    made = MADE.stat().st_mtime
    newer = [path for path in _content() if path.stat().st_mtime > made]
    return f"the files of the image are older than {newer[0].relative_to(REPO)}: make image-root" if newer else ""


def _content() -> Iterator[pathlib.Path]:
    """What `make image-root` makes them from, as the Makefile has it."""
    yield from (REPO / "deploy" / name for name in CONTENT)
    yield REPO / "pyproject.toml"
    for folder in ("ipvsproxy", "nft"):
        yield from (path for path in (REPO / folder).rglob("*") if path.suffix in (".py", ".nft"))
