"""Runs every case of a folder and writes what comes out: ``run.py CASES OUTPUTS``. Needs NumPy and ONNX Runtime alone.

``CASES/cases.json`` says which model each case runs, ``CASES/<case>.npz`` holds its inputs, and ``OUTPUTS/<case>.npz``
gets its outputs. ``OUTPUTS/machine`` says what the processor calls itself.
"""

from __future__ import annotations

import json
import platform
import sys
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime


@cache
def open_session(model: str) -> Any:
    """As `distilqa.engine` opens it, which imports more than there is here."""
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.enable_mem_pattern = False
    options.log_severity_level = 3
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def main(cases: Path, outputs: Path) -> None:
    for case, model in json.loads((cases / "cases.json").read_text()).items():
        session = open_session(model)
        names = [output.name for output in session.get_outputs()]
        with np.load(cases / f"{case}.npz") as feeds:
            values = session.run(names, dict(feeds))
        np.savez(outputs / f"{case}.npz", **dict(zip(names, values, strict=True)))
    (outputs / "machine").write_text(platform.machine())


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
