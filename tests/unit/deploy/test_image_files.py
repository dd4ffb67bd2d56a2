"""The locks and the Dockerfile, as far as reading them can tell."""

from __future__ import annotations

import pathlib
import re
import subprocess
import sys
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = pathlib.Path(__file__).resolve().parents[3]
PROJECT = tomllib.loads((REPO / "pyproject.toml").read_text())
IMAGE = REPO / "deploy/requirements.lock"
BUILD = REPO / "deploy/build.lock"
DEV = REPO / "tools/locks/dev.lock"
EXTRAS = {name: REPO / f"tools/locks/{name}.lock" for name in PROJECT["project"]["optional-dependencies"]}
LOCKS = (IMAGE, BUILD, *EXTRAS.values())
LEFT_OUT = frozenset(PROJECT["tool"]["pip-tools"]["unsafe-package"])
NOT_LOCKED = REPO / "tools/not-locked"
ENTRY = re.compile(r"^(\S+)==(\S+) \\\n((?:    --hash=sha256:[0-9a-f]{64}(?: \\)?\n)+)", re.MULTILINE)


def pins(lock: pathlib.Path) -> dict[str, tuple[str, str]]:
    """The version and the hashes of each package."""
    return {name: (version, hashes) for name, version, hashes in ENTRY.findall(lock.read_text())}


def asked_for(lock: pathlib.Path) -> list[str]:
    project = PROJECT["project"]
    if lock == BUILD:
        return list(PROJECT["build-system"]["requires"])
    wanted = list(project["dependencies"]) if lock in (IMAGE, DEV) else []
    if lock == DEV:
        wanted += PROJECT["build-system"]["requires"]
    return wanted + [
        text for name, path in EXTRAS.items() if path == lock for text in project["optional-dependencies"][name]
    ]


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_the_lock_satisfies_what_the_project_asks_for(lock: pathlib.Path) -> None:
    assert asked_for(lock)
    for text in asked_for(lock):
        wanted = Requirement(text)
        pinned, _ = pins(lock).get(canonicalize_name(wanted.name), ("", ""))
        assert pinned, f"{wanted.name} is not pinned: make lock"
        assert wanted.specifier.contains(pinned), f"{text}, but {pinned} is pinned: make lock"


@pytest.mark.parametrize("lock", LOCKS, ids=lambda lock: lock.name)
def test_every_pin_has_hashes_and_no_line_names_an_index(lock: pathlib.Path) -> None:
    text = lock.read_text()
    assert re.sub(r"^    # via.*\n", "", ENTRY.sub("", text), flags=re.MULTILINE) == ""
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", text)


def test_what_the_image_and_its_build_get_is_what_the_tests_run_with() -> None:
    tests = pins(DEV).items()
    assert pins(IMAGE).items() <= tests
    assert pins(BUILD).items() <= tests
    for lock in EXTRAS.values():
        shared = pins(lock).keys() & pins(DEV).keys()
        assert {name: pins(lock)[name] for name in shared} == {name: pins(DEV)[name] for name in shared}


def test_no_lock_has_what_no_one_imports() -> None:
    assert LEFT_OUT
    for lock in LOCKS:
        assert not pins(lock).keys() & LEFT_OUT


def test_what_no_lock_names_is_found_in_an_environment(tmp_path: pathlib.Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", tmp_path], check=True)
    (packages,) = tmp_path.glob("lib/python3*/site-packages")
    for name in ("Left_Behind", "py.locked", "ipvsproxy"):
        (packages / f"{name}-1.dist-info").mkdir()
        (packages / f"{name}-1.dist-info/METADATA").write_text(
            f"Metadata-Version: 2.1\nName: {name}\nVersion: 1\n"
        )
    argv = [tmp_path / "bin/python", NOT_LOCKED]
    done = subprocess.run(argv, input="py-locked==1 \\\n", text=True, stdout=subprocess.PIPE, check=True)
    assert done.stdout.split() == ["left-behind"]


def scripts(place: str) -> list[pathlib.Path]:
    files = [path for path in (REPO / place).iterdir() if path.is_file()]
    # `make lock` decides what the hashes are.
    return [path for path in files if path.suffix in ("", ".sh") and path.name != "lock"]


@pytest.mark.parametrize("place", ["deploy", "tools"])
def test_nothing_is_installed_but_by_hash(place: str) -> None:
    """From a registry, that is; our own wheel, and our own tree, come from here."""
    found = 0
    for script in scripts(place):
        text = re.sub(r"\\\n\s*", "", script.read_text())
        for line in re.findall(r'^.*\bpip"? (?:install|wheel|download) .*$', text, re.MULTILINE):
            found += 1
            assert "--no-deps" in line, f"{script.name}: {line}"
            assert "--require-hashes" in line or "--no-index" in line, f"{script.name}: {line}"
    assert found >= 3


def test_the_image_holds_only_what_the_script_puts_there() -> None:
    final = (REPO / "deploy/Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert "install.sh" in final
    steps = [line.split()[0] for line in final.splitlines()[1:] if re.match(r"[A-Z]+ ", line)]
    assert steps == ["ARG", "ARG", "RUN", "ENV", "ENTRYPOINT"]


def test_the_image_has_both_names() -> None:
    """kubeadm's DaemonSet calls /usr/local/bin/kube-proxy; the image by itself is ipvsproxy, with its commands."""
    script = (REPO / "deploy/install.sh").read_text()
    names = re.search(r"^for name in (.*); do\n    ln -sf \S+ \"/usr/local/bin/\$name\"$", script, re.MULTILINE)
    assert names
    assert names[1].split() == ["ipvsproxy", "kube-proxy"]
    assert 'ENTRYPOINT ["/usr/local/bin/ipvsproxy"]' in (REPO / "deploy/Dockerfile").read_text()
