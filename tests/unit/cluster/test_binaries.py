"""The folder KUBE: what is said of one that will not do."""

from __future__ import annotations

import io
import json
import pathlib
import tarfile

import pytest

from tests.cluster import __main__ as program
from tests.cluster import binaries, e2e, images
from tests.cluster.binaries import BinaryMissing


def fill(folder: pathlib.Path, *names: str) -> pathlib.Path:
    for name in names:
        (folder / name).write_text("#!/bin/sh\necho Kubernetes v1.36.2\n")
        (folder / name).chmod(0o755)
    return folder


def test_without_the_folder_one_sentence_reports_that_the_cluster_is_left_out(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("KUBE", raising=False)
    assert program.main(["up"]) == 0
    assert capsys.readouterr().out == f"{binaries.NO_KUBE}\n"


def test_upstreams_tests_are_left_out_with_the_same_sentence(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.delenv("KUBE", raising=False)
    assert e2e.main(["--name", "never-made"]) == 0
    assert capsys.readouterr().out == f"{binaries.NO_KUBE}\n"


def test_a_folder_that_is_not_there_is_an_error(capsys: pytest.CaptureFixture[str]):
    assert program.main(["up", "--kube", "/no/such/folder"]) == 1
    assert capsys.readouterr().err == "KUBE=/no/such/folder: no such folder (docs/cluster.md)\n"


def test_all_programs_that_are_missing_are_named_at_once(tmp_path: pathlib.Path):
    fill(tmp_path, "kubectl", "kubelet", "kube-scheduler")
    (tmp_path / "kube-apiserver").write_text("not executable")
    with pytest.raises(BinaryMissing, match=r"lacks kube-apiserver, kube-controller-manager \(docs/cluster.md\)"):
        binaries.open_folder(str(tmp_path))


def test_a_complete_folder_has_paths_and_a_version(tmp_path: pathlib.Path):
    kube = binaries.open_folder(str(fill(tmp_path, *binaries.NEEDED)))
    assert kube["kubelet"] == tmp_path / "kubelet"
    assert kube.version() == "v1.36.2"
    assert not kube.has("coredns")
    with pytest.raises(BinaryMissing, match=r"has no program e2e\.test"):
        kube["e2e.test"]


def test_an_archive_of_images_names_its_images(tmp_path: pathlib.Path):
    data = json.dumps([{"RepoTags": ["registry.k8s.io/pause:3.10.2"]}, {"RepoTags": None}]).encode()
    with tarfile.open(tmp_path / "pause.tar", "w") as archive:
        info = tarfile.TarInfo("manifest.json")
        info.size = len(data)
        archive.addfile(info, io.BytesIO(data))
    assert images.tags(tmp_path / "pause.tar") == ["registry.k8s.io/pause:3.10.2"]


def test_a_file_that_is_no_archive_of_images_is_named(tmp_path: pathlib.Path):
    (tmp_path / "pause.tar").write_text("nonsense")
    with pytest.raises(BinaryMissing, match=r"pause.tar is no image archive as docker writes it"):
        images.tags(tmp_path / "pause.tar")
