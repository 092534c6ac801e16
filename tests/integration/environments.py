"""Environments of their own, with the wheel of this checkout and nothing that is not asked for."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import distribution
from pathlib import Path

from packaging.requirements import Requirement


def run(*command: str | Path, cwd: Path, check: bool = False) -> subprocess.CompletedProcess[str]:
    """Run a command where no setting of this environment reaches it. One that hangs fails the test."""
    ours = ("PYTHON", "VIRTUAL_ENV", "DISTILQA_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    done = subprocess.run(command, env=environment, cwd=cwd, capture_output=True, text=True, timeout=300, check=False)
    assert not check or done.returncode == 0, done.stderr
    return done


def install(wheel: Path, extras: str, folder: Path, python: Path = Path(sys.executable)) -> Path:
    """Make an environment of that Python in a folder, with the wheel and the named extras; returns its programs."""
    run(python, "-m", "venv", "--without-pip", folder, cwd=folder, check=True)
    programs = folder / "bin"
    pip = (sys.executable, "-m", "pip", "--python", programs / "python")
    run(*pip, "install", f"{wheel}[{extras}]", cwd=folder, check=True)
    return programs


def link(name: str, folder: Path) -> None:
    """Let the environment in a folder have a distribution of this one, and what it requires, by links: it is large."""
    (there,) = folder.glob("lib/python*/site-packages")
    left, seen = [name], set[str]()
    while left:
        own = distribution(left.pop())
        for top in {file.parts[0] for file in own.files or () if file.parts[0] not in ("..", "__pycache__")}:
            with suppress(FileExistsError):
                (there / top).symlink_to(Path(str(own.locate_file(top))))
        required = [Requirement(text) for text in own.requires or ()]
        needed = {one.name for one in required if one.marker is None or one.marker.evaluate({"extra": ""})}
        left += needed - seen
        seen |= needed


def output(programs: Path, code: str, cwd: Path) -> str:
    """What the code prints, run by that environment's Python."""
    return run(programs / "python", "-I", "-c", code, cwd=cwd, check=True).stdout
