"""The images of a cluster's pods, as archives in one folder that all clusters share.

Archives that were given in KUBE/images count as they are. What is not among them is made: pause from a program of
our own, agnhost and kube-proxy from their binaries and Debian's programs, and the product from the files of
`make image-root`.
"""

from __future__ import annotations

import hashlib
import json
import os
import pathlib
import re
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Callable

from tests.cluster import archive
from tests.cluster.archive import Image, Layer
from tests.cluster.binaries import BinaryMissing, Kube
from tests.cluster.place import HERE, REPO
from tests.support.repository import VERSION

REGISTRY = "registry.k8s.io"
PAUSE = f"{REGISTRY}/pause:3.10.2"
BUSYBOX = f"{REGISTRY}/e2e-test-images/busybox:1.37.0-1"
AGNHOST = f"{REGISTRY}/e2e-test-images/agnhost:2.63.0"
# Tests of name resolution want a second image, which has to have glibc's resolver: so has this one. One test wants
# kube-proxy's base image for its conntrack.
AGNHOST_TAGS = (
    AGNHOST,
    *(f"{REGISTRY}/e2e-test-images/{name}" for name in ("agnhost:2.55", "glibc-dns-testing:2.0.0")),
    f"{REGISTRY}/build-image/distroless-iptables:v0.9.3",
)
OURS = tuple(f"{registry}/ipvsproxy:{VERSION}" for registry in ("docker.io/library", "registry.example.com"))
OLDER_TAG = "registry.example.com/ipvsproxy:older"

FOLDERS = (
    "etc",
    "home",
    "proc",
    "root",
    "run",
    "sys",
    "dev",
    "uploads",
    "usr/bin",
    "usr/lib",
    "usr/lib64",
    "var/run",
)
USERS = """root:x:0:0:root:/root:/bin/sh
user-defined-in-image:x:1000:1000::/home:/bin/sh
nobody:x:65534:65534::/:/bin/sh
"""
GROUPS = """root:x:0:
user-defined-in-image:x:1000:
group-defined-in-image:x:50000:user-defined-in-image
nogroup:x:65534:
"""
NSSWITCH = "passwd: files\ngroup: files\nhosts: files dns\nprotocols: files\n"
# ipset of kube-proxy's ipvs mode reads the names of protocols.
PROTOCOLS = "icmp 1 ICMP\ntcp 6 TCP\nudp 17 UDP\nipv6-icmp 58 IPv6-ICMP\nsctp 132 SCTP\n"
# What upstream's tests call in agnhost, beside what is in busybox.
AGNHOST_PROGRAMS = ("bash", "conntrack", "curl", "dig", "getent", "ip", "nslookup", "nsenter", "ss")
KUBE_PROXY_PROGRAMS = ("conntrack", "iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save")
KUBE_PROXY_PROGRAMS += ("ip6tables-restore", "ipset", "modprobe", "nft", "ip")
# Extensions that iptables loads by name, which ldd does not see.
XTABLES = pathlib.Path("/usr/lib/x86_64-linux-gnu/xtables")
# busybox 1.35 of Debian 12 ends with a fault in its own.
WGET = """#!/bin/sh
# wget -q -T SECONDS -O FILE URL, by curl.
seconds=60 file=-
while [ $# -gt 0 ]; do
    case $1 in
        -T) seconds=$2; shift ;;
        -O) file=$2; shift ;;
        -*) ;;
        *) url=$1 ;;
    esac
    shift
done
exec curl -sfL -m "$seconds" -o "$file" "$url"
"""


def make(kube: Kube, folder: pathlib.Path) -> list[pathlib.Path]:
    """Make what is missing or older than what it is made of; the paths of all archives.

    Raises Missing where neither an archive nor what it takes to make one is there.
    """
    folder.mkdir(parents=True, exist_ok=True)
    given = {tag: path for path in kube.archives() for tag in tags(path)}
    wanted = [_given(kube, path, folder) for path in kube.archives()]
    for name, (tag, build, sources) in _recipes(kube).items():
        if tag not in given:
            path = folder / f"{name}-{_key(sources)}.tar"
            if not path.exists():
                _build(path, build)
            wanted.append(path)
    for path in set(folder.glob("*.tar")) - set(wanted):
        path.unlink()
    return wanted


def tags(path: pathlib.Path) -> list[str]:
    """The names of the images in an archive of docker's format; Missing for any other file."""
    try:
        with tarfile.open(path) as content:
            member = content.extractfile("manifest.json")
            return [tag for image in json.load(member or b"") for tag in image["RepoTags"] or []]
    except (tarfile.TarError, KeyError, ValueError, TypeError) as error:
        message = f"{path} is no image archive as docker writes it: {error}"
        raise BinaryMissing(message) from error


Recipe = tuple[str, Callable[[Layer], Image], list[pathlib.Path]]


def _recipes(kube: Kube) -> dict[str, Recipe]:
    """By name: the tag, what fills the layer, and what a change of makes it anew."""
    own = pathlib.Path(__file__)
    recipes: dict[str, Recipe] = {
        "pause": (PAUSE, _pause, [own, REPO / HERE / "pause.c"]),
        "busybox": (BUSYBOX, _busybox, [own]),
        "agnhost": (AGNHOST, lambda layer: _agnhost(kube, layer), [own, kube.folder / "agnhost"]),
        "ipvsproxy": (OURS[0], lambda layer: _ours(REPO, OURS, layer), [own, image_made(REPO)]),
    }
    if source := older():
        recipes["older"] = (OLDER_TAG, lambda layer: _ours(source, (OLDER_TAG,), layer), [own, image_made(source)])
    if kube.has("kube-proxy"):
        tag = f"{REGISTRY}/kube-proxy:{kube.version('kube-proxy')}"
        recipes["kube-proxy"] = (tag, lambda layer: _kube_proxy(kube, tag, layer), [own, kube["kube-proxy"]])
    return recipes


def older() -> pathlib.Path | None:
    """The source of another version, with the files of its image; the first word of IPVSPROXY_OLDER names it."""
    named = os.environ.get("IPVSPROXY_OLDER", "").split()
    return pathlib.Path(named[0]).resolve() if named else None


def _image_root(source: pathlib.Path) -> pathlib.Path:
    return source / ".cache/image/root"


def image_made(source: pathlib.Path) -> pathlib.Path:
    """Where `make image-root` says that it has been there; Missing where it has not."""
    file = _image_root(source).with_suffix(".made")
    if not file.exists():
        message = f"there are no files of the image in {source}: make image-root"
        raise BinaryMissing(message)
    return file


def _key(sources: list[pathlib.Path]) -> str:
    stats = [(str(path), path.stat().st_mtime_ns, path.stat().st_size) for path in sources if path.exists()]
    return hashlib.sha256(repr(stats).encode()).hexdigest()[:12]


def _build(path: pathlib.Path, fill: Callable[[Layer], Image]) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent) as scratch:
        content = pathlib.Path(scratch, "layer")
        layer = Layer(content)
        image = fill(layer)
        layer.close()
        archive.write(image, content, path)


def _given(kube: Kube, path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    target = folder / f"given-{path.stem}-{_key([path])}.tar"
    if not target.exists():
        made = target.with_suffix(".made")
        shutil.copyfile(path, made)
        made.rename(target)
    return target


def _pause(layer: Layer) -> Image:
    with tempfile.TemporaryDirectory() as scratch:
        program = pathlib.Path(scratch, "pause")
        words = ["gcc", "-Os", "-static", "-s", "-Wall", "-Werror", "-o", program, REPO / HERE / "pause.c"]
        subprocess.run(words, check=True)
        layer.file(program, "pause")
    return Image((PAUSE,), entrypoint=("/pause",))


def _busybox(layer: Layer) -> Image:
    _base(layer)
    return Image((BUSYBOX,), command=("sh",))


def _agnhost(kube: Kube, layer: Layer) -> Image:
    for name in AGNHOST_PROGRAMS:
        _program(layer, name)
    _base(layer)
    layer.file(kube["agnhost"], "agnhost")
    layer.link("agnhost-2", "agnhost")
    _localhost_certificate(layer)
    return Image(AGNHOST_TAGS, entrypoint=("/agnhost",), command=("pause",), ports=(80, 8080, 8081, 9376, 5000))


def _kube_proxy(kube: Kube, tag: str, layer: Layer) -> Image:
    for name in KUBE_PROXY_PROGRAMS:
        _program(layer, name)
    for extension in sorted(XTABLES.glob("*.so")):
        layer.program(extension, str(extension).lstrip("/"))
    _base(layer)
    layer.file(kube["kube-proxy"], "usr/local/bin/kube-proxy")
    return Image((tag,), entrypoint=("/usr/local/bin/kube-proxy",))


def _ours(source: pathlib.Path, tags: tuple[str, ...], layer: Layer) -> Image:
    """As deploy/Dockerfile says."""
    text = (source / "deploy/Dockerfile").read_text()
    env = tuple(re.findall(r"^ENV (\S+)$", text, re.MULTILINE))
    entrypoint = tuple(json.loads(re.findall(r"^ENTRYPOINT (\[.*\])$", text, re.MULTILINE)[-1]))
    layer.tree(_image_root(source))
    return Image(tags, entrypoint=entrypoint, env=(archive.PATH, *env))


def _base(layer: Layer) -> None:
    """A root with a shell; after what is to come before busybox' own programs."""
    for folder in FOLDERS:
        layer.directory(folder)
    layer.directory("tmp", 0o1777)
    for name in ("bin", "lib", "lib64"):
        layer.link(name, f"usr/{name}")
    layer.link("sbin", "usr/bin")
    layer.link("usr/sbin", "bin")
    layer.text("etc/passwd", USERS)
    layer.text("etc/group", GROUPS)
    layer.text("etc/nsswitch.conf", NSSWITCH)
    layer.text("etc/protocols", PROTOCOLS)
    # busybox' own shell would run its applets in place of the programs beside it.
    layer.program(pathlib.Path("/usr/bin/dash"), "usr/bin/sh")
    layer.program(pathlib.Path("/usr/bin/nc.openbsd"), "usr/bin/nc")
    _program(layer, "curl")
    layer.text("usr/bin/wget", WGET, 0o755)
    busybox = pathlib.Path("/usr/bin/busybox")
    layer.program(busybox, "usr/bin/busybox")
    applets = subprocess.run([busybox, "--list"], capture_output=True, text=True, check=True).stdout.split()
    for applet in applets:
        layer.link(f"usr/bin/{applet}", "busybox")


def _program(layer: Layer, name: str) -> None:
    path = shutil.which(name, path=f"{os.defpath}:/usr/sbin:/sbin")
    if path is None:
        message = f"this machine has no program {name}: tools/cluster-setup"
        raise BinaryMissing(message)
    layer.program(pathlib.Path(path), f"usr/bin/{name}")


def _localhost_certificate(layer: Layer) -> None:
    """What `agnhost porter` shows to clients of its TLS ports."""
    with tempfile.TemporaryDirectory() as scratch:
        words = [
            "openssl",
            "req",
            "-x509",
            "-newkey",
            "rsa:2048",
            "-nodes",
            "-days",
            "3650",
            "-subj",
            "/CN=localhost",
        ]
        words += ["-addext", "subjectAltName=DNS:localhost", "-keyout", "localhost.key", "-out", "localhost.crt"]
        subprocess.run(words, cwd=scratch, capture_output=True, check=True)
        for name in ("localhost.key", "localhost.crt"):
            layer.file(pathlib.Path(scratch, name), name, 0o644)
