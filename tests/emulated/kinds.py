"""Kinds of processor that this machine need not have: qemu-user runs Python programs on them."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).parents[2]
PREPARED = ROOT / "build" / "emulated"

# It takes seconds: whatever takes this long hangs.
TIMEOUT_S = 600


@dataclass(frozen=True, slots=True)
class Kind:
    """A processor of qemu's, ``cpu`` being its name there, and the program that is a Python on it."""

    cpu: str
    machine: str
    python: Path

    def run(self, program: Path, *arguments: Path) -> None:
        """Run a Python program on it. Raises AssertionError with the end of what it wrote if it fails."""
        qemu = PREPARED / "qemu" / f"qemu-{self.machine}"
        command: list[str | Path] = [qemu, "-cpu", self.cpu, self.python, program, *arguments]
        environment = dict(os.environ)
        if self.python != HERE:
            environment |= {"QEMU_LD_PREFIX": str(PREPARED / self.cpu), "PYTHONPATH": str(PREPARED / "site")}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TIMEOUT_S)
        assert done.returncode == 0, f"{self.cpu}: {done.stderr[-2000:]}"


HERE = Path(sys.executable)
ARM = PREPARED / "arm64" / "usr" / "bin" / "python3"

KINDS = (
    Kind("Haswell", "x86_64", HERE),  # AVX2 and no VNNI
    Kind("cortex-a72", "aarch64", ARM),  # no dot products
    Kind("neoverse-n1", "aarch64", ARM),  # dot products
)


def missing() -> str | None:
    """Why no other kind can be tried here, and what would help; None if all can."""
    if (os.uname().sysname, os.uname().machine) != ("Linux", "x86_64"):
        return "other kinds of processor are emulated on x86-64 Linux alone"
    try:
        prepared = (PREPARED / "onnxruntime").read_text().strip()
    except FileNotFoundError:
        return "other kinds of processor need Debian's qemu-user and its Python for Arm: `make emulators` brings both"
    if prepared != version("onnxruntime"):
        return f"other kinds of processor are prepared with ONNX Runtime {prepared}: `make emulators` brings this one"
    return None
