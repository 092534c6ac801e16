"""The GPU that was measured on, and its software. Numbers without it say nothing."""

from __future__ import annotations

import subprocess
import sys

from distilqa.engine.runtime import import_onnxruntime

_ASKED = ("name", "driver_version", "memory.total", "power.limit", "clocks.max.sm", "clocks.max.memory",
          "persistence_mode", "compute_mode", "mig.mode.current")  # fmt: skip

# In a process of its own: whoever asks CUDA holds memory of the GPU.
_BY_TORCH = "import torch; print(torch.cuda.get_device_name())"

_PATIENCE_S = 60


def gpu() -> dict[str, dict[str, str]]:
    """The first GPU as the driver's own tool tells of it, by name alone where there is no such tool; CUDA versions."""
    import torch

    told = _said("nvidia-smi", "--id=0", f"--query-gpu={','.join(_ASKED)}", "--format=csv,noheader")
    known = [value.strip() for value in told.split(",")]
    if len(known) == len(_ASKED):
        found = dict(zip(_ASKED, known, strict=True))
    else:
        found = {"name": _said(sys.executable, "-c", _BY_TORCH) or "an unknown GPU"}
    cuda = {"onnxruntime": getattr(import_onnxruntime(), "cuda_version", None), "torch": torch.version.cuda}
    return {"gpu": found, "cuda": {name: str(version) for name, version in cuda.items()}}


def _said(*command: str) -> str:
    """What a command prints; nothing where it fails."""
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=_PATIENCE_S).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return ""
