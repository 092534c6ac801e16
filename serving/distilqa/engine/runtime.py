"""Finding ONNX Runtime: one of two packages, of which there may be one alone."""

from __future__ import annotations

import importlib.metadata
import os
from typing import Any

from distilqa.errors import MissingDependency
from distilqa.wording import installing

CUDA_PROVIDER = "CUDAExecutionProvider"

# It would tell its makers of each session, and keep an identifier and a database in the user's home. Read when it is
# first imported, and what the user has set counts.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

_PACKAGES = ("onnxruntime", "onnxruntime-gpu")
_INSTALL = f"{installing('cpu')} (or gpu for cpu)"


def import_onnxruntime() -> Any:
    """Import ONNX Runtime. Raises MissingDependency if neither of its packages is installed, or both are."""
    found = [name for name in _PACKAGES if _installed(name)]
    if len(found) == 2:
        raise MissingDependency(
            "onnxruntime and onnxruntime-gpu are both installed and overwrite each other; keep one:"
            f" pip uninstall -y onnxruntime onnxruntime-gpu && {_INSTALL}"
        )
    try:
        import onnxruntime
    except ImportError as error:
        raise MissingDependency(f"ONNX Runtime is not installed: {_INSTALL}") from error
    if not hasattr(onnxruntime, "InferenceSession"):  # what is left where one of two was taken away
        raise MissingDependency(f"ONNX Runtime is damaged: pip uninstall -y onnxruntime onnxruntime-gpu && {_INSTALL}")
    return onnxruntime


def runtime_package() -> str:
    """The name of the ONNX Runtime that is installed. Raises MissingDependency as `import_onnxruntime` does."""
    import_onnxruntime()
    return next(name for name in _PACKAGES if _installed(name))


def _installed(distribution: str) -> bool:
    try:
        importlib.metadata.distribution(distribution)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True
