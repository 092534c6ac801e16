"""The engine for a GPU, on a CPU: with the packed model's twin, and with all that a GPU needs missing."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from distilqa import cuda
from distilqa.bundle import Bundle
from distilqa.cuda import CudaEngine, DeviceLost, open_cuda_session
from distilqa.engine import Engine, open_engine, open_session
from distilqa.errors import BundleError, InferenceFailed, MissingDependency
from distilqa.packed import run_packed
from distilqa.reader import Reader
from distilqa_export.checkpoint import load_checkpoint
from distilqa_export.fuse import fuse
from distilqa_export.pack import pack
from distilqa_export.trace import trace

LENGTHS = [5, 300, 61, 384, 17]


@pytest.fixture(scope="module")
def twin(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("twin")
    loaded = load_checkpoint(str(checkpoint))
    model = fuse(trace(loaded, folder), loaded.architecture)
    ir.save(pack(model, loaded.architecture, twin=True), folder / "twin.onnx")
    return folder / "twin.onnx"


@pytest.fixture
def engine(gpu_bundle: Path, twin: Path, monkeypatch: pytest.MonkeyPatch) -> CudaEngine:
    """One that takes the CPU for a GPU."""
    monkeypatch.setattr(cuda, "open_cuda_session", lambda model: open_session(twin, threads=1))
    monkeypatch.setattr(cuda, "_TIMED_TOKENS", (1024,))
    found = open_engine(Bundle.open(gpu_bundle), "cuda-fp16", unverified=True)
    assert isinstance(found, CudaEngine)
    return found


def windows() -> list[np.ndarray]:
    chance = np.random.default_rng(0)
    return [np.r_[101, chance.integers(1000, 30000, length - 2), 102] for length in LENGTHS]


def test_windows_of_any_lengths_share_a_run(engine: CudaEngine, gpu_bundle: Path) -> None:
    """And have the logits that they have alone, and nearly fp32's."""
    fp32 = Engine(Bundle.open(gpu_bundle), "cpu-fp32", threads=1)
    for window, found in zip(windows(), engine.run(windows()), strict=True):
        (alone,) = engine.run([window])
        (exact,) = fp32.run([window])
        assert [len(side) for side in found] == [len(window)] * 2
        np.testing.assert_allclose(found, alone, atol=0.02)
        np.testing.assert_allclose(found, exact, atol=0.2)


def test_its_runs_are_as_large_as_pays(engine: CudaEngine) -> None:
    assert set(engine.costs_s) == {384, 6 * 170}
    assert engine.budget in engine.costs_s
    assert engine.lanes == 2
    assert engine.token_s == engine.costs_s[engine.budget] / engine.budget
    assert engine.device == f"a GPU, runs of up to {engine.budget:,} tokens"


def test_sizes_that_memory_has_no_room_for_are_left_out(
    engine: CudaEngine, gpu_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def too_small(session: Any, inputs: Any, windows: Any) -> Any:
        if len(windows) > 3:
            raise RuntimeError("out of memory")
        return run_packed(session, inputs, windows)

    monkeypatch.setattr(cuda, "run_packed", too_small)
    monkeypatch.setattr(CudaEngine, "_differences", lambda self, test: [0.0])
    found = open_engine(Bundle.open(gpu_bundle), "cuda-fp16", unverified=True)
    assert found.budget == 384


def test_a_gpu_that_fails_on_everything_is_lost(engine: CudaEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no request is blamed for it: the lane dies, and with it the server."""

    def broken(*_: Any) -> Any:
        raise RuntimeError("CUDA error 700: an illegal memory access was encountered")

    monkeypatch.setattr(cuda, "run_packed", broken)
    with pytest.raises(DeviceLost, match=r"fails on everything .*error 700"):
        engine.run(windows())


def test_an_empty_window_fails(engine: CudaEngine) -> None:
    with pytest.raises(InferenceFailed, match="no tokens"):
        engine.run([np.array([], np.int64)])


def test_it_is_the_first_choice_where_a_gpu_may_be(gpu_bundle: Path, gpu_package: dict[str, Any]) -> None:
    with pytest.raises(BundleError, match="cuda-fp16 is unverified"):
        Reader(gpu_bundle)
    with pytest.raises(MissingDependency, match="no NVIDIA driver"):
        Reader(gpu_bundle, unverified=True)
    assert Reader(gpu_bundle, "cpu-fp32").engine.variant == "cpu-fp32"


def test_where_none_can_be_it_is_none(gpu_bundle: Path) -> None:
    assert Reader(gpu_bundle).engine.variant == "cpu-fp32"


def test_an_unverified_variant_is_refused(gpu_bundle: Path) -> None:
    assert not Bundle.open(gpu_bundle).manifest.variants["cuda-fp16"].verified
    with pytest.raises(BundleError, match="cuda-fp16 is unverified: no GPU ran it when it was made"):
        Reader(gpu_bundle, "cuda-fp16")


def test_a_cpu_never_takes_its_place(gpu_bundle: Path) -> None:
    with pytest.raises(MissingDependency, match=r"has no CUDAExecutionProvider: .*distilqa\[gpu\]"):
        Reader(gpu_bundle, "cuda-fp16", unverified=True)


@pytest.fixture
def gpu_package(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As if onnxruntime-gpu were installed, and these libraries alone there."""
    there: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in there:
            raise OSError(f"{name}: cannot open shared object file")
        return there[name]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(cuda, "ctypes", SimpleNamespace(CDLL=load, c_int=ctypes.c_int, byref=ctypes.byref,
                                                        c_char_p=ctypes.c_char_p))  # fmt: skip
    return there


def runtime(status: int) -> Any:
    """A CUDA runtime that counts devices with that status."""
    return SimpleNamespace(
        cudaGetDeviceCount=lambda count: status,
        cudaGetErrorString=MagicMock(return_value=b"no CUDA-capable device is detected"),
    )


def test_what_is_missing_is_named(gpu_package: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(MissingDependency, match=r"there is no NVIDIA driver here \(libcuda.so.1"):
        open_cuda_session(tmp_path)
    gpu_package["libcuda.so.1"] = None
    with pytest.raises(MissingDependency, match=r"libcudart.so.13: cannot open .*distilqa\[gpu\]"):
        open_cuda_session(tmp_path)
    gpu_package["libcudart.so.13"] = runtime(100)
    with pytest.raises(MissingDependency, match="CUDA finds no GPU: no CUDA-capable device is detected"):
        open_cuda_session(tmp_path)
    gpu_package["libcudart.so.13"] = runtime(0)
    with pytest.raises(MissingDependency, match=r"libcublasLt.so.13: cannot open .*distilqa\[gpu\]"):
        open_cuda_session(tmp_path)
