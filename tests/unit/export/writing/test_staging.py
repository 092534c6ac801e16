"""A bundle is written as a whole, or not at all."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest
from tests.unit.test_bundle import CONTENT, write_bundle

from distilqa.bundle import MANIFEST
from distilqa.errors import BundleError
from distilqa_export.writing.staging import staged


def contents(folder: Path) -> dict[str, bytes | None]:
    """Every path below a folder, with the bytes of the files."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize("there_before", [False, True], ids=["new", "empty directory"])
def test_staged(tmp_path: Path, there_before: bool) -> None:
    target = tmp_path / "very" / "deep" / "bundle"
    if there_before:
        target.mkdir(parents=True)
    with staged(target) as folder:
        assert folder.is_dir()
        assert folder.parent == target.parent
        assert list(folder.iterdir()) == []
        (folder / "file").write_bytes(CONTENT)
        assert not (target / "file").exists()
    assert contents(target.parent) == {"bundle": None, "bundle/file": CONTENT}
    assert contents(tmp_path).keys() == {"very", "very/deep", "very/deep/bundle", "very/deep/bundle/file"}
    assert target.stat().st_mode & 0o777 == 0o755


def test_staged_relative_to_where_it_began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "elsewhere").mkdir()
    with staged(Path("bundle")) as folder:
        (folder / "file").write_bytes(CONTENT)
        monkeypatch.chdir(tmp_path / "elsewhere")
    assert contents(tmp_path) == {"bundle": None, "bundle/file": CONTENT, "elsewhere": None}


@pytest.mark.parametrize("shared", [False, True])
def test_staged_takes_away_the_folders_that_it_made(tmp_path: Path, shared: bool) -> None:
    """But none that has something of others by then."""

    def interrupted() -> None:
        with staged(tmp_path / "very" / "deep" / "bundle"):
            if shared:
                (tmp_path / "very" / "other").write_text("mine")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert contents(tmp_path) == ({"very": None, "very/other": b"mine"} if shared else {})


def test_staged_refuses_a_mount_point_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one, as containers have for volumes."""
    target = tmp_path / "volume"
    target.mkdir()
    monkeypatch.setattr(os.path, "ismount", lambda path: path == target)
    with pytest.raises(BundleError, match="volume is a mount point"), staged(target):
        raise AssertionError("nothing may be done before")
    assert contents(tmp_path) == {"volume": None}


def test_staged_overwrites_a_bundle_as_a_whole(tmp_path: Path) -> None:
    target = write_bundle(tmp_path / "bundle")
    before = contents(target)
    with staged(target, overwrite=True) as folder:
        (folder / "file").write_bytes(CONTENT)
        assert contents(target) == before
    assert contents(tmp_path) == {"bundle": None, "bundle/file": CONTENT}


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, BundleError])
@pytest.mark.parametrize("old", [False, True], ids=["new", "over a bundle"])
def test_staged_vanishes_if_the_block_raises(tmp_path: Path, error: type[BaseException], old: bool) -> None:
    target = tmp_path / "bundle"
    if old:
        write_bundle(target)
    before = contents(tmp_path)
    with pytest.raises(error), staged(target, overwrite=True) as folder:  # noqa: PT012
        (folder / "file").write_bytes(CONTENT)
        raise error
    assert contents(tmp_path) == before


def test_staged_is_on_disk_before_it_gets_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A full or failing disk shows itself in fsync: then the old bundle stays."""
    target = write_bundle(tmp_path / "bundle")
    before = contents(tmp_path)
    synced: list[str] = []

    def fail_on_the_folder(descriptor: int) -> None:
        name = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append(Path(name).name)
        if Path(name).is_dir():
            raise OSError("disk full")

    monkeypatch.setattr(os, "fsync", fail_on_the_folder)
    with pytest.raises(OSError, match="disk full"), staged(target, overwrite=True) as folder:  # noqa: PT012
        (folder / "one").write_bytes(CONTENT)
        (folder / "two").write_bytes(CONTENT)
    assert sorted(synced[:2]) == ["one", "two"]
    assert contents(tmp_path) == before


def test_staged_name_is_on_disk_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The last thing to reach the disk is the folder that the bundle's name is in."""
    synced: list[tuple[str, bool]] = []

    def record(descriptor: int) -> None:
        path = os.readlink(f"/proc/self/fd/{descriptor}")
        synced.append((path, (tmp_path / "bundle").exists()))

    monkeypatch.setattr(os, "fsync", record)
    with staged(tmp_path / "bundle") as folder:
        (folder / "file").write_bytes(CONTENT)
    assert synced == [(str(folder / "file"), False), (str(folder), False), (str(tmp_path), True)]


def other_folder(target: Path) -> None:
    target.mkdir()
    (target / "precious.txt").write_text("mine")


def file(target: Path) -> None:
    target.write_text("mine")


def folder_whose_manifest_is_a_folder(target: Path) -> None:
    (target / MANIFEST).mkdir(parents=True)


@pytest.mark.parametrize("make", [other_folder, file, folder_whose_manifest_is_a_folder])
@pytest.mark.parametrize("overwrite", [False, True])
def test_staged_refuses_what_is_no_bundle(tmp_path: Path, make: Callable[[Path], None], overwrite: bool) -> None:
    target = tmp_path / "target"
    make(target)
    before = contents(tmp_path)
    with pytest.raises(BundleError, match="is not a bundle") as caught, staged(target, overwrite=overwrite):
        pytest.fail("the block must not run")
    assert str(target) in str(caught.value)
    assert contents(tmp_path) == before


def test_staged_writes_through_a_link(tmp_path: Path) -> None:
    write_bundle(tmp_path / "v1")
    (tmp_path / "current").symlink_to("v1")
    with staged(tmp_path / "current", overwrite=True) as folder:
        (folder / "new").write_bytes(b"new")
    assert os.readlink(tmp_path / "current") == "v1"
    assert contents(tmp_path / "v1") == {"new": b"new"}


def test_staged_puts_the_old_one_back_where_the_new_one_cannot_follow(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = write_bundle(tmp_path / "bundle")
    before, rename = contents(target), Path.rename

    def interrupted(self: Path, to: Path) -> Path:
        if to == target and "-old-" not in str(self):
            raise SystemExit(143)
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(SystemExit), staged(target, overwrite=True):
        pass
    assert contents(target) == before
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]


@pytest.mark.parametrize("content", [b'{"manifest_version": 3}', b"[]", b"{", b"\xff"])
def test_staged_refuses_what_only_has_a_manifest(tmp_path: Path, content: bytes) -> None:
    target = tmp_path / "extension"
    target.mkdir()
    (target / MANIFEST).write_bytes(content)
    (target / "notes").write_bytes(b"precious")
    before = contents(target)
    with pytest.raises(BundleError, match="is not a bundle; nothing was written"), staged(target, overwrite=True):
        pass
    assert contents(target) == before


def test_staged_refuses_a_bundle_unless_told(tmp_path: Path) -> None:
    target = write_bundle(tmp_path / "bundle")
    before = contents(tmp_path)
    with pytest.raises(BundleError, match="--overwrite"), staged(target):
        pytest.fail("the block must not run")
    assert contents(tmp_path) == before
