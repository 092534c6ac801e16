"""A folder that becomes a bundle in one step, or not at all."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from distilqa.bundle import MANIFEST
from distilqa.errors import BundleError


@contextmanager
def staged(target: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """Yield an empty directory that becomes ``target`` when the block ends, and vanishes if the block raises.

    Everything is on disk before the directory is renamed, so a crash at any moment leaves no half bundle under the
    final name. Raises BundleError if ``target`` exists and ``overwrite`` is not set, or is something other than a
    bundle or an empty directory.
    """
    refuse_unless_replaceable(target, overwrite)
    target = Path(os.path.realpath(target))  # a link stays a link, to the new bundle
    made = [parent for parent in target.parents if not parent.exists()]
    target.parent.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield staging
        staging.chmod(0o755)
        for path in (*staging.iterdir(), staging):
            _sync(path)
        refuse_unless_replaceable(target, overwrite)  # another export may have been there meanwhile
        if target.exists():
            _replace(target, staging)
        else:
            staging.rename(target)
        _sync(target.parent)
    finally:
        shutil.rmtree(staging, ignore_errors=True)
        if not target.exists():
            with suppress(OSError):  # another has put something there
                for parent in made:
                    parent.rmdir()


def _replace(target: Path, staging: Path) -> None:
    """Put ``staging`` in the place of ``target``; where that fails or is interrupted, the old one is there again."""
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}-old-", dir=target.parent))
    try:
        target.rename(old / target.name)
        staging.rename(target)
    finally:
        if not target.exists():
            (old / target.name).rename(target)
        shutil.rmtree(old)


def refuse_unless_replaceable(target: Path, overwrite: bool) -> None:
    if not target.exists():
        if target.is_symlink():
            raise BundleError(f"{target} is a link that leads nowhere")
        return
    if os.path.ismount(target):
        raise BundleError(f"{target} is a mount point, which no directory can be renamed to; name one below it")
    if target.is_dir() and not any(target.iterdir()):
        return
    if not _is_bundle(target):
        raise BundleError(f"{target} exists and is not a bundle; nothing was written")
    if not overwrite:
        raise BundleError(f"{target} exists; pass --overwrite to replace it")


def _is_bundle(target: Path) -> bool:
    """Whether it is a bundle, be it damaged or of another schema: others have files called manifest.json too."""
    try:
        fields = json.loads((target / MANIFEST).read_bytes())
    except (OSError, ValueError, RecursionError):
        return False
    return isinstance(fields, dict) and {"schema_version", "variants", "window_tokens"} <= fields.keys()


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
