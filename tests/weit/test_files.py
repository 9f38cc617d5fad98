import errno
import os
import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from tests.weit.disk import full_disk, tree, unprivileged
from weit.files import atomic_dir, atomic_write, refuse_foreign


def test_write_makes_folders_and_replaces(tmp_path):
    path = tmp_path / "a" / "b.json"
    atomic_write(path, "größer")
    assert path.read_bytes() == "größer".encode()
    atomic_write(str(path), b"\x00\xff")
    assert tree(tmp_path) == {"a": None, "a/b.json": b"\x00\xff"}


def test_write_on_a_full_disk_keeps_the_old_file(tmp_path):
    path = tmp_path / "log"
    atomic_write(path, "old")
    with full_disk(), pytest.raises(OSError, match=f"could not write {path}: "):
        atomic_write(path, "new" * 1000)
    assert tree(tmp_path) == {"log": b"old"}


def test_write_below_a_file_names_the_path(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OSError, match=f"could not write {tmp_path}/file/x"):
        atomic_write(tmp_path / "file" / "x", "")
    with pytest.raises(OSError, match=f"could not write {tmp_path}/file/x"), atomic_dir(tmp_path / "file" / "x"):
        pass


def test_unwritable_folder_names_the_path(tmp_path):
    tmp_path.chmod(0o500)
    with unprivileged(), pytest.raises(PermissionError, match=f"could not write {tmp_path}/x"):
        atomic_write(tmp_path / "x", "")
    with unprivileged(), pytest.raises(PermissionError, match=f"could not write {tmp_path}/y"):
        write(tmp_path / "y", a="1")
    assert tree(tmp_path) == {}


def write(path, *, known=(), **files):
    with atomic_dir(path, known=known) as folder:
        for name, text in files.items():
            (folder / name).write_text(text)


def test_dir_appears_when_the_block_ends(tmp_path):
    path = tmp_path / "deep" / "run"
    with atomic_dir(path) as folder:
        (folder / "sub").mkdir()
        (folder / "sub" / "x").write_text("1")
        assert not path.exists()
    assert tree(tmp_path) == {"deep": None, "deep/run": None, "deep/run/sub": None, "deep/run/sub/x": b"1"}
    assert path.stat().st_mode & 0o777 == (tmp_path / "deep").stat().st_mode & 0o777


def test_dir_replaces_an_older_version_as_a_whole(tmp_path):
    write(tmp_path / "run", a="1", b="2")
    write(tmp_path / "run", known=["b"], a="3")
    assert tree(tmp_path) == {"run": None, "run/a": b"3"}
    (tmp_path / "empty").mkdir()
    write(tmp_path / "empty", a="4")
    assert (tmp_path / "empty" / "a").read_text() == "4"


def test_dir_keeps_a_folder_that_holds_other_things(tmp_path):
    write(tmp_path / "home", thesis="!")
    before = tree(tmp_path)
    with pytest.raises(FileExistsError, match=r"holds other files \(thesis\) and is not replaced"):
        write(tmp_path / "home", a="1")
    (tmp_path / "home" / "thesis").rename(tmp_path / "file")
    with pytest.raises(FileExistsError, match="it is a file"):
        write(tmp_path / "file", a="1")
    assert tree(tmp_path) == {"home": None, "file": before["home/thesis"]}


@pytest.mark.parametrize("failure", [KeyboardInterrupt(), ValueError("mine")])
def test_an_exception_in_the_block_changes_nothing_and_passes(tmp_path, failure):
    write(tmp_path / "run", a="old")

    def fail():
        with atomic_dir(tmp_path / "run") as folder:
            (folder / "a").write_text("new")
            raise failure

    with pytest.raises(type(failure)):
        fail()
    assert tree(tmp_path) == {"run": None, "run/a": b"old"}


def test_dir_on_a_full_disk_keeps_the_old_one(tmp_path):
    path = tmp_path / "run"
    write(path, a="old")
    with full_disk(), pytest.raises(OSError, match=f"could not write {path}: "), atomic_dir(path) as folder:
        (folder / "a").write_bytes(b"0" * 5000)
    with full_disk(), pytest.raises(OSError, match=f"could not write {path}: "), atomic_dir(path) as folder:
        save_file({"a": torch.zeros(5000)}, folder / "a")
    assert tree(tmp_path) == {"run": None, "run/a": b"old"}


def test_dir_comes_back_when_the_last_rename_fails(tmp_path, monkeypatch):
    path = tmp_path / "run"
    write(path, a="old")
    rename = Path.replace

    def fail_into_place(self, target):
        if Path(target) == path and self.suffix == ".tmp":
            raise OSError(errno.EIO, "the disk is gone")
        return rename(self, target)

    monkeypatch.setattr(Path, "replace", fail_into_place)
    with pytest.raises(OSError, match="the disk is gone"):
        write(path, a="new")
    assert tree(tmp_path) == {"run": None, "run/a": b"old"}


def test_files_may_be_read_by_who_may_read_the_folder(tmp_path):
    for umask, mode in ((0o022, 0o644), (0o077, 0o600)):
        before = os.umask(umask)
        try:
            with atomic_dir(tmp_path / "run") as folder:
                save_file({"a": torch.zeros(1)}, folder / "a")
        finally:
            os.umask(before)
        assert (tmp_path / "run" / "a").stat().st_mode & 0o777 == mode


def test_links_stay_links(tmp_path):
    (tmp_path / "disk").mkdir()
    (tmp_path / "run").symlink_to(tmp_path / "disk" / "run")
    (tmp_path / "log").symlink_to(tmp_path / "disk" / "log")
    for text in ("1", "2"):
        write(tmp_path / "run", a=text)
        atomic_write(tmp_path / "log", text)
    assert (tmp_path / "run").is_symlink()
    assert (tmp_path / "log").is_symlink()
    assert tree(tmp_path / "disk") == {"run": None, "run/a": b"2", "log": b"2"}
    assert sorted(os.listdir(tmp_path)) == ["disk", "log", "run"]


@pytest.mark.parametrize("place", [".", "..", "../run"])
def test_the_current_folder_is_not_replaced(tmp_path, monkeypatch, place):
    (tmp_path / "run").mkdir()
    monkeypatch.chdir(tmp_path / "run")
    with pytest.raises(OSError, match=f"could not write {re.escape(place)}: it is the current folder, or above it"):
        refuse_foreign(place, ["run", "a"])
    with pytest.raises(OSError, match="it is the current folder"):
        write(place, known=["run"], a="1")
    assert tree(tmp_path) == {"run": None}
