"""Which files of a folder are read."""

import os

import pytest

from ipvsproxy.kube.tree import look

SERVICE = b"apiVersion: v1\nkind: Service\nmetadata: {name: web}\n"


def names(folder):
    return sorted(look(folder).files)


def test_endings_in_folders_within_folders(tmp_path):
    (tmp_path / "namespaces" / "prod" / "core").mkdir(parents=True)
    for name in ("a.yaml", "B.YML", "c.json", "namespaces/d.Json", "namespaces/prod/core/services.yaml"):
        (tmp_path / name).write_bytes(b"anything")
    assert names(tmp_path) == [
        "B.YML",
        "a.yaml",
        "c.json",
        "namespaces/d.Json",
        "namespaces/prod/core/services.yaml",
    ]
    assert len(look(tmp_path).folders) == 4


@pytest.mark.parametrize("name", ["dump", "dump.txt", "dump.yaml.txt", "DUMP.TXT"])
@pytest.mark.parametrize(
    ("begin", "read"),
    [
        (SERVICE, True),
        (b"# a comment\n\n---\n" + SERVICE, True),
        (b"--- # two\r\nkind: List\r\n", True),
        (b"%YAML 1.2\n---\nkind: List\n", True),
        (b'{\n    "apiVersion": "v1",', True),
        (b'[{"kind":"Service"', True),
        (b"- apiVersion: v1\n", True),
        (b"items:\n- kind: Service\n", True),
        (b"\xef\xbb\xbf" + SERVICE, True),
        ("\ufeff{\r\n".encode("utf-16-le") + '"kind": "List"'.encode("utf-16-le"), True),
        (b"How kind: very\n", False),
        (b"# README\n\nkind words\n", False),
        (b"Services\n\n    apiVersion: v1\n", False),
        (b"", False),
        (b" " * 100_000 + SERVICE, False),
        (bytes(range(256)) * 20, False),
    ],
)
def test_other_names_are_read_if_they_begin_like_an_object(tmp_path, name, begin, read):
    (tmp_path / name).write_bytes(begin)
    found = look(tmp_path)
    assert (list(found.files), found.others) == (([name], []) if read else ([], [name]))


def test_what_editors_git_and_mounts_keep_to_themselves(tmp_path):
    for name in (".git", "..2026_11_29"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "web.yaml").write_bytes(SERVICE)
    for name in (
        ".web.yaml.swp",
        "#web.yaml#",
        "web.yaml~",
        "web~",
        "web.yaml.bak",
        "web.yaml.orig",
        "web.log",
        "a.go",
    ):
        (tmp_path / name).write_bytes(SERVICE)
    (tmp_path / "..data").symlink_to("..2026_11_29")
    (tmp_path / "web.yaml").symlink_to("..data/web.yaml")
    assert names(tmp_path) == ["web.yaml"]


def test_links_that_form_a_circle_are_read_once(tmp_path):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "web.yaml").write_bytes(SERVICE)
    (tmp_path / "a" / "b" / "up").symlink_to(tmp_path)
    (tmp_path / "a" / "again").symlink_to("b")
    (tmp_path / "self").symlink_to("self")
    (tmp_path / "self.yaml").symlink_to("self.yaml")
    found = look(tmp_path)
    assert sorted(name.rpartition("/")[2] for name in found.files) == ["self.yaml", "web.yaml"]
    assert found.others == ["self"]


def test_pipes_are_not_opened(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert look(tmp_path).others == ["pipe"]


def test_a_folder_that_cannot_be_read_affects_nothing_else(tmp_path, monkeypatch):
    (tmp_path / "shut").mkdir()
    (tmp_path / "web.yaml").write_bytes(SERVICE)
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith("shut"):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    found = look(tmp_path)
    assert (list(found.files), found.problems) == (["web.yaml"], {"shut/": "Permission denied"})
    with pytest.raises(PermissionError):
        look(tmp_path / "shut")
