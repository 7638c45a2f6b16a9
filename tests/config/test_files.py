"""Files that are whole or not there, and private from their first byte."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from config import files


def test_create_never_overwrites(tmp_path: Path) -> None:
    """A private key that is overwritten is a machine that is lost."""
    files.create(tmp_path / "key.pem", b"first", files.PRIVATE)
    with pytest.raises(FileExistsError):
        files.create(tmp_path / "key.pem", b"second", files.PRIVATE)
    assert (tmp_path / "key.pem").read_bytes() == b"first"
    assert [file.name for file in tmp_path.iterdir()] == ["key.pem"]


def test_replace_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    """Neither half a file nor a stray one is left."""
    files.replace(tmp_path / "a", b"old")
    files.replace(tmp_path / "a", b"new")
    assert (tmp_path / "a").read_bytes() == b"new"
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "x").touch()
    with pytest.raises(OSError, match="folder"):
        files.replace(tmp_path / "folder", b"never")
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "folder"]


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such file modes")
@pytest.mark.parametrize("umask", [0, 0o022, 0o077])
def test_modes_do_not_depend_on_the_umask(tmp_path: Path, umask: int) -> None:
    """A CA file that the service account can't read, or a key that all can, are both found out too late."""
    before = os.umask(umask)
    try:
        files.create(tmp_path / "key.pem", b"", files.PRIVATE)
        files.replace(tmp_path / "ca.pem", b"", files.PUBLIC)
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "key.pem").stat().st_mode) == 0o600
    assert stat.S_IMODE((tmp_path / "ca.pem").stat().st_mode) == 0o644
