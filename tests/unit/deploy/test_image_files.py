"""The lock and the Dockerfile, as far as reading them can tell."""

from __future__ import annotations

import pathlib
import re
import tomllib

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

REPO = pathlib.Path(__file__).resolve().parents[3]
LOCK = (REPO / "deploy/requirements.lock").read_text()


def pins() -> dict[str, str]:
    return dict(re.findall(r"^(\S+)==(\S+) \\$", LOCK, re.MULTILINE))


def test_the_lock_satisfies_what_the_project_asks_for() -> None:
    project = tomllib.loads((REPO / "pyproject.toml").read_text())["project"]
    for text in project["dependencies"]:
        wanted = Requirement(text)
        pinned = pins().get(canonicalize_name(wanted.name))
        assert pinned is not None, f"{wanted.name} is not pinned: make lock"
        assert wanted.specifier.contains(pinned), f"{text}, but {pinned} is pinned: make lock"


def test_every_pin_has_hashes_and_no_line_names_an_index() -> None:
    for entry in re.split(r"\n(?=\S)", LOCK.strip()):
        assert re.match(r"[\w.-]+==[\w.]+ \\\n    --hash=sha256:[0-9a-f]{64}", entry), entry[:80]
    assert not re.search(r"://|--(extra-)?index-url|--find-links|--trusted-host", LOCK)


def test_the_image_holds_only_what_the_script_puts_there() -> None:
    final = (REPO / "deploy/Dockerfile").read_text().rpartition("\nFROM ")[2]
    assert "install.sh" in final
    steps = [line.split()[0] for line in final.splitlines()[1:] if re.match(r"[A-Z]+ ", line)]
    assert steps == ["RUN", "ENV", "ENTRYPOINT"]


def test_the_image_has_both_names_and_takes_packages_by_their_hashes_only() -> None:
    """kubeadm's DaemonSet calls /usr/local/bin/kube-proxy; the image by itself is ipvsproxy, with its commands."""
    script = (REPO / "deploy/install.sh").read_text()
    names = re.search(r"^for name in (.*); do\n    ln -sf \S+ \"/usr/local/bin/\$name\"$", script, re.MULTILINE)
    assert names
    assert names[1].split() == ["ipvsproxy", "kube-proxy"]
    installs = [line for line in script.splitlines() if 'pip" install' in line]
    assert len(installs) == 2
    assert all("--require-hashes" in line or "--no-index --no-deps" in line for line in installs)
    assert 'ENTRYPOINT ["/usr/local/bin/ipvsproxy"]' in (REPO / "deploy/Dockerfile").read_text()
