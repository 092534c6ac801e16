"""Pack a bundle for copying: an archive, and beside it the archive's digest as ``sha256sum -c`` reads it.

The same bundle gives the same archive: files are in order, and have neither owner nor time.
"""

from __future__ import annotations

import argparse
import gzip
import re
import tarfile
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
    packed = folder / f"{name}.tar.gz"
    with (
        packed.open("wb") as file,
        gzip.GzipFile(filename="", mode="wb", compresslevel=6, fileobj=file, mtime=0) as compressed,
        tarfile.open(mode="w", fileobj=compressed) as tar,
    ):
        for inside, source in sorted(files.items()):
            entry = tarfile.TarInfo(f"{name}/{inside}")
            entry.size = source.stat().st_size
            with source.open("rb") as content:
                tar.addfile(entry, content)
    Path(f"{packed}.sha256").write_text(f"{describe(packed).sha256}  {packed.name}\n", encoding="utf-8")
    return packed


def main() -> None:
    """``python -m distilqa_export.archive BUNDLE FOLDER``: write the archive and its digest, and print its path."""
    parser = argparse.ArgumentParser(
        prog="python -m distilqa_export.archive", description="Pack a bundle for copying, with its digest."
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
