"""Extractive question answering from verified ONNX bundles: in this process, or over gRPC."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from distilqa.errors import (
    BindError,
    BrokenError,
    BundleError,
    DatasetError,
    DeadlineExceeded,
    DistilqaError,
    InferenceFailed,
    InvalidRequest,
    MissingDependency,
    ModelNotFound,
    Overloaded,
    PermissionDenied,
    SettingsError,
    Unauthenticated,
    Unavailable,
    VariantUnusable,
)
from distilqa.text.answer import Answer

if TYPE_CHECKING:
    from distilqa.bundle import Bundle
    from distilqa.client.client import AsyncClient, Client, Model, Outcome, Request
    from distilqa.reader import Reader

__all__ = [
    "Answer",
    "AsyncClient",
    "BindError",
    "BrokenError",
    "Bundle",
    "BundleError",
    "Client",
    "DatasetError",
    "DeadlineExceeded",
    "DistilqaError",
    "InferenceFailed",
    "InvalidRequest",
    "MissingDependency",
    "Model",
    "ModelNotFound",
    "Outcome",
    "Overloaded",
    "PermissionDenied",
    "Reader",
    "Request",
    "SettingsError",
    "Unauthenticated",
    "Unavailable",
    "VariantUnusable",
]

# Loaded when first used: a client does not need the reader's packages, nor the reader the client's.
_LAZY = {
    "AsyncClient": "client.client",
    "Bundle": "bundle",
    "Client": "client.client",
    "Model": "client.client",
    "Outcome": "client.client",
    "Reader": "reader",
    "Request": "client.client",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(import_module(f"distilqa.{_LAZY[name]}"), name)
    if name == "__version__":
        return import_module("importlib.metadata").version("distilqa")
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY, "__version__"})
