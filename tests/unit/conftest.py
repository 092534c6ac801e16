"""What the unit tests share: the tokenizer, a library that stands in for CUDA's, and settings of hypothesis."""

from __future__ import annotations

import ctypes
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from tokenizers import Tokenizer

from distilqa.engine.cuda import engine as cuda
from distilqa.engine.cuda import lane as cuda_lane
from distilqa.engine.cuda.runtime import Runtime

# The machine's speed is no property of the code.
settings.register_profile("distilqa", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("distilqa")


@pytest.fixture(scope="module")
def tokenizer_json(checkpoint: Path) -> str:
    return (checkpoint / "tokenizer.json").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def tokenizer(tokenizer_json: str) -> Tokenizer:
    """The tokenizer itself, for comparison."""
    tokenizer = Tokenizer.from_str(tokenizer_json)
    tokenizer.encode_special_tokens = True  # a text that spells a special token is text
    return tokenizer


class OrdinaryMemory:
    """What CUDA's library does, without a GPU. Nothing is copied before its stream is waited for.

    ``kept`` is what was made and not yet freed, ``copied`` how many bytes each copy had.
    """

    def __init__(self) -> None:
        self.kept: dict[int, Any] = {}
        self.copied: list[int] = []
        self._waiting: dict[int, list[tuple[int, int, int]]] = {}

    def library(self) -> Any:
        return SimpleNamespace(
            cudaGetErrorString=lambda status: b"an illegal memory access was encountered",
            cudaGetDeviceCount=lambda count: 0,
            cudaMallocHost=lambda address, size: self._keep(address, ctypes.create_string_buffer(size.value)),
            cudaFreeHost=self._free,
            cudaStreamCreateWithFlags=lambda handle, flags: self._keep(handle, ctypes.create_string_buffer(1)),
            cudaStreamDestroy=self._free,
            cudaMemcpyAsync=self._copy,
            cudaStreamSynchronize=self._synchronize,
        )

    def _keep(self, address: Any, made: Any) -> int:
        address._obj.value = ctypes.addressof(made)
        self.kept[ctypes.addressof(made)] = made
        return 0

    def _free(self, address: ctypes.c_void_p) -> int:
        del self.kept[address.value or 0]
        return 0

    def _copy(self, to: Any, source: Any, size: Any, kind: Any, stream: Any) -> int:
        self._waiting.setdefault(stream.value, []).append((to.value, source.value, size.value))
        self.copied.append(size.value)
        return 0

    def _synchronize(self, stream: Any) -> int:
        for copy in self._waiting.pop(stream.value):
            ctypes.memmove(*copy)
        return 0


@pytest.fixture
def memory() -> OrdinaryMemory:
    return OrdinaryMemory()


@pytest.fixture
def cpu_as_gpu(memory: OrdinaryMemory, monkeypatch: pytest.MonkeyPatch) -> Runtime:
    """The CPU is taken for a GPU; who opens a session for it has to put another in its place."""
    runtime = Runtime(memory.library())
    monkeypatch.setattr(cuda, "load_runtime", lambda: runtime)
    monkeypatch.setattr(cuda_lane, "DEVICE", "cpu")
    monkeypatch.setattr(cuda, "_TIMED_TOKENS", (1024,))
    monkeypatch.setattr(cuda, "_GRAPH_TOKENS", (16, 128, 256))
    monkeypatch.setattr(cuda, "_GRAPH_ROUNDS", 1)
    return runtime
