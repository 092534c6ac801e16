"""Bundles that are not as they should be, or that this machine is not right for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
from onnx import numpy_helper

from distilqa.bundle import INT8_PROBE, MANIFEST, Bundle, describe


def replace_file(bundle: Path, name: str, content: bytes, *, listed: bool) -> None:
    """Replace a file of a copied bundle, and with ``listed`` its size and digest in the manifest."""
    (bundle / name).unlink()
    (bundle / name).write_bytes(content)
    if listed:
        manifest = Bundle.open(bundle).manifest
        files = {**manifest.files, name: describe(bundle / name)}
        replace_file(bundle, MANIFEST, replace(manifest, files=files).to_json().encode(), listed=False)


def let_products_be_wrong(copy: Path) -> None:
    """Have the probe expect other products than this processor's: to it, this processor is one that is off."""
    probe = onnx.load(copy / INT8_PROBE)
    (tensor,) = (tensor for tensor in probe.graph.initializer if tensor.name == "expected_product")
    tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor) + np.float32(1), tensor.name))
    replace_file(copy, INT8_PROBE, probe.SerializeToString(), listed=True)
