"""Which of the packages of ONNX Runtime there is, and what is said where that is not one."""

from __future__ import annotations

import importlib.metadata
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import onnxruntime
import pytest

from distilqa.bundle import Bundle
from distilqa.engine.cpu import CpuEngine
from distilqa.engine.runtime import import_onnxruntime
from distilqa.errors import MissingDependency


def installed(*names: str) -> Callable[[str], object]:
    """A stand-in for importlib.metadata.distribution where only these are installed."""

    def distribution(name: str) -> object:
        if name not in names:
            raise importlib.metadata.PackageNotFoundError(name)
        return object()

    return distribution


@pytest.mark.parametrize("names", [("onnxruntime",), ("onnxruntime-gpu",)])
def test_one_onnxruntime(monkeypatch: pytest.MonkeyPatch, names: tuple[str, ...]) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", installed(*names))
    assert import_onnxruntime() is onnxruntime


def test_both_onnxruntimes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", installed("onnxruntime", "onnxruntime-gpu"))
    with pytest.raises(MissingDependency, match=r"pip uninstall -y onnxruntime onnxruntime-gpu && pip install "):
        CpuEngine(Bundle.open(bundle))


def test_the_rest_of_two_onnxruntimes(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of which one was uninstalled, and took files of the other with it."""
    monkeypatch.setitem(sys.modules, "onnxruntime", ModuleType("onnxruntime"))
    with pytest.raises(MissingDependency, match=r"is damaged: pip uninstall -y onnxruntime onnxruntime-gpu && pip"):
        CpuEngine(Bundle.open(bundle))


def test_no_onnxruntime(bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.metadata, "distribution", installed())
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    with pytest.raises(MissingDependency, match=r"pip install '\.\[cpu\]'"):
        CpuEngine(Bundle.open(bundle))
