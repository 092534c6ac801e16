"""Brings the stored results of benchmarks into the site: pages link to them where they are in the repository."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

_RESULTS = Path(__file__).parent.parent / "benchmarks" / "results"
_LINK = re.compile(r"\(\.\./benchmarks/results/([^/]+)/")


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    linked = {name for file in files.documentation_pages() for name in _LINK.findall(file.content_string)}
    for path in (path for name in sorted(linked) for path in (_RESULTS / name).iterdir()):
        if path.suffix in (".svg", ".md"):
            place = f"results/{path.relative_to(_RESULTS)}"
            files.append(File.generated(config, place, content=path.read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    return markdown.replace("(../benchmarks/results/", "(results/")
