"""Bundles that are not as they should be, or that this machine is not right for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
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


def saturating(a: npt.NDArray[np.uint8], b: npt.NDArray[np.int8]) -> npt.NDArray[np.float32]:
    """The product as x86 without VNNI computes it: pairs of products are added in 16 bits."""
    pairs = a[:, :, None].astype(np.int32) * b[None].astype(np.int32)
    sums: npt.NDArray[np.int32] = np.clip(pairs[:, 0::2] + pairs[:, 1::2], -32768, 32767)
    return np.array(sums.sum(axis=1), dtype=np.float32)


def let_products_saturate(copy: Path) -> None:
    """Swap the probe's outcomes: then this processor is the one that is off, by just what saturation does."""
    probe = onnx.load(copy / INT8_PROBE)
    tensors = {tensor.name: tensor for tensor in probe.graph.initializer}
    a, b, expected = (numpy_helper.to_array(tensors[name]) for name in ("a", "b", "expected_product"))
    assert (a.astype(np.float32) @ b.astype(np.float32) == expected).all()
    saturated = saturating(a, b)
    assert (saturated != expected).all()
    tensors["expected_product"].CopyFrom(numpy_helper.from_array(saturated, "expected_product"))
    replace_file(copy, INT8_PROBE, probe.SerializeToString(), listed=True)
