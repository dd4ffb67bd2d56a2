"""The images of a cluster as containerd keeps them: which store is meant, and which ones go."""

from __future__ import annotations

import pathlib

from tests.cluster import store


def test_other_archives_have_another_store(tmp_path: pathlib.Path):
    (tmp_path / "a-1.tar").touch()
    before = store.path(tmp_path)
    (tmp_path / "a-2.tar").touch()
    assert store.path(tmp_path) != before


def test_stores_that_no_cluster_uses_go(tmp_path: pathlib.Path):
    wanted, used, unused = store.path(tmp_path), tmp_path / "store-used", tmp_path / "store-unused"
    for each in (wanted, used, unused):
        each.mkdir()
    assert store.make(tmp_path, f'{{"store": "{used}"}}') == wanted
    assert wanted.exists()
    assert used.exists()
    assert not unused.exists()
