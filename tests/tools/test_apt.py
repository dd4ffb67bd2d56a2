"""A package manager that is busy is waited for, with the real apt on a root of its own (tools/apt.sh)."""

from __future__ import annotations

import contextlib
import fcntl
import os
import pathlib
import subprocess
from collections.abc import Iterator

import pytest

from tests.support.programs import Script, require

CONTROL = "Package: nothing-at-all\nVersion: 1\nArchitecture: all\nMaintainer: x <x@example.org>\nDescription: x\n"


class Apt:
    """Folders in place of the machine's, and one package to install into them."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder = folder
        for name in (
            "state/updates",
            "state/info",
            "lists/partial",
            "archives/partial",
            "root",
            "parts",
            "deb/DEBIAN",
        ):
            (folder / name).mkdir(parents=True)
        for name in ("state/status", "state/available", "sources.list"):
            (folder / name).touch()
        (folder / "deb/DEBIAN/control").write_text(CONTROL)
        self.package = folder / "nothing-at-all.deb"
        subprocess.run(["dpkg-deb", "--build", folder / "deb", self.package], check=True, capture_output=True)
        settings = {
            "Dir::State::status": folder / "state/status",
            "Dir::State::Lists": folder / "lists",
            "Dir::State": folder / "state",
            "Dir::Cache": folder,
            "Dir::Log": folder,
            "Dir::Etc::SourceList": folder / "sources.list",
            "Dir::Etc::SourceParts": folder / "parts",
            "APT::Sandbox::User": "root",
        }
        dpkg = [f"--admindir={folder}/state", f"--instdir={folder}/root", "--force-not-root", "--log=/dev/null"]
        lines = [f'{name} "{value}";\n' for name, value in settings.items()]
        lines += [f'DPkg::Options {{ "{word}"; }};\n' for word in dpkg]
        (folder / "apt.conf").write_text("".join(lines))
        self.env = {"APT_CONFIG": str(folder / "apt.conf")}

    def installed(self) -> bool:
        return "nothing-at-all" in (self.folder / "state/status").read_text()

    @contextlib.contextmanager
    def held(self, name: str) -> Iterator[None]:
        """A lock that another package manager, which is us, holds."""
        with (self.folder / name).open("w") as file:
            fcntl.lockf(file, fcntl.LOCK_EX)
            yield


@pytest.fixture
def apt(tmp_path: pathlib.Path) -> Apt:
    require("apt-get", "dpkg-deb")
    return Apt(tmp_path / "apt")


@pytest.mark.parametrize("lock", ["state/lock-frontend", "state/lock", "archives/lock"])
def test_an_installation_waits_for_a_package_manager_and_reports_it(script: Script, apt: Apt, lock: str) -> None:
    with apt.held(lock):
        process = script(f"apt_install {apt.package}", **apt.env)
        waits = (line for line in process.stdout if "waiting for another package manager" in line)
        assert f"{apt.folder / lock}. It is held by process {os.getpid()} " in next(waits)
        assert not apt.installed()
    said = process.stdout.read()
    assert process.wait() == 0, said
    assert apt.installed()


def test_refreshing_the_lists_waits_for_a_package_manager(script: Script, apt: Apt) -> None:
    with apt.held("lists/lock"):
        process = script("apt_refresh", **apt.env)
        waits = (line for line in process.stdout if "waiting for another package manager" in line)
        assert f"It is held by process {os.getpid()} " in next(waits)
    said = process.stdout.read()
    assert process.wait() == 0
    assert "warning" not in said


def test_a_package_manager_that_stays_busy_is_named_when_patience_ends(script: Script, apt: Apt) -> None:
    with apt.held("state/lock-frontend"):
        process = script("apt_need nothing-at-all", APT_WAIT_SECONDS="0", PROGRESS_SECONDS="3600", **apt.env)
        said = process.stdout.read()
        assert process.wait() == 75
    assert said.endswith("the package manager was busy for too long to install: nothing-at-all \n")
    assert said.count("installing") == 1


def test_another_failure_is_not_waited_for(script: Script, apt: Apt) -> None:
    process = script("apt_need no-such-package", **apt.env)
    said = process.stdout.read()
    assert process.wait() not in (0, 75)
    assert "refreshing the package lists" in said
    assert "Unable to locate package no-such-package" in said
