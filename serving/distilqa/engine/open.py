"""The engine for a bundle: which of its variants, and for what device."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from distilqa.bundle import GPU_VARIANTS, VARIANTS, Bundle
from distilqa.engine.base import Engine
from distilqa.engine.cpu import CpuEngine
from distilqa.engine.cuda.budget import OBJECTIVE_S
from distilqa.engine.runtime import CUDA_PROVIDER, import_onnxruntime
from distilqa.errors import BundleError, VariantUnusable

logger = logging.getLogger(__name__)


def open_engine(
    bundle: Bundle, variant: str | None = None, *, unverified: bool = False, objective_s: float = OBJECTIVE_S,
    **options: Any,
) -> Engine:  # fmt: skip
    """The engine for a variant of a bundle: the one for a GPU, or for the CPU, which takes the ``options``.

    Where no variant is named and this processor computes the fastest wrongly, it is the next, and a warning in the log
    of this module says so. ``unverified`` allows a variant that was never run on the kind of device that it is for.
    Raises BundleError, VariantUnusable and MissingDependency as they do.
    """
    # One for a GPU alone: that says what is missing here.
    name, description = bundle.variant(variant, (*usable_variants(), *GPU_VARIANTS))
    if not description.verified and not unverified:
        raise BundleError(
            f"{bundle.path}: {name} is unverified: no GPU ran it when it was made. Export it where there is one, or"
            " allow it: distilqa serve has --unverified allow, a Reader unverified=True"
        )
    if name in GPU_VARIANTS:
        from distilqa.engine.cuda.engine import CudaEngine  # of no use, and some memory, elsewhere

        return CudaEngine(bundle, name, objective_s=objective_s)
    if variant is not None:
        return CpuEngine(bundle, name, **options)
    return _open_usable(bundle, [one for one in VARIANTS if one in bundle.manifest.variants], options)


def _open_usable(bundle: Bundle, names: Sequence[str], options: Mapping[str, Any]) -> Engine:
    """The engine for the first of these variants that this processor computes rightly; damage is no reason for another.

    Raises as `CpuEngine` does, for the first of them where none can be used.
    """
    problem = ""  # the error itself would keep its model in memory
    for name in names:
        try:
            engine = CpuEngine(bundle, name, **options)
        except VariantUnusable as error:
            problem = problem or str(error)
        except BundleError as error:
            if problem:
                raise BundleError(f"{problem}. And {error}") from error
            raise
        else:
            if problem:
                logger.warning("%s. %s is used instead; --variant %s asks for it by name", problem, name, name)
            return engine
    raise VariantUnusable(problem)


def usable_variants() -> Sequence[str]:
    """Those for the ONNX Runtime that is installed, the fastest first. Raises MissingDependency."""
    gpu = CUDA_PROVIDER in import_onnxruntime().get_available_providers()
    return (*GPU_VARIANTS, *VARIANTS) if gpu else VARIANTS
