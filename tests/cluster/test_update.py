"""From another version to this one and back, in a cluster: only the image changes, and no request fails."""

from __future__ import annotations

import pathlib
import re

import pytest

from tests.cluster import images, proxies
from tests.cluster.application import RunningApplication
from tests.cluster.daemonset import DAEMONSET, SYSTEM, judge, pods, ready
from tests.cluster.place import REPO
from tests.cluster.traffic import flowing

NOW = images.OURS[1]
OWN_TAG = re.compile(r"\bnewTag: .+")


@pytest.fixture(scope="module")
def older() -> pathlib.Path:
    source = images.older()
    if source is None:
        pytest.skip(
            "IPVSPROXY_OLDER names no source of another version in which `make image-root` was (docs/cluster.md)"
        )
    return source


def install(running: RunningApplication, source: pathlib.Path, image: str) -> None:
    """A version's own manifests, with its image."""
    example = proxies.kustomization(running.cluster.folder, source)
    file = example / "kustomization.yaml"
    file.write_text(OWN_TAG.sub(f"newTag: {image.rpartition(':')[2]}", file.read_text()))
    running.kubectl("apply", running.kubectl.validation, "--kustomize", example)
    ready(running)


def change(running: RunningApplication, image: str) -> None:
    """As docs say: the image, and nothing else."""
    running.kubectl("set", "image", DAEMONSET, f"*={image}", SYSTEM)
    ready(running)


def images_of(running: RunningApplication) -> set[str]:
    return {pod["spec"]["containers"][0]["image"] for pod in pods(running).values()}


def test_no_request_fails_from_an_older_version_to_this_one_and_back(
    running: RunningApplication, older: pathlib.Path
):
    try:
        install(running, older, images.OLDER_TAG)
        assert images_of(running) == {images.OLDER_TAG}
        for image in (NOW, images.OLDER_TAG):
            with flowing(running.cluster, running.application.targets()) as traffic:
                change(running, image)
            print(f"to {image}")
            judge(traffic)
            assert images_of(running) == {image}
    finally:
        install(running, REPO, NOW)
