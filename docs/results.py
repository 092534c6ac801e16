"""Brings the stored results of benchmarks into the site: pages link to them where they are in the repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    for path in _RESULTS.glob("*/*"):
        if path.suffix in (".svg", ".md"):
            place = f"results/{path.relative_to(_RESULTS)}"
            files.append(File.generated(config, place, content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace("(../benchmarks/results/", "(results/")
