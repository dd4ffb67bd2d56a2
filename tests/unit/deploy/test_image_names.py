"""Which image of the proxy manifests, chart and documents name: that of this version, wherever there is one."""

import re

import pytest

from tests.support.repository import REPO, VERSION

NAMED = re.compile(r"ipvsproxy:(\d\S*?)(?=[\s\"'`)]|$)|^ *(?:newTag|appVersion): (\S+)$", re.MULTILINE)
PAGES = [path for top in ("deploy", "docs") for path in sorted((REPO / top).rglob("*")) if path.is_file()]


def versions(text):
    """Return the versions of images that a text names."""
    return {tag or value for tag, value in NAMED.findall(text)}


FOUND = {
    str(path.relative_to(REPO)): found for path in PAGES if (found := versions(path.read_text("utf-8", "replace")))
}


@pytest.mark.parametrize("page", FOUND)
def test_the_image_is_that_of_this_version(page):
    assert FOUND[page] == {VERSION}


def test_images_are_found_where_they_are():
    places = ("docs/dsr.md", "deploy/README.md", "deploy/switch.md", "deploy/helm/ipvsproxy/Chart.yaml")
    assert FOUND.keys() >= {
        *places,
        *(
            f"deploy/kustomize/{name}"
            for name in (
                "base/daemonset.yaml",
                "cleanup/daemonset.yaml",
                "cleanup/kustomization.yaml",
                "example/kustomization.yaml",
            )
        ),
    }


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("image: ipvsproxy:0.2.0           # the image", {"0.2.0"}),
        ("`R/ipvsproxy:1.0.0-rc1` and\n  newTag: 3.4.5\nappVersion: 1", {"1.0.0-rc1", "3.4.5", "1"}),
        ("-t ipvsproxy:dev .\n- ipvsproxy: 170 of 171 passed", set()),
    ],
)
def test_which_images_a_text_names(text, found):
    assert versions(text) == found
