"""Every CPython that the package names, as far as this machine has it: all imports, the reader and the client.

Found are those on PATH and those of pyenv. The Python that runs the tests is always among them.
"""

from __future__ import annotations

import dataclasses
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.conftest import ROOT
from tests.integration.environments import install, output

from distilqa.reader import Reader

CLASSIFIERS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["classifiers"]
NAMED = re.findall(r"Python :: (3\.\d+)", "\n".join(CLASSIFIERS))
RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"

QUESTION = "What does the fox jump over?"
PASSAGES = ["The quick brown fox jumps over the lazy dog.", "Über allen Gipfeln jumped the fox over a 🦊 moon."]


def candidates(version: str) -> Iterator[Path]:
    """Where a Python of that version may be."""
    if version == RUNNING:
        yield Path(sys.executable)
    for folder in os.environ["PATH"].split(os.pathsep):
        yield Path(folder) / f"python{version}"
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    yield from sorted(pyenv.glob(f"versions/{version}.*/bin/python{version}"))


def works(python: Path, version: str) -> bool:
    """Whether it is a CPython of that version that can make environments; what is on PATH may only stand for one."""
    code = "import sys, venv; print(sys.implementation.name, '%d.%d' % sys.version_info[:2])"
    try:
        done = subprocess.run([python, "-I", "-c", code], capture_output=True, text=True, timeout=60, check=False)
    except OSError:
        return False
    return done.stdout.split() == ["cpython", version]


def test_the_running_python_is_named() -> None:
    assert RUNNING in NAMED


@pytest.mark.parametrize("version", NAMED)
def test_imports_reader_and_client(
    version: str, wheel: Path, bundle: Path, target: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    python = next((path for path in candidates(version) if works(path, version)), None)
    if python is None:
        pytest.skip(f"no CPython {version} on PATH or among pyenv's versions")
    folder = tmp_path_factory.mktemp("environment")
    code = f"""if True:
        import dataclasses, importlib, json, pkgutil, sys
        import distilqa
        for module in pkgutil.walk_packages(distilqa.__path__, "distilqa."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
        asked = ({QUESTION!r}, {PASSAGES!r})
        read = distilqa.Reader({str(bundle)!r}).answer(*asked, top_k=3)
        with distilqa.Client({target!r}) as client:
            served = client.answer(*asked, top_k=3)
        found = [[dataclasses.asdict(answer) for answer in answers] for answers in (read, served)]
        print(json.dumps(["%d.%d" % sys.version_info[:2], *found]))"""
    running, *found = json.loads(output(install(wheel, "cpu,server", folder, python), code, folder))
    assert running == version
    expected = [dataclasses.asdict(answer) for answer in Reader(bundle).answer(QUESTION, PASSAGES, top_k=3)]
    assert len(expected) == 3
    for answers in found:
        assert [answer | {"score": None} for answer in answers] == [answer | {"score": None} for answer in expected]
        scores = [answer["score"] for answer in expected]
        assert [answer["score"] for answer in answers] == pytest.approx(scores, abs=1e-6)
