"""The engine for the CPU: which bundles it refuses, and that company in a run changes nothing."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper
from tests.bundles import let_products_be_wrong, replace_file
from tests.unit.engine.conftest import windows_of

from distilqa.bundle import INT8_PROBE, MANIFEST, SELF_TEST, VARIANTS, Bundle
from distilqa.engine.base import SHARED_RUN_WINDOWS
from distilqa.engine.cpu import CpuEngine
from distilqa.engine.open import open_engine
from distilqa.errors import BundleError, VariantUnusable


@pytest.fixture(scope="module")
def engines(bundle: Path) -> dict[int, CpuEngine]:
    """The int8 variant by its number of threads."""
    return {threads: CpuEngine(Bundle.open(bundle), "cpu-int8", threads=threads) for threads in (1, 2)}


@pytest.mark.parametrize("variant", VARIANTS)
def test_each_variant_passes_its_self_test(bundle: Path, variant: str) -> None:
    engine = CpuEngine(Bundle.open(bundle), variant, threads=1)
    assert (engine.variant, engine.threads) == (variant, 1)
    ((start, end),) = engine.run(windows_of(20, 1))
    assert (start.shape, end.shape) == ((20,), (20,))
    assert start.dtype == end.dtype == np.float32


def test_a_window_that_the_model_has_no_room_for(bundle: Path, tmp_path: Path) -> None:
    """The manifest says more than the model can: better found now than on the first long passage."""
    copy = shutil.copytree(bundle, tmp_path / "bundle")
    fields = json.loads((copy / MANIFEST).read_text())
    fields["window_tokens"] = fields["architecture"]["positions"] = 513
    (copy / MANIFEST).write_text(json.dumps(fields))
    with pytest.raises(BundleError, match="has no room for window_tokens: the model failed on 513 tokens"):
        CpuEngine(Bundle.open(copy))


def test_threads_are_all_usable_cores_by_default(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("distilqa.engine.cpu.usable_cores", lambda: 3)
    engine = CpuEngine(Bundle.open(bundle))
    assert (engine.variant, engine.threads) == ("cpu-int8", 3)


@pytest.mark.parametrize("length", [8, 23, 64])
@pytest.mark.parametrize("count", [2, SHARED_RUN_WINDOWS])
def test_int8_logits_are_the_same_bits_in_any_run(engines: dict[int, CpuEngine], length: int, count: int) -> None:
    windows = windows_of(length, count)
    alone = [engines[1].run([window])[0] for window in windows]
    assert len({start.tobytes() for start, _ in alone}) == count
    for engine in engines.values():
        for again in (engine.run(windows), [engine.run([window])[0] for window in windows]):
            assert [(s.tobytes(), e.tobytes()) for s, e in again] == [(s.tobytes(), e.tobytes()) for s, e in alone]


@pytest.mark.parametrize("length", [65, 384])
def test_int8_logits_are_the_same_bits_with_two_threads(engines: dict[int, CpuEngine], length: int) -> None:
    ((start, end),), ((start_2, end_2),) = (engines[threads].run(windows_of(length, 1)) for threads in (1, 2))
    assert (start.tobytes(), end.tobytes()) == (start_2.tobytes(), end_2.tobytes())


@pytest.fixture(scope="module")
def concurrent(bundle: Path) -> CpuEngine:
    return CpuEngine(Bundle.open(bundle), "cpu-int8", threads=2, concurrent=True)


@pytest.mark.parametrize("length", [7, 64, 384])
def test_int8_logits_are_the_same_bits_alone_on_all_cores(concurrent: CpuEngine, length: int) -> None:
    windows = windows_of(length, 2)
    shared, alone = concurrent.run(windows), concurrent.run(windows, alone=True)
    assert [(s.tobytes(), e.tobytes()) for s, e in shared] == [(s.tobytes(), e.tobytes()) for s, e in alone]


@pytest.mark.parametrize(
    ("options", "sessions"),
    [
        ({"threads": 2}, [(2, "0")]),
        ({"threads": 2, "concurrent": True}, [(1, "0"), (2, "1")]),
        ({"threads": 1, "concurrent": True}, [(1, "0")]),
    ],
)
def test_sessions(
    bundle: Path, monkeypatch: pytest.MonkeyPatch, options: dict[str, Any], sessions: list[tuple[int, str]]
) -> None:
    """Threads and spinning of each: a core for a run, and all for one that is alone."""
    opened: list[tuple[int, str]] = []
    real = onnxruntime.InferenceSession

    def session(model: Path, settings: Any, **more: Any) -> Any:
        if model.name == "cpu-int8.onnx":
            spinning = settings.get_session_config_entry("session.intra_op.allow_spinning")
            opened.append((settings.intra_op_num_threads, spinning))
            assert not settings.enable_mem_pattern
        return real(model, settings, **more)

    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    CpuEngine(Bundle.open(bundle), "cpu-int8", **options)
    assert opened == sessions


def test_int8_logits_are_the_same_bits_under_load(engines: dict[int, CpuEngine]) -> None:
    runs = [windows_of(length, count) for length, count in ((9, 8), (200, 1), (30, 3), (384, 1), (64, 8), (65, 1))] * 3
    alone = [engines[2].run(windows) for windows in runs]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(engines[2].run, runs))
    for expected, actual in zip(alone, together, strict=True):
        assert np.array_equal(np.array(actual), np.array(expected))


def reverse(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values[::-1].copy()


def make_nan(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return np.full_like(values, np.nan)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("change", [reverse, make_nan])
def test_self_test_refuses_other_weights(
    copy: Path, variant: str, change: Callable[[npt.NDArray[Any]], npt.NDArray[Any]]
) -> None:
    model = onnx.load(copy / f"{variant}.onnx")
    (weights,) = (tensor for tensor in model.graph.initializer if "position_embeddings" in tensor.name)
    weights.CopyFrom(numpy_helper.from_array(change(numpy_helper.to_array(weights)), weights.name))
    replace_file(copy, f"{variant}.onnx", model.SerializeToString(), listed=True)
    with pytest.raises(VariantUnusable, match=f"the self-test of {variant} failed") as caught:
        CpuEngine(Bundle.open(copy), variant)
    assert str(copy) in str(caught.value)


def test_a_processor_whose_products_are_wrong_is_refused(copy: Path) -> None:
    """Before the model is even read."""
    let_products_be_wrong(copy)
    replace_file(copy, "cpu-int8.onnx", b"", listed=False)
    with pytest.raises(VariantUnusable, match="it multiplies 8-bit numbers wrongly") as caught:
        CpuEngine(Bundle.open(copy), "cpu-int8")
    assert "cpu-int8" in str(caught.value)
    CpuEngine(Bundle.open(copy), "cpu-fp32")


@pytest.mark.parametrize(
    ("product", "expected", "problem"),
    [
        (np.array(["1"], object), np.array(["2"], object), "cannot be run"),
        (np.zeros(1, np.float32), np.zeros(2, np.float32), "cannot be run"),
        (np.zeros(0, np.float32), np.zeros(0, np.float32), "tests nothing"),
    ],
    ids=["strings", "other sizes", "nothing"],
)
def test_a_probe_of_other_outputs_is_damaged(
    copy: Path, product: npt.NDArray[Any], expected: npt.NDArray[Any], problem: str
) -> None:
    tensors = [numpy_helper.from_array(product, "given"), numpy_helper.from_array(expected, "right")]
    outputs = ("product", "expected")
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("Identity", [one.name], [out]) for one, out in zip(tensors, outputs, strict=True)],
        "probe",
        [],
        [
            onnx.helper.make_tensor_value_info(out, one.data_type, one.dims)
            for one, out in zip(tensors, outputs, strict=True)
        ],
        tensors,
    )
    model = onnx.helper.make_model(graph, ir_version=10, opset_imports=[onnx.helper.make_opsetid("", 21)])
    replace_file(copy, INT8_PROBE, model.SerializeToString(), listed=True)
    with pytest.raises(BundleError, match=f"{INT8_PROBE}: {problem}") as caught:
        open_engine(Bundle.open(copy))
    assert not isinstance(caught.value, VariantUnusable)


@pytest.mark.parametrize("side", [0, 1], ids=["start", "end"])
@pytest.mark.parametrize("number", [0, 1, 2])
@pytest.mark.parametrize(("share", "passes"), [(0.9, True), (1.1, False), (-1.1, False)])
def test_self_test_looks_at_every_logit(copy: Path, side: int, number: int, share: float, passes: bool) -> None:
    """A single expected logit is moved by a share of the tolerance."""
    bundle = Bundle.open(copy)
    test = json.loads((copy / SELF_TEST).read_text(encoding="utf-8"))
    assert len(test["inputs"]) == 3
    test["logits"]["cpu-int8"][number][side][7] += share * bundle.manifest.variants["cpu-int8"].tolerance
    replace_file(copy, SELF_TEST, json.dumps(test).encode(), listed=True)
    if passes:
        CpuEngine(Bundle.open(copy), "cpu-int8")
    else:
        with pytest.raises(BundleError, match="the self-test of cpu-int8 failed"):
            CpuEngine(Bundle.open(copy), "cpu-int8")


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (b"", "cannot be run"),
        (b"[]", "cannot be run"),
        (b"{}", "cannot be run"),
        (b"\xff", "cannot be run"),
        (b"[" * 100_000, "cannot be run"),
        (b'{"inputs": [[101, 999999999, 102]], "logits": {"cpu-fp32": [[[0], [0]]]}}', "cannot be run"),
        (b'{"inputs": [["a"]], "logits": {"cpu-fp32": [[[0], [0]]]}}', "cannot be run"),
        (b'{"inputs": [[101, 102]], "logits": {"cpu-fp32": []}}', "cannot be run"),
        (b'{"inputs": [[101, 102]], "logits": {}}', "cannot be run"),
        (b'{"inputs": [[]], "logits": {"cpu-fp32": [[[], []]], "cpu-int8": [[[], []]]}}', "cannot be run"),
        (b'{"inputs": [], "logits": {"cpu-fp32": []}}', "tests nothing"),
    ],
)
def test_a_self_test_that_says_nothing_is_refused(copy: Path, content: bytes, problem: str) -> None:
    replace_file(copy, SELF_TEST, content, listed=True)
    with pytest.raises(BundleError, match=problem):
        CpuEngine(Bundle.open(copy), "cpu-fp32")


@pytest.mark.parametrize("name", ["cpu-int8.onnx", SELF_TEST])
@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda content: content[: len(content) // 2], "bytes, the manifest says"),
        (lambda content: content[:-100] + bytes(100), "SHA-256"),
    ],
    ids=["truncated", "corrupted"],
)
def test_damaged_file_is_refused(copy: Path, name: str, damage: Callable[[bytes], bytes], why: str) -> None:
    replace_file(copy, name, damage((copy / name).read_bytes()), listed=False)
    with pytest.raises(BundleError) as caught:
        CpuEngine(Bundle.open(copy), "cpu-int8")
    assert str(copy / name) in str(caught.value)
    assert why in str(caught.value)


def test_damage_to_another_variant_is_no_hindrance(copy: Path) -> None:
    replace_file(copy, "cpu-fp32.onnx", b"", listed=False)
    assert CpuEngine(Bundle.open(copy)).variant == "cpu-int8"
