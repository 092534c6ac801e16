"""CUDA's library: what is missing is named, what is made is freed, what fails is raised."""

from __future__ import annotations

import ctypes
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from distilqa.engine.cuda import runtime as cuda_runtime
from distilqa.engine.cuda.runtime import Runtime, load_runtime
from distilqa.errors import MissingDependency


@pytest.fixture
def libraries(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """As if onnxruntime-gpu were installed, and these libraries alone there."""
    there: dict[str, Any] = {}

    def load(name: str) -> Any:
        if name not in there:
            raise OSError(f"{name}: cannot open shared object file")
        return there[name]

    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CUDAExecutionProvider"])
    monkeypatch.setattr(onnxruntime, "preload_dlls", lambda: None)
    monkeypatch.setattr(cuda_runtime, "ctypes", SimpleNamespace(**vars(ctypes) | {"CDLL": load}))
    return there


def test_what_is_missing_is_named(libraries: dict[str, Any], memory: Any) -> None:
    with pytest.raises(MissingDependency, match=r"there is no NVIDIA driver here \(libcuda.so.1"):
        load_runtime()
    libraries["libcuda.so.1"] = None
    with pytest.raises(MissingDependency, match=r"libcudart.so.13: cannot open .*\.\[gpu\]"):
        load_runtime()
    cudart = libraries["libcudart.so.13"] = memory.library()
    cudart.cudaGetDeviceCount = lambda count: 100
    cudart.cudaGetErrorString = lambda status: b"no CUDA-capable device is detected"
    with pytest.raises(MissingDependency, match=r"finds no GPU \(cudaGetDeviceCount: no CUDA-capable device is det"):
        load_runtime()
    cudart.cudaGetDeviceCount = lambda count: 0
    with pytest.raises(MissingDependency, match=r"libcublasLt.so.13: cannot open .*\.\[gpu\]"):
        load_runtime()
    for name in ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9"):
        libraries[name] = None
    load_runtime()


def test_without_the_provider_there_is_none() -> None:
    with pytest.raises(MissingDependency, match=r"has no CUDAExecutionProvider: .*\.\[gpu\]"):
        load_runtime()


def test_copies_are_waited_for(memory: Any) -> None:
    runtime = Runtime(memory.library())
    one, other = runtime.pinned(5), runtime.pinned(5)
    one[:], other[:] = np.arange(5), 0
    runtime.copy(other[2:].ctypes.data, one.ctypes.data, 3 * 4, runtime.stream())
    assert other.tolist() == [0, 0, 0, 1, 2]


def test_what_is_made_lives_as_long_as_who_has_it(memory: Any) -> None:
    runtime = Runtime(memory.library())
    part = runtime.pinned(100)[7:9]
    stream = runtime.stream()
    assert len(memory.kept) == 2
    del stream
    assert len(memory.kept) == 1
    part[:] = 1
    del part
    assert not memory.kept


@pytest.mark.parametrize("call", ["cudaMallocHost", "cudaStreamCreateWithFlags", "cudaMemcpyAsync",
                                  "cudaStreamSynchronize"])  # fmt: skip
def test_a_call_that_fails_is_raised(call: str, memory: Any) -> None:
    library = memory.library()
    setattr(library, call, lambda *_: 700)
    with pytest.raises(RuntimeError, match=f"{call}: an illegal memory access was encountered"):
        copy_one(Runtime(library))


def copy_one(runtime: Runtime) -> None:
    numbers = runtime.pinned(2)
    runtime.copy(numbers[1:].ctypes.data, numbers.ctypes.data, 4, runtime.stream())
