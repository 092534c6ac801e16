"""Pack a bundle for copying: an archive, and beside it the archive's digest as ``sha256sum -c`` reads it.

The same bundle gives the same archive: files are in order, and have neither owner nor time.
"""

from __future__ import annotations

import argparse
import gzip
import re
import tarfile
import tempfile
from collections.abc import Mapping
from pathlib import Path

from distilqa.bundle import MANIFEST, Bundle, describe
from distilqa.errors import DistilqaError


def archive(path: Path, folder: Path) -> Path:
    """Pack the bundle at ``path`` as ``distilqa-NAME-VARIANTS.tar.gz`` in ``folder``, and return the archive's path.

    Beside it is its ``.sha256``; it unpacks to one folder of the same name. Raises BundleError for what is no bundle,
    and for one that is damaged.
    """
    bundle = Bundle.open(path)
    files = {name: bundle.verified(name) for name in bundle.manifest.files} | {MANIFEST: bundle.path / MANIFEST}
    name = re.sub(r"[^\w.-]", "-", "-".join(("distilqa", bundle.manifest.name, *bundle.manifest.variants)))
    folder.mkdir(parents=True, exist_ok=True)
    packed, digest = folder / f"{name}.tar.gz", folder / f"{name}.tar.gz.sha256"
    with tempfile.TemporaryDirectory(prefix=".packing-", dir=folder) as staging:
        made = Path(staging, "archive")
        _pack(files, name, made)
        made.with_suffix(".sha256").write_text(f"{describe(made).sha256}  {packed.name}\n", encoding="utf-8")
        # Both are whole before either has its name. Without its digest an archive is no finished one.
        digest.unlink(missing_ok=True)
        made.replace(packed)
        made.with_suffix(".sha256").replace(digest)
    return packed


def _pack(files: Mapping[str, Path], folder: str, packed: Path) -> None:
    with (
        packed.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as compressed,
        tarfile.open(mode="w", fileobj=compressed) as tar,
    ):
        for inside, source in sorted(files.items()):
            entry = tarfile.TarInfo(f"{folder}/{inside}")
            entry.size = source.stat().st_size
            with source.open("rb") as content:
                tar.addfile(entry, content)


def main() -> None:
    """``python -m distilqa_export.writing.archive BUNDLE FOLDER``: write the archive and its digest, print its path."""
    parser = argparse.ArgumentParser(
        prog="python -m distilqa_export.writing.archive", description="Pack a bundle for copying, with its digest."
    )
    parser.add_argument("bundle", type=Path, metavar="BUNDLE")
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="where the archive and its .sha256 go")
    arguments = parser.parse_args()
    try:
        packed = archive(arguments.bundle, arguments.folder)
    except (DistilqaError, OSError) as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
    print(f"{packed} ({packed.stat().st_size / 1e6:.1f} MB)")


if __name__ == "__main__":
    main()
