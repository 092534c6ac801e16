"""CUDA's own library: whether all that a GPU needs is there, and what ONNX Runtime leaves to its caller.

That is memory of this process which the GPU reads and writes by itself, and copies that need not wait for runs.
"""

from __future__ import annotations

import ctypes
import weakref
from typing import Any

import numpy as np

from distilqa.engine.runtime import CUDA_PROVIDER, import_onnxruntime
from distilqa.errors import MissingDependency
from distilqa.text.arrays import Int32
from distilqa.wording import installing

INSTALL = f"pip uninstall -y onnxruntime && {installing('gpu')}"

# What the provider needs; it would say so in its log alone, and leave the model to the CPU.
_DRIVER = "libcuda.so.1"
_RUNTIME = "libcudart.so.13"
_LIBRARIES = ("libcublasLt.so.13", "libcublas.so.13", "libcurand.so.10", "libcudnn.so.9")

# From CUDA's headers: a stream that does not wait for the default one, and copies whose addresses say where they go.
_STREAM_NON_BLOCKING = 1
_MEMCPY_DEFAULT = 4


class Runtime:
    """The calls of CUDA's library that are needed here. What it gives is freed when nobody has it any more.

    All methods raise RuntimeError, with the call and what CUDA says, where one fails.
    """

    def __init__(self, library: Any) -> None:
        self._library = library
        self._library.cudaGetErrorString.restype = ctypes.c_char_p

    def check_device(self) -> None:
        """Raises RuntimeError if there is no GPU that this library can use."""
        self._call("cudaGetDeviceCount", ctypes.byref(ctypes.c_int()))

    def pinned(self, count: int) -> Int32:
        """Memory for so many int32 which stays where it is, so that the GPU reads and writes it by itself."""
        address = ctypes.c_void_p()
        self._call("cudaMallocHost", ctypes.byref(address), ctypes.c_size_t(4 * count))
        block = (ctypes.c_int32 * count).from_address(address.value or 0)
        self._free_with(block, self._library.cudaFreeHost, address)
        return np.frombuffer(memoryview(block), np.int32)

    def stream(self) -> ctypes.c_void_p:
        """A stream, on which copies wait for no run."""
        stream = ctypes.c_void_p()
        self._call("cudaStreamCreateWithFlags", ctypes.byref(stream), ctypes.c_uint(_STREAM_NON_BLOCKING))
        self._free_with(stream, self._library.cudaStreamDestroy, ctypes.c_void_p(stream.value))
        return stream

    def copy(self, to: int, source: int, size: int, stream: ctypes.c_void_p) -> None:
        """Copy ``size`` bytes from one address to another, pinned or the GPU's, and wait until they are there."""
        addresses = ctypes.c_void_p(to), ctypes.c_void_p(source)
        self._call("cudaMemcpyAsync", *addresses, ctypes.c_size_t(size), ctypes.c_int(_MEMCPY_DEFAULT), stream)
        self._call("cudaStreamSynchronize", stream)

    def _call(self, name: str, *arguments: Any) -> None:
        if status := getattr(self._library, name)(*arguments):
            raise RuntimeError(f"{name}: {self._library.cudaGetErrorString(status).decode()}")

    def _free_with(self, owner: object, free: Any, address: ctypes.c_void_p) -> None:
        # Not when the process ends: that frees all of it, and other threads may still be at work.
        weakref.finalize(owner, free, address).atexit = False


def load_runtime() -> Runtime:
    """Load all that the provider needs. Raises MissingDependency, which names what is missing."""
    ort = import_onnxruntime()
    if CUDA_PROVIDER not in ort.get_available_providers():
        raise MissingDependency(f"this ONNX Runtime has no {CUDA_PROVIDER}: {INSTALL}")
    try:
        ctypes.CDLL(_DRIVER)
    except OSError as error:
        raise MissingDependency(f"there is no NVIDIA driver here ({error})") from error
    ort.preload_dlls()  # of the packages that the extra installs
    runtime = Runtime(_load(_RUNTIME))
    try:
        runtime.check_device()
    except RuntimeError as error:
        raise MissingDependency(f"CUDA finds no GPU ({error})") from error
    for name in _LIBRARIES:
        _load(name)
    return runtime


def _load(name: str) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(name)
    except OSError as error:
        raise MissingDependency(f"{error}: {INSTALL}") from error
