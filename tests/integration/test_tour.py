"""The tour of vagrant/tour.sh, in the lab: every line of it is an assertion of the script."""

from __future__ import annotations

import pathlib

import pytest

from tests.lab import tour
from tests.lab.lab import Lab
from tests.lab.manifests import ManifestFolder

pytestmark = pytest.mark.needs("ip_vs", "nf_tables", "tool:nft")


# Most of a minute where nothing else runs; several on a busy machine under emulation.
@pytest.mark.timeout(900)
def test_every_line_of_the_tour_holds(manifests: ManifestFolder, tmp_path: pathlib.Path) -> None:
    with Lab(pods=tour.PODS_OF_A_NODE) as lab, tour.answering(lab, manifests.path) as answers:
        done = tour.run_script(answers, tmp_path)
    assert done.returncode == 0, done.stdout
    assert "UNEXPECTED" not in done.stdout
    # The script has not ended somewhere on its way.
    assert done.stdout.splitlines()[-1].endswith("as expected")
