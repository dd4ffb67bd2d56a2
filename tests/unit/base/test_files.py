"""Files that we make are new, and for their owner's eyes only."""

import os
import stat

import pytest

from ipvsproxy.base.files import create, replace


@pytest.mark.parametrize("there", ["file", "link", "dangling link", "folder"])
def test_nothing_that_is_there_is_written_to(tmp_path, there):
    path, victim = tmp_path / "made", tmp_path / "victim"
    if there == "file":
        path.write_text("theirs")
    elif there == "folder":
        path.mkdir()
    else:
        path.symlink_to(victim)
        if there == "link":
            victim.write_text("theirs")
    with pytest.raises(FileExistsError):
        create(path)
    assert not victim.exists() or victim.read_text() == "theirs"


def test_what_is_made_is_for_its_owner_alone(tmp_path):
    umask = os.umask(0)
    try:
        os.close(create(tmp_path / "new"))
        (tmp_path / "old").write_text("x" * 1000)
        (tmp_path / "old").chmod(0o666)
        replace(tmp_path / "old", "text")
    finally:
        os.umask(umask)
    assert [stat.S_IMODE((tmp_path / name).stat().st_mode) for name in ("new", "old")] == [0o600, 0o600]
    assert (tmp_path / "old").read_text() == "text"


def test_a_link_is_replaced_and_not_followed(tmp_path):
    (tmp_path / "victim").write_text("theirs")
    (tmp_path / "made").symlink_to(tmp_path / "victim")
    replace(tmp_path / "made", "ours")
    assert (tmp_path / "victim").read_text() == "theirs"
    assert (tmp_path / "made").read_text() == "ours"
    assert not (tmp_path / "made").is_symlink()


def test_what_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(OSError, match="directory"):
        replace(tmp_path / "folder", "text")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]


def test_a_pipe_is_written_to(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    reader = os.open(tmp_path / "pipe", os.O_RDONLY | os.O_NONBLOCK)
    replace(tmp_path / "pipe", "text")
    assert os.read(reader, 10) == b"text"
    os.close(reader)
