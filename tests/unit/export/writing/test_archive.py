"""Packing a bundle: what comes out of the archive is the bundle, and the digest is the archive's."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
from tests.bundles import replace_file

from distilqa.bundle import Bundle
from distilqa.errors import BundleError
from distilqa_export.writing.archive import archive

NAME = "distilqa-distilbert-384-squad-cpu-int8-cpu-fp32"


@pytest.fixture(scope="module")
def bundle(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One whose largest file is small: packing it takes no time."""
    copy = Path(shutil.copytree(bundle, tmp_path_factory.mktemp("light") / "bundle", copy_function=os.link))
    replace_file(copy, "cpu-fp32.onnx", b"fp32", listed=True)
    return copy


@pytest.fixture(scope="module")
def packed(bundle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return archive(bundle, tmp_path_factory.mktemp("packed") / "dist")


def test_unpacks_to_the_bundle(packed: Path, bundle: Path, tmp_path: Path) -> None:
    with tarfile.open(packed) as tar:
        tar.extractall(tmp_path, filter="data")
    assert packed.name == f"{NAME}.tar.gz"
    assert [path.name for path in tmp_path.iterdir()] == [NAME]
    unpacked = tmp_path / NAME
    content = {path.name: path.read_bytes() for path in unpacked.iterdir()}
    assert content == {path.name: path.read_bytes() for path in bundle.iterdir()}
    for name in Bundle.open(unpacked).manifest.files:
        Bundle.open(unpacked).verified(name)


def test_digest_is_what_sha256sum_reads(packed: Path) -> None:
    check = ["sha256sum", "-c", f"{packed.name}.sha256"]
    done = subprocess.run(check, cwd=packed.parent, capture_output=True, text=True, check=True)
    assert done.stdout == f"{packed.name}: OK\n"


def test_the_same_bundle_gives_the_same_archive(packed: Path, bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy", copy_function=shutil.copyfile)
    assert archive(copy, tmp_path).read_bytes() == packed.read_bytes()


def test_damage_is_refused(bundle: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(bundle, tmp_path / "copy")
    (copy / "tokenizer.json").write_text("{}", encoding="utf-8")
    with pytest.raises(BundleError, match=r"tokenizer\.json"):
        archive(copy, tmp_path / "dist")
    assert not (tmp_path / "dist").exists()


def test_command(bundle: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "distilqa_export.writing.archive"]
    done = subprocess.run([*command, bundle, tmp_path / "dist"], capture_output=True, text=True, check=True)
    assert f"{NAME}.tar.gz (" in done.stdout
    failed = subprocess.run([*command, tmp_path, tmp_path / "dist"], capture_output=True, text=True, check=False)
    assert (failed.returncode, failed.stdout) == (1, "")
    assert "is not a bundle" in failed.stderr


def test_what_fails_leaves_the_archive_that_was_there(
    packed: Path, bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Or none, and nothing half done beside it."""

    def fail(*_: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(tarfile.TarFile, "addfile", fail)
    there = sorted(path.name for path in packed.parent.iterdir())
    size = packed.stat().st_size
    for folder, expected in ((tmp_path, []), (packed.parent, there)):
        with pytest.raises(OSError, match="no space left"):
            archive(bundle, folder)
        assert sorted(path.name for path in folder.iterdir()) == expected
    assert there == [packed.name, f"{packed.name}.sha256"]
    assert packed.stat().st_size == size
